package registry

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ErrNoNode says that no node of that name was ever enrolled.
var ErrNoNode = errors.New("no such node is enrolled")

// Node is a machine that was enrolled.
type Node struct {
	Name string
	// Generation counts enrolments and revocations; only certificates of the
	// present generation are good.
	Generation uint32
	Enrolled   time.Time
	Revoked    time.Time // zero where it is not
	Seen       time.Time // when it was last heard of, a few seconds late at most
	Lost       time.Time // when it was found to be silent, zero while it is not
	Boot       string    // identifies the run of its process
	// Reach are the hosts (names or addresses) at which others probably reach
	// it, best first; Addresses those of the machine as it reports them.
	Reach, Addresses []string
	Report           Report
}

// Report is what a node said last about itself.
type Report struct {
	Version            string    `json:"version,omitempty"`
	Platform           string    `json:"platform,omitempty"`
	Held               string    `json:"held,omitempty"`  // revision
	State              string    `json:"state,omitempty"` // converged, drifted, failed
	Problems           []string  `json:"problems,omitempty"`
	Flows              uint64    `json:"flows,omitempty"`
	Gateways           []Link    `json:"gateways,omitempty"`
	Spool              Spool     `json:"spool,omitzero"`
	ClockOffset        int64     `json:"clock_offset,omitempty"` // ns that the node's clock is ahead
	CertificateExpires time.Time `json:"certificate_expires,omitzero"`
	Peer               string    `json:"peer,omitempty"` // address that the node is seen at
}

// Link is a node's connection to an ingress gateway.
type Link struct {
	Name      string        `json:"name"`
	Connected bool          `json:"connected"`
	RoundTrip time.Duration `json:"round_trip"`
	Error     string        `json:"error,omitempty"`
}

// Spool is the state of a node's records that wait for a controller.
type Spool struct {
	Waiting      uint64 `json:"waiting,omitempty"`
	WaitingBytes uint64 `json:"waiting_bytes,omitempty"`
	Dropped      uint64 `json:"dropped,omitempty"`
}

// Nodes returns every node that was ever enrolled, by name.
func (r *Registry) Nodes(ctx context.Context) ([]Node, error) {
	rows, err := r.db.QueryContext(ctx, `SELECT name, generation, enrolled_at, revoked_at, seen_at, lost_at, boot,
		reach, addresses, report FROM controller_node`)
	if err != nil {
		return nil, fmt.Errorf("read the nodes: %w", err)
	}
	defer rows.Close()
	var out []Node
	for rows.Next() {
		var n Node
		var enrolled, revoked, seen, lost int64
		var reach, addresses, report string
		if err := rows.Scan(&n.Name, &n.Generation, &enrolled, &revoked, &seen, &lost, &n.Boot,
			&reach, &addresses, &report); err != nil {
			return nil, fmt.Errorf("read the nodes: %w", err)
		}
		n.Enrolled, n.Revoked, n.Seen, n.Lost = moment(enrolled), moment(revoked), moment(seen), moment(lost)
		n.Reach, n.Addresses = strings.Fields(reach), strings.Fields(addresses)
		if report != "" {
			if err := json.Unmarshal([]byte(report), &n.Report); err != nil {
				return nil, fmt.Errorf("read the last report of node %s: %w", n.Name, err)
			}
		}
		out = append(out, n)
	}
	slices.SortFunc(out, func(a, b Node) int { return strings.Compare(a.Name, b.Name) })
	return out, rows.Err()
}

// Enrolment is a machine's wish to become a node.
type Enrolment struct {
	Token Secret
	Now   time.Time
	// Sign makes the certificate. Where it fails, the token is as good as before.
	Sign func(node string, generation uint32) error
	By   Entry // Actor and Object are filled in
}

// Enrol consumes the join token and makes its node one of a new generation, all in
// one transaction: of two who show one token at the same time, one is enrolled. It
// returns ErrTokenUnknown, ErrTokenExpired and ErrTokenUsed; the node's name is
// returned with the latter two as well.
func (r *Registry) Enrol(ctx context.Context, e Enrolment) (node string, generation uint32, err error) {
	err = r.change(ctx, func(t tx) error {
		var err error
		if node, err = t.consume(e.Token, e.By.Peer, e.Now); err != nil {
			return err
		}
		if generation, err = t.enrol(node, e.Now); err != nil {
			return err
		}
		if err := e.Sign(node, generation); err != nil {
			return err
		}
		e.By.Actor, e.By.Object = node, node
		return t.ok(e.By)
	})
	return node, generation, wrap("enrol", err)
}

// EnrolLocal makes the node that a controller runs on a node without a token.
func (r *Registry) EnrolLocal(ctx context.Context, node string, sign func(generation uint32) error, by Entry) (generation uint32, err error) {
	err = r.change(ctx, func(t tx) error {
		var err error
		if generation, err = t.enrol(node, time.Now()); err != nil {
			return err
		}
		if err := sign(generation); err != nil {
			return err
		}
		return t.ok(by)
	})
	return generation, wrap("enrol node "+node, err)
}

// enrol begins a new generation of the node. What its former machine said last is
// forgotten, but for where it was: agents may need that until it says where it is.
func (t tx) enrol(node string, now time.Time) (generation uint32, err error) {
	err = t.row(`INSERT INTO controller_node (name, generation, enrolled_at) VALUES (?, 1, ?)
		ON CONFLICT (name) DO UPDATE SET generation = controller_node.generation + 1,
			enrolled_at = excluded.enrolled_at, revoked_at = 0, seen_at = 0, lost_at = 0, report = ''
		RETURNING generation`, node, stamp(now)).Scan(&generation)
	return generation, err
}

// Revoke makes the node's certificates void until it is enrolled again. It returns
// ErrNoNode.
func (r *Registry) Revoke(ctx context.Context, node string, now time.Time, by Entry) error {
	err := r.change(ctx, func(t tx) error {
		n, err := t.exec("UPDATE controller_node SET generation = generation + 1, revoked_at = ? WHERE name = ?", stamp(now), node)
		if err != nil {
			return err
		}
		if n == 0 {
			return ErrNoNode
		}
		return t.ok(by)
	})
	return wrap("revoke node "+node, err)
}

// Hello is a node that is heard of: for the first time here, or from another run of
// its process.
type Hello struct {
	Node string
	Boot string // "" where it is not known
	At   time.Time
}

// Arrival is what was new about a Hello.
type Arrival struct {
	Back     bool   // it was lost, or never heard of
	NewBoot  bool   // its process is another one than the last
	Previous string // the last one, "" where there was none
}

// Arrived says which nodes are heard of, all in one transaction. Of several controllers
// that a node calls, one is told that it came back, and that its process is a new
// one. A node that was never enrolled is neither.
func (r *Registry) Arrived(ctx context.Context, hellos []Hello) ([]Arrival, error) {
	if len(hellos) == 0 {
		return nil, nil
	}
	// In one order everywhere, so that two controllers cannot wait for each other.
	order := make([]int, len(hellos))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return strings.Compare(hellos[a].Node, hellos[b].Node) })
	out := make([]Arrival, len(hellos))
	err := r.transact(ctx, func(t tx) error {
		for _, i := range order {
			var err error
			if out[i], err = t.arrived(hellos[i]); err != nil {
				return err
			}
		}
		return nil
	}, func() {})
	if err != nil {
		return nil, fmt.Errorf("note that nodes are back: %w", err)
	}
	return out, nil
}

func (t tx) arrived(h Hello) (a Arrival, err error) {
	n, err := t.exec("UPDATE controller_node SET lost_at = 0, seen_at = ? WHERE name = ? AND (lost_at <> 0 OR seen_at = 0)",
		stamp(h.At), h.Node)
	a.Back = n > 0
	if err != nil || h.Boot == "" {
		return a, err
	}
	boot := text(h.Boot, bootText)
	err = t.row("SELECT boot FROM controller_node WHERE name = ?", h.Node).Scan(&a.Previous)
	if errors.Is(err, sql.ErrNoRows) || err == nil && a.Previous == boot {
		return a, nil
	} else if err != nil {
		return a, err
	}
	n, err = t.exec("UPDATE controller_node SET boot = ? WHERE name = ? AND boot = ?", boot, h.Node, a.Previous)
	a.NewBoot = n > 0
	return a, err
}

// bootText is the greatest length of a boot identifier, in bytes.
const bootText = 64

// Silent marks the nodes that nobody heard of since the time as lost, and returns
// their names. It tells each to one of the controllers that ask.
func (r *Registry) Silent(ctx context.Context, since, now time.Time) ([]string, error) {
	rows, err := r.db.QueryContext(ctx, r.dialect(`UPDATE controller_node SET lost_at = ?
		WHERE lost_at = 0 AND revoked_at = 0 AND seen_at <> 0 AND seen_at < ? RETURNING name`), stamp(now), stamp(since))
	if err != nil {
		return nil, fmt.Errorf("look for silent nodes: %w", err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, fmt.Errorf("look for silent nodes: %w", err)
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return out, rows.Err()
}

// Sighting is what is known of a node by hearing of it.
type Sighting struct {
	Node   string
	Seen   time.Time
	Report *Report // nil where there is no newer one
	// Reach and Addresses as in Node; nil where they are as before.
	Reach, Addresses []string
}

// Sighted keeps many sightings in one transaction. Other controllers are woken
// only where addresses changed, which snapshots may hold.
func (r *Registry) Sighted(ctx context.Context, sightings []Sighting) error {
	if len(sightings) == 0 {
		return nil
	}
	// In one order everywhere, so that two controllers cannot wait for each other.
	slices.SortFunc(sightings, func(a, b Sighting) int { return strings.Compare(a.Node, b.Node) })
	write := func(ctx context.Context, f func(tx) error) error { return r.transact(ctx, f, func() {}) }
	if slices.ContainsFunc(sightings, func(s Sighting) bool { return s.Reach != nil || s.Addresses != nil }) {
		write = r.change
	}
	return wrap("keep what nodes report", write(ctx, func(t tx) error {
		for i := range sightings {
			if err := t.sighted(&sightings[i]); err != nil {
				return err
			}
		}
		return nil
	}))
}

func (t tx) sighted(s *Sighting) error {
	// One that was found silent by mistake, while the database did not answer, is not.
	set := "seen_at = CASE WHEN seen_at < ? THEN ? ELSE seen_at END, lost_at = CASE WHEN lost_at < ? THEN 0 ELSE lost_at END"
	args := []any{stamp(s.Seen), stamp(s.Seen), stamp(s.Seen)}
	add := func(column string, value string) {
		set += ", " + column + " = ?"
		args = append(args, value)
	}
	if s.Report != nil {
		report, err := json.Marshal(s.Report)
		if err != nil {
			return err
		}
		add("report", string(report))
	}
	if s.Reach != nil {
		add("reach", text(strings.Join(s.Reach, " "), 4096))
	}
	if s.Addresses != nil {
		add("addresses", text(strings.Join(s.Addresses, " "), 4096))
	}
	_, err := t.exec("UPDATE controller_node SET "+set+" WHERE name = ?", append(args, s.Node)...)
	return err
}
