package capture

import (
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"decoynet/deception"
	"decoynet/internal/kernel/wire"
	"decoynet/internal/strip"
)

// Config says what a Capture is made with.
type Config struct {
	NS        wire.Namespace // where the interface is
	Node      string         // this machine
	Interface string
	// Ports are those that flows with a header go to; empty: all of TCP.
	Ports    []deception.PortRange
	Feed     Feed
	Recorder Recorder
	// Service names the service at an address, for flows whose header does not; ""
	// where there is none. nil: none has a name.
	Service func(t deception.Transport, at netip.AddrPort) string
	// Fed tells whether the packets of a session of decoynet's own gateways are
	// fed by other means; nil: none is.
	Fed       func(k deception.SessionKey) bool
	Limits    strip.Limits
	RingBytes int // 0: wire.DefaultCaptureRing
	Log       *slog.Logger
}

// Stats is what is true about a Capture.
type Stats struct {
	Interface string `json:"interface"`
	Listening bool   `json:"listening"`
	Problem   string `json:"problem,omitempty"` // why it does not listen
	Dropped   uint64 `json:"dropped"`           // packets that the kernel had no room for
	Foreign   uint64 `json:"flows_foreign"`     // of the flows, those of other gateways than decoynet's
	strip.Stats
}

// Capture feeds the flows of one interface. It waits for the interface where it is
// not there, and for the next one of its name where it goes.
type Capture struct {
	listener *listener

	mu       sync.Mutex // guards the rest
	stripper *strip.Stripper
	sessions sessions
}

// New begins to listen. Close ends it.
func New(c Config) *Capture {
	t := &Capture{sessions: sessions{node: c.Node, feed: c.Feed, recorder: c.Recorder, service: c.Service, fed: c.Fed}}
	t.stripper = strip.New(&t.sessions, c.Limits)
	t.listener = listen(listenerConfig{
		ns: c.NS, name: c.Interface, take: wire.Selection{Ports: c.Ports}, promiscuous: true, ringBytes: c.RingBytes, log: c.Log,
		handle: t.take, tick: t.expire,
	})
	return t
}

func (t *Capture) take(p *wire.Captured) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stripper.Take(packetOf(p))
}

func packetOf(p *wire.Captured) *strip.Packet {
	return &strip.Packet{At: p.At, Data: p.IP, Unsummed: p.Unsummed, Size: p.Segment}
}

func (t *Capture) expire(now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stripper.Expire(now.UnixNano())
}

// Stats tells what has been counted.
func (t *Capture) Stats() Stats {
	st := Stats{Interface: t.listener.config.name}
	st.Listening, st.Problem, st.Dropped = t.listener.stats()
	t.mu.Lock()
	defer t.mu.Unlock()
	st.Foreign, st.Stats = t.sessions.foreign, t.stripper.Stats()
	return st
}

// Close ends the listening. Flows of other gateways that still run end on record.
func (t *Capture) Close() {
	t.listener.close()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stripper.Close(time.Now().UnixNano())
}
