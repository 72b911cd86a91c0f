package suricata

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"decoynet/deception"
)

// Config is what a Suricata is made with. Zero values take the defaults.
type Config struct {
	Dir  string // decoynet's inspect directory
	Node string // of this machine, for events
	// Binary is the program; empty: it is looked for.
	Binary string
	// CPUs are the processors that it is kept to; empty: any.
	CPUs []int
	Log  *slog.Logger
	// Event is told what a person should know; it must not block.
	Event func(*deception.Event)
	// Read tells whether a rotated file of events was read to its end and may go
	// (default: never; then only keptFiles of them stay).
	Read func(path string) bool

	Interval    time.Duration // between looks at it (default 2 s)
	HungAfter   time.Duration // it takes nothing of a full FIFO for that long: it is replaced (default 15 s)
	RotateBytes int64         // size at which the file of events is changed for a new one (default 256 MiB)
	BackoffMost time.Duration // between two starts (default 1 min)
	// Few is the largest set that is read before the first flow (default 2000).
	Few int
	// Memory is how much is free for a set of rules (default: asks the kernel).
	Memory func() uint64
}

// Suricata runs one Suricata. Make one with New, Close it.
type Suricata struct {
	cfg     Config
	home    *home
	ctx     context.Context
	stop    context.CancelFunc
	done    chan struct{}
	changed chan struct{} // something else is wanted; holds one

	ending atomic.Bool // see Ending

	rules chan struct{} // full while a set of rules is tested or exchanged
	// reopen: a file of events was moved away, and Suricata was not told yet. It is
	// attend's.
	reopen bool

	mu      sync.Mutex // guards the rest
	want    deception.Inspect
	applied bool
	process *process // nil: none runs
	binary  Binary
	status  Status
	down    bool // an event told so
	// exchanging is the sum of the set that the process reads while it works; it died
	// so often in the middle of it that killer names.
	exchanging, killer string
	deaths             int
}

// New starts nothing yet: Apply says what is wanted. It ends a Suricata that an
// earlier decoynet left on the same directory.
func New(cfg Config) (*Suricata, error) {
	cfg.setDefaults()
	h, err := openHome(cfg.Dir)
	if err != nil {
		return nil, err
	}
	h.cpus = cfg.CPUs
	if n, err := h.sweep(); err != nil {
		h.close()
		return nil, err
	} else if n > 0 {
		cfg.Log.Warn("ended a suricata that an earlier decoynet left", "count", n)
	}
	s := &Suricata{cfg: cfg, home: h, done: make(chan struct{}), changed: make(chan struct{}, 1), rules: make(chan struct{}, 1)}
	s.status = Status{State: Off, Since: time.Now()}
	s.ctx, s.stop = context.WithCancel(context.Background())
	go s.run()
	return s, nil
}

func (c *Config) setDefaults() {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Event == nil {
		c.Event = func(*deception.Event) {}
	}
	if c.Interval <= 0 {
		c.Interval = 2 * time.Second
	}
	if c.HungAfter <= 0 {
		c.HungAfter = 15 * time.Second
	}
	if c.RotateBytes <= 0 {
		c.RotateBytes = 256 << 20
	}
	if c.BackoffMost <= 0 {
		c.BackoffMost = time.Minute
	}
	if c.Few <= 0 {
		c.Few = fewRules
	}
	if c.Memory == nil {
		c.Memory = availableMemory
	}
}

// EVE is the file of events, FIFO the one that the feed is written to.
func (s *Suricata) EVE() string { return s.home.child(eveName) }

// FIFO is where the feed's frames are expected, as a pcap stream. It is made anew at
// every start: a writer that finds it broken opens it by its name again.
func (s *Suricata) FIFO() string { return s.home.child(fifoName) }

// Apply has Suricata run, or not, as want says. It returns at once; Status tells how
// far it is. What is the same changes nothing.
func (s *Suricata) Apply(_ context.Context, want *deception.Inspect) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var next deception.Inspect
	if want != nil {
		next = *want
	}
	if s.applied && same(&s.want, &next) {
		return nil
	}
	s.want, s.applied = next, true
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return nil
}

// same tells whether one Suricata serves both.
func same(a, b *deception.Inspect) bool {
	if a.Suricata != b.Suricata || a.Depth != b.Depth || a.SystemRules != b.SystemRules || len(a.Rules) != len(b.Rules) {
		return false
	}
	for i := range a.Rules {
		if a.Rules[i] != b.Rules[i] {
			return false
		}
	}
	return true
}

// Status returns what is true now.
func (s *Suricata) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.status
}

// Ending says that the feed is about to be closed for good: Suricata then ends by
// itself when it has looked at everything, and is not started again. One that has not
// opened the feed is ended at once: it could not be told to end by it any more.
func (s *Suricata) Ending() {
	s.ending.Store(true)
	s.mu.Lock()
	p := s.process
	s.mu.Unlock()
	if p != nil && !p.began(s.FIFO()) {
		p.kill()
	}
}

// endsItself is how long Suricata may take for what was left in the feed.
const endsItself = 5 * time.Second

// Close ends Suricata in good order, and at the latest when ctx is over.
func (s *Suricata) Close(ctx context.Context) error {
	if s.ending.Load() && s.Status().PID != 0 {
		select {
		case <-s.done:
		case <-time.After(endsItself):
		case <-ctx.Done():
		}
	}
	s.stop()
	var err error
	select {
	case <-s.done:
	case <-ctx.Done():
		s.mu.Lock()
		if s.process != nil {
			s.process.kill()
		}
		s.mu.Unlock()
		<-s.done
		err = fmt.Errorf("end suricata: %w; it was killed", ctx.Err())
	}
	s.home.close()
	return err
}

func (s *Suricata) wanted() (deception.Inspect, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.want, s.want.Suricata == deception.SuricataManaged
}

// run keeps Suricata running until Close.
func (s *Suricata) run() {
	defer close(s.done)
	wait := time.Duration(0)
	for s.ctx.Err() == nil {
		select {
		case <-s.changed: // what is read below is newer
		default:
		}
		want, on := s.wanted()
		if !on {
			s.set(Off, nil)
			select {
			case <-s.changed:
			case <-s.ctx.Done():
			}
			continue
		}
		begin := time.Now()
		err := s.once(&want)
		if s.ending.Load() {
			return
		}
		if err == nil { // it was asked to end
			wait = 0
			continue
		}
		if s.ctx.Err() != nil {
			return
		}
		s.failed(err)
		if time.Since(begin) > s.cfg.BackoffMost {
			wait = 0
		}
		wait = min(max(2*wait, backoffLeast), s.cfg.BackoffMost)
		select {
		case <-time.After(wait):
		case <-s.changed:
			wait = 0
		case <-s.ctx.Done():
		}
	}
}

const backoffLeast = 250 * time.Millisecond

// once starts Suricata and looks after it until it ends. nil: something else is
// wanted of it, or a new program is there.
func (s *Suricata) once(want *deception.Inspect) error {
	s.set(Starting, nil)
	b, err := Find(s.ctx, s.cfg.Binary)
	if err != nil {
		return err
	}
	whole, err := s.prepare(&b, want)
	if err != nil {
		return err
	}
	if err := s.home.freshFIFO(s.FIFO()); err != nil {
		return err
	}
	// Its own pid file and socket of a run before would be in the way.
	_ = os.Remove(s.home.child(socketName))
	p, err := s.home.start(&b, "-c", root+"/"+liveConfig, "-r", root+"/"+childDir+"/"+fifoName,
		"--runmode", "single", "-k", "none", "-l", root+"/"+childDir, "--data-dir", root+"/"+childDir+"/"+dataDir)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.process, s.binary = p, b
	s.status.PID, s.status.Path, s.status.Version = p.pid, b.Path, b.Version
	s.status.Starts++
	s.status.Counters = Counters{}
	s.mu.Unlock()
	s.cfg.Log.Info("suricata started", "pid", p.pid, "version", b.Version, "rules", s.Status().Rules.Rules)
	ctx, stop := context.WithCancel(s.ctx)
	var settled sync.WaitGroup
	if !whole {
		settled.Go(func() { s.settle(ctx, &b, want) })
	}
	s.reopen = false
	err = s.attend(p, &b)
	if err != nil && !s.ending.Load() {
		s.died()
	}
	stop()
	settled.Wait()
	s.cfg.Log.Debug("suricata ended", "output", p.output.String())
	s.mu.Lock()
	s.process, s.exchanging = nil, ""
	s.status.PID, s.status.Resident = 0, 0
	s.mu.Unlock()
	return err
}

// ended describes how a process that nobody stopped came to its end.
func ended(p *process) error {
	text := p.output.String()
	var errs []error
	for _, c := range complaints(text) {
		if c.error {
			errs = append(errs, errors.New(c.message))
		}
	}
	if len(errs) > 3 {
		errs = errs[len(errs)-3:]
	}
	switch {
	case len(errs) > 0:
		return fmt.Errorf("suricata ended: %w", errors.Join(errs...))
	case p.err != nil:
		return fmt.Errorf("suricata ended: %w", p.err)
	}
	return errors.New("suricata ended: its feed was closed")
}

func (s *Suricata) set(state State, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.status.State != state {
		s.status.State, s.status.Since = state, time.Now()
	}
	if err != nil {
		s.status.Error = err.Error()
	} else if state != Starting {
		s.status.Error = ""
	}
}

// failed takes note of an end that nobody asked for, and tells of the first of them.
func (s *Suricata) failed(err error) {
	s.set(Failed, err)
	s.mu.Lock()
	s.status.Failures++
	s.status.LastEnd = err.Error()
	first := !s.down
	s.down = true
	s.mu.Unlock()
	s.cfg.Log.Warn("suricata does not run", "error", err)
	if first {
		s.tell(deception.EventInspectFailed, "flows are not analysed: "+err.Error())
	}
}

// works takes note that it runs.
func (s *Suricata) works() {
	s.set(Running, nil)
	s.mu.Lock()
	back := s.down
	s.down = false
	s.mu.Unlock()
	if back {
		s.tell(deception.EventInspectRestored, "suricata runs again, and flows are analysed")
	}
}

func (s *Suricata) tell(kind deception.EventKind, message string) {
	now := time.Now()
	s.cfg.Event(&deception.Event{ID: deception.NewSessionID(now), Time: now, Kind: kind, Node: s.cfg.Node, Message: message})
}
