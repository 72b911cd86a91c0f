// Package notice is what an ingress gateway tells its agents over the tunnel:
// which of a node's decoy ports have no healthy service behind them now, so that
// the agent may close them as a real host would.
package notice

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"decoynet/deception"
)

// Notice is everything that one node is told. It replaces what was told before.
type Notice struct {
	Node string `json:"node"`
	Down []Down `json:"down"`
}

// Down are decoy ports that are to be closed, at the decoy's addresses of one
// family. First <= Last.
type Down struct {
	Segment   string `json:"segment"`
	Decoy     string `json:"decoy"`
	Transport string `json:"transport"` // tcp or udp
	First     uint16 `json:"first"`
	Last      uint16 `json:"last"`
	IPv6      bool   `json:"ipv6"`
}

// ErrMalformed is returned by Parse for what is no notice.
var ErrMalformed = errors.New("bad notice of a gateway")

// Append appends the notice as JSON.
func (n *Notice) Append(b []byte) []byte {
	out := Notice{Node: n.Node, Down: n.Down}
	if out.Down == nil {
		out.Down = []Down{} // an empty list, not null
	}
	text, err := json.Marshal(out)
	if err != nil { // plain fields: it cannot fail
		panic(err)
	}
	return append(b, text...)
}

// Parse reads what Append wrote. Fields that it does not know are passed over, so
// that a newer gateway may say more. It returns ErrMalformed for anything else.
func Parse(b []byte) (Notice, error) {
	var n Notice
	if err := json.Unmarshal(b, &n); err != nil {
		return Notice{}, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if n.Node == "" {
		return Notice{}, fmt.Errorf("%w: no node is named", ErrMalformed)
	}
	for _, d := range n.Down {
		if d.transport() == 0 || d.First == 0 || d.First > d.Last {
			return Notice{}, fmt.Errorf("%w: ports %d-%d/%s", ErrMalformed, d.First, d.Last, d.Transport)
		}
	}
	return n, nil
}

func (d *Down) transport() deception.Transport {
	for _, t := range [...]deception.Transport{deception.TCP, deception.UDP} {
		if d.Transport == t.String() {
			return t
		}
	}
	return 0
}

// Up tells whether nothing is said against opening the decoy's port.
func (n *Notice) Up(segment, decoy string, t deception.Transport, port uint16, ipv6 bool) bool {
	return !slices.ContainsFunc(n.Down, func(d Down) bool {
		return d.First <= port && port <= d.Last && d.IPv6 == ipv6 && d.transport() == t && d.Decoy == decoy && d.Segment == segment
	})
}
