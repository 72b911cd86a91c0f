package gateway

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/health"
	"decoynet/internal/proxyheader"
)

// Links are what an ingress gateway knows of egresses on other machines: one
// connection to each, on which an egress of ours says which services are up.
// Another program there (go-mmproxy, HAProxy) says nothing of the kind: then the
// services behind it count as up while it accepts connections.
//
// Make one with NewLinks, Close it. Its methods may be called on a nil one,
// which knows nothing.
type Links struct {
	cfg  LinksConfig
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu    sync.Mutex // guards links
	links map[netip.AddrPort]*link
}

// LinksConfig is what links are made with.
type LinksConfig struct {
	Node string // name of this machine, for the egress's log
	// Changed is called after a port went up or down, from any goroutine. It must
	// not block. May be nil.
	Changed func()
	Log     *slog.Logger
}

// LinkStatus is what is true of one egress on another machine.
type LinkStatus struct {
	Egress    string    `json:"egress"`
	Zones     []string  `json:"zones"`
	Connected bool      `json:"connected"`
	Foreign   bool      `json:"foreign"` // a program that cannot say what is up
	Since     time.Time `json:"since"`   // of the last change of Connected
	Err       string    `json:"error,omitempty"`
}

const (
	linkDial = 2 * time.Second // until an egress must have accepted
	// linkPause is the wait before a lost egress is tried again, and between the
	// connections to a foreign one.
	linkPause = time.Second
	// foreignTurns is after how many of those a foreign one is asked again
	// whether it is ours. Some pass such a question on to their service.
	foreignTurns = 300
	// firstAnswer bounds how long Watch waits for an egress it did not know.
	firstAnswer = 2 * time.Second
)

// NewLinks returns links to no egress yet.
func NewLinks(cfg LinksConfig) *Links {
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &Links{cfg: cfg, links: map[netip.AddrPort]*link{}}
	l.ctx, l.stop = context.WithCancel(context.Background())
	return l
}

// farEgress is an egress on another machine as the document has it.
type farEgress struct {
	zones []string
	ports []health.Port
}

// farEgresses returns those that the state's services are reached through.
func farEgresses(state *deception.State) map[netip.AddrPort]*farEgress {
	out := map[netip.AddrPort]*farEgress{}
	for i := range state.Zones {
		z := &state.Zones[i]
		if z.IsLocal() || z.Egress == nil {
			continue
		}
		e := out[z.Egress.Listen]
		if e == nil {
			e = &farEgress{}
			out[z.Egress.Listen] = e
		}
		e.zones = append(e.zones, z.Name)
		for j := range state.Services {
			if state.Services[j].Zone == z.Name {
				e.ports = append(e.ports, portsOfService(&state.Services[j])...)
			}
		}
	}
	return out
}

// Watch makes the egresses of state the whole set, and waits a moment for the
// first word of new ones, or until ctx ends.
func (l *Links) Watch(ctx context.Context, state *deception.State) {
	if l == nil {
		return
	}
	want := farEgresses(state)
	var fresh []*link
	l.mu.Lock()
	for at, old := range l.links {
		if want[at] == nil {
			old.stop()
			delete(l.links, at)
		}
	}
	for at, far := range want {
		if known := l.links[at]; known != nil {
			known.set(far)
			continue
		}
		fresh = append(fresh, l.start(at, far))
	}
	l.mu.Unlock()
	limit := time.NewTimer(firstAnswer)
	defer limit.Stop()
	for _, one := range fresh {
		select {
		case <-one.first:
		case <-limit.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// start must be called with mu held.
func (l *Links) start(at netip.AddrPort, far *farEgress) *link {
	ctx, stop := context.WithCancel(l.ctx)
	one := &link{egress: at, links: l, stop: stop, hurry: make(chan struct{}, 1), first: make(chan struct{})}
	one.since = time.Now()
	one.set(far)
	l.links[at] = one
	l.wg.Go(func() { one.run(ctx) })
	return one
}

// Up tells whether a port behind an egress on another machine is known to be
// open. It is false for all others.
func (l *Links) Up(p health.Port) bool {
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range l.links {
		if one.up(p) {
			return true
		}
	}
	return false
}

// States returns what is known about every port behind such an egress.
func (l *Links) States() map[health.Port]health.State {
	out := map[health.Port]health.State{}
	if l == nil {
		return out
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range l.links {
		one.mu.Lock()
		maps.Copy(out, one.states)
		one.mu.Unlock()
	}
	return out
}

// Status tells what is true of every such egress, sorted by address.
func (l *Links) Status() []LinkStatus {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []LinkStatus
	for _, one := range l.links {
		out = append(out, one.status())
	}
	slices.SortFunc(out, func(a, b LinkStatus) int { return strings.Compare(a.Egress, b.Egress) })
	return out
}

// Close ends all links and waits for them.
func (l *Links) Close() {
	if l == nil {
		return
	}
	l.stop()
	l.wg.Wait()
}

func (l *Links) link(egress netip.AddrPort) *link {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.links[egress]
}

// lost tells, without waiting, whether an egress of ours is gone.
func (l *Links) lost(egress netip.AddrPort) bool {
	one := l.link(egress)
	return one != nil && one.lost()
}

// suspect has an egress looked at now: it took no flow, or died with one.
func (l *Links) suspect(egress netip.AddrPort) {
	if one := l.link(egress); one != nil {
		select {
		case one.hurry <- struct{}{}:
		default:
		}
	}
}

// link is one egress on another machine and the goroutine that looks at it.
type link struct {
	egress netip.AddrPort
	links  *Links
	stop   context.CancelFunc
	hurry  chan struct{}
	first  chan struct{} // closed when something is known
	conn   atomic.Pointer[net.TCPConn]

	mu        sync.Mutex // guards the rest
	far       *farEgress
	states    map[health.Port]health.State // of far's ports
	report    map[health.Port]health.State // what an egress of ours said last
	connected bool
	foreign   bool
	since     time.Time
	err       string
}

// errForeign says that an egress accepts connections and cannot say more.
var errForeign = errors.New("it is another program than decoynet")

func (l *link) run(ctx context.Context) {
	first := l.first
	known := func() {
		if first != nil {
			close(first)
			first = nil
		}
	}
	for turn := 0; ctx.Err() == nil; {
		var err error
		if turn > 0 {
			err = l.knock(ctx)
			turn--
		} else {
			err = l.listen(ctx, known)
			if errors.Is(err, errForeign) {
				turn, err = foreignTurns, nil
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			turn = 0
		}
		l.note(err == nil, nil, err)
		known()
		l.pause(ctx)
	}
}

func (l *link) pause(ctx context.Context) {
	wait := time.NewTimer(linkPause)
	defer wait.Stop()
	select {
	case <-ctx.Done():
	case <-wait.C:
	case <-l.hurry:
		// At most ten times a second, however many flows complain.
		select {
		case <-ctx.Done():
		case <-time.After(linkPause / 10):
		}
	}
}

func (l *link) dial(ctx context.Context) (*net.TCPConn, error) {
	dialer := net.Dialer{Timeout: linkDial}
	dialer.SetMultipathTCP(false)
	conn, err := dialer.DialContext(ctx, "tcp", l.egress.String())
	if err != nil {
		return nil, fmt.Errorf("reach the egress: %w; is decoynet up on its machine?", err)
	}
	return conn.(*net.TCPConn), nil
}

// knock tells whether a foreign egress accepts connections.
func (l *link) knock(ctx context.Context) error {
	conn, err := l.dial(ctx)
	if err != nil {
		return err
	}
	return conn.Close()
}

// listen asks an egress of ours and takes what it says until it is lost.
func (l *link) listen(ctx context.Context, known func()) error {
	conn, err := l.dial(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	h := proxyheader.Header{Local: true, Node: l.links.cfg.Node}
	ask, err := h.Append(nil)
	if err != nil {
		return fmt.Errorf("write header: %w", err)
	}
	if _, err := conn.Write(ask); err != nil {
		return l.broken(err, false)
	}
	defer l.conn.Store(nil)
	lines := bufio.NewScanner(conn)
	lines.Buffer(make([]byte, 0, 4096), healthSize)
	for heard := false; ; heard = true {
		_ = conn.SetReadDeadline(time.Now().Add(healthLost))
		if !lines.Scan() {
			return l.broken(lines.Err(), heard)
		}
		line, err := readHealth(lines.Bytes(), heard)
		if err != nil {
			return err
		}
		if line.Ports != nil {
			l.conn.Store(conn)
			l.note(true, line.read(), nil)
			known()
		}
	}
}

// readHealth reads one line. The first has to be a report: some servers speak
// first.
func readHealth(text []byte, heard bool) (healthLine, error) {
	var line healthLine
	err := json.Unmarshal(bytes.TrimSpace(text), &line)
	switch {
	case !heard && (err != nil || line.Ports == nil):
		return line, errForeign
	case err != nil:
		return line, fmt.Errorf("read what the egress says of its services: %w", err)
	}
	return line, nil
}

// broken explains the end of a connection on which something was heard or not.
func (l *link) broken(err error, heard bool) error {
	switch {
	case errors.Is(err, unix.ECONNRESET) && !heard, errors.Is(err, unix.EPIPE) && !heard:
		return fmt.Errorf("the egress resets the connection: this machine's address is not in its zones[].egress.from")
	case heard && (err == nil || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET)):
		return errors.New("the egress ended the connection: it was stopped, or its zones are gone from its document")
	case heard && errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the egress has said nothing for %s", healthLost)
	case heard:
		return fmt.Errorf("the connection to the egress broke: %w", err)
	}
	return errForeign // closed in order, silent, or what it says is no line
}

// set takes what the document says of the egress now.
func (l *link) set(far *farEgress) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.far = far
	l.fillLocked()
}

// note takes what is true of the egress now and tells of changes. A connected
// egress without a report is a foreign one.
func (l *link) note(connected bool, report map[health.Port]health.State, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	l.mu.Lock()
	if connected != l.connected {
		l.since = time.Now()
	}
	foreign := connected && report == nil
	said := l.err != text || l.foreign != foreign || l.connected != connected
	l.connected, l.foreign, l.report, l.err = connected, foreign, report, text
	changed := l.fillLocked()
	l.mu.Unlock()
	if said {
		l.links.cfg.Log.Info("egress on another machine", "egress", l.egress, "connected", connected, "foreign", foreign, "error", text)
	}
	if changed {
		l.links.cfg.Changed()
	}
}

// fillLocked brings the ports' states up to date and tells whether one went up
// or down.
func (l *link) fillLocked() bool {
	states := make(map[health.Port]health.State, len(l.far.ports))
	changed := false
	for _, p := range l.far.ports {
		old, known := l.states[p]
		now, told := l.report[p]
		switch {
		case told:
		case l.foreign:
			now.Up = true
		case l.connected:
			now.Err = "the egress does not know it; its document may be an older one"
		default:
			now.Err = "egress " + l.egress.String() + ": " + l.err
		}
		if !told {
			now.Since = old.Since
			if !known || now.Up != old.Up {
				now.Since = time.Now()
			}
		}
		changed = changed || now.Up != old.Up
		states[p] = now
	}
	l.states = states
	return changed
}

func (l *link) up(p health.Port) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.states[p].Up
}

func (l *link) status() LinkStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	return LinkStatus{
		Egress: l.egress.String(), Zones: l.far.zones, Connected: l.connected, Foreign: l.foreign, Since: l.since, Err: l.err,
	}
}

func (l *link) lost() bool {
	l.mu.Lock()
	foreign := l.foreign
	l.mu.Unlock()
	if foreign {
		return false // one cannot tell
	}
	conn := l.conn.Load()
	return conn == nil || hungUp(conn)
}
