package agent

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"decoynet/deception"
	"decoynet/internal/notice"
)

// lookEvery is how often the courier looks at the ways to the gateways.
const lookEvery = time.Second

// look is the courier's only goroutine besides its flows'.
func (c *Courier) look() {
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case now := <-ticker.C:
			links := c.cfg.Upstream.Gateways()
			if e := c.watch.see(now, links); e != nil {
				e.Node = c.cfg.Node
				c.cfg.Recorder.Event(e)
			}
			if c.news.follow(links) {
				c.cfg.Changed()
			}
			c.overload.flush(now, false)
		}
	}
}

// gatewayWatch tells when the last gateway was lost and when there is one again,
// each once.
type gatewayWatch struct {
	mu    sync.Mutex // guards the rest
	since time.Time  // when there was no gateway for the first time, zero while there is one
	lost  bool
}

// see takes what is true now and returns the event that it is, without a node,
// or nil. Nothing is lost before the time that an intruder would wait, and
// nothing where there are no gateways to go to.
func (w *gatewayWatch) see(now time.Time, links []GatewayLink) *deception.Event {
	w.mu.Lock()
	defer w.mu.Unlock()
	kind, text := deception.EventKind(""), ""
	var troubles []string
	for _, l := range links {
		if l.Connected {
			text = fmt.Sprintf("ingress gateway %s is reached again", l.Name)
			break
		}
		troubles = append(troubles, strings.TrimSuffix(fmt.Sprintf("%s at %s: %s", l.Name, l.Address, l.Problem), ": "))
	}
	switch {
	case text != "" || len(links) == 0:
		if w.lost && text != "" {
			kind = deception.EventGatewayBack
		}
		w.since, w.lost = time.Time{}, false
	case w.since.IsZero():
		w.since = now
	case !w.lost && now.Sub(w.since) >= openTimeout:
		w.lost = true
		kind = deception.EventGatewayLost
		text = fmt.Sprintf("no ingress gateway can be reached, so intruders are reset: %s", strings.Join(troubles, "; "))
	}
	if kind == "" {
		return nil
	}
	return &deception.Event{ID: deception.NewSessionID(now), Time: now, Kind: kind, Message: text}
}

func (w *gatewayWatch) isLost() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}

// news is what the gateways say about the health of services. That of the
// gateway which flows would go to counts: another one may see another truth.
type news struct {
	mu   sync.Mutex // guards the rest
	said map[string]notice.Notice
	best string // the gateway that counts, empty where none is connected
}

// take keeps what a gateway says; true where it counts.
func (n *news) take(gateway string, said notice.Notice) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.said == nil {
		n.said = map[string]notice.Notice{}
	}
	n.said[gateway] = said
	if n.best == "" {
		n.best = gateway // who speaks is connected
	}
	return n.best == gateway
}

// follow says which gateways are connected now; true where another one counts.
func (n *news) follow(links []GatewayLink) bool {
	best := ""
	for _, l := range links {
		if l.Connected {
			best = l.Name
			break
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	changed := best != n.best && (len(n.said[best].Down) > 0 || len(n.said[n.best].Down) > 0)
	n.best = best
	return changed
}

func (n *news) up(segment, decoy string, t deception.Transport, port uint16, ipv6 bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	said, ok := n.said[n.best]
	return !ok || said.Up(segment, decoy, t, port, ipv6)
}

// Told takes a message of a gateway, as the tunnel brings it. A message that
// cannot be read changes nothing; the error says why.
func (c *Courier) Told(gateway string, message []byte) error {
	n, err := notice.Parse(message)
	if err != nil {
		return fmt.Errorf("gateway %s: %w", gateway, err)
	}
	if n.Node != c.cfg.Node {
		return fmt.Errorf("gateway %s: %w: it is for node %s", gateway, notice.ErrMalformed, n.Node)
	}
	if c.news.take(gateway, n) {
		c.cfg.Changed()
	}
	return nil
}

// Up tells whether a decoy's port is to be open as far as is known: the best
// gateway that is connected has not said otherwise.
func (c *Courier) Up(d *deception.Decoy, t deception.Transport, port uint16, ipv6 bool) bool {
	return c.news.up(d.Segment, d.Name, t, port, ipv6)
}
