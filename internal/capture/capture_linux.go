package capture

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"decoynet/deception"
	"decoynet/internal/kernel/wire"
	"decoynet/internal/strip"
)

// lookEvery is how often the interface is looked for, and flows are ended that
// have not moved.
const lookEvery = time.Second

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
	config Config
	quit   chan struct{}
	done   chan struct{}

	mu       sync.Mutex // guards the rest
	stripper *strip.Stripper
	sessions sessions
	tap      *wire.Capture // nil while there is no interface
	link     int           // the interface's index
	problem  string
	dropped  uint64 // of taps before this one
}

// New begins to listen. Close ends it.
func New(c Config) *Capture {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	t := &Capture{config: c, quit: make(chan struct{}), done: make(chan struct{})}
	t.sessions = sessions{node: c.Node, feed: c.Feed, recorder: c.Recorder, service: c.Service, fed: c.Fed}
	t.stripper = strip.New(&t.sessions, c.Limits)
	t.look()
	go t.run()
	return t
}

func (t *Capture) run() {
	defer close(t.done)
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-t.quit:
			return
		case now := <-ticker.C:
			t.look()
			t.mu.Lock()
			t.stripper.Expire(now.UnixNano())
			t.mu.Unlock()
		}
	}
}

// look opens the interface where it has come, and lets go of one that has gone.
// Only New and run call it.
func (t *Capture) look() {
	var link *net.Interface
	err := t.config.NS.Do(func() (err error) {
		link, err = net.InterfaceByName(t.config.Interface)
		return err
	})
	switch {
	case err != nil:
		t.leave()
		t.trouble(fmt.Errorf("interface %s is not there: %w", t.config.Interface, err))
	case t.tap == nil || t.link != link.Index:
		t.leave()
		t.trouble(t.open(link))
	}
}

func (t *Capture) open(link *net.Interface) error {
	tap, err := wire.OpenCapture(wire.CaptureConfig{
		NS: t.config.NS, Link: link.Index, Take: wire.Selection{Ports: t.config.Ports},
		Promiscuous: link.Flags&net.FlagLoopback == 0, Incoming: link.Flags&net.FlagLoopback != 0,
		RingBytes: t.config.RingBytes, Handle: t.take,
	})
	if err != nil {
		return fmt.Errorf("capture at interface %s: %w", t.config.Interface, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.tap, t.link = tap, link.Index
	return nil
}

// leave closes the packet socket, if there is one. The handler of the socket takes
// mu, so it is not held meanwhile.
func (t *Capture) leave() {
	if t.tap == nil {
		return
	}
	if err := t.tap.Close(); err != nil {
		t.config.Log.Warn("capture", slog.String("interface", t.config.Interface), slog.Any("error", err))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	_, dropped := t.tap.Stats()
	t.dropped += dropped
	t.tap = nil
}

// trouble notes what is wrong, and tells of it once.
func (t *Capture) trouble(err error) {
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	t.mu.Lock()
	told := t.problem
	t.problem = problem
	t.mu.Unlock()
	switch {
	case problem == told:
	case problem == "":
		t.config.Log.Info("capture goes on", slog.String("interface", t.config.Interface))
	default:
		t.config.Log.Warn("capture", slog.String("interface", t.config.Interface), slog.Any("error", err))
	}
}

func (t *Capture) take(p *wire.Captured) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stripper.Take(&strip.Packet{At: p.At, Data: p.IP, Unsummed: p.Unsummed, Size: p.Segment})
}

// Stats tells what has been counted.
func (t *Capture) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	st := Stats{
		Interface: t.config.Interface, Listening: t.tap != nil, Problem: t.problem, Dropped: t.dropped,
		Foreign: t.sessions.foreign, Stats: t.stripper.Stats(),
	}
	if t.tap != nil {
		_, dropped := t.tap.Stats()
		st.Dropped += dropped
	}
	return st
}

// Close ends the listening. Flows of other gateways that still run end on record.
func (t *Capture) Close() error {
	close(t.quit)
	<-t.done
	var err error
	if t.tap != nil {
		err = t.tap.Close()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stripper.Close(time.Now().UnixNano())
	return err
}
