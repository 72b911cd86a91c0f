package capture

import (
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"decoynet/internal/kernel/wire"
)

// lookEvery is how often an interface is looked for.
const lookEvery = time.Second

// listenerConfig says what a listener listens to.
type listenerConfig struct {
	ns          wire.Namespace
	name        string // of the interface
	take        wire.Selection
	promiscuous bool
	ringBytes   int
	log         *slog.Logger
	handle      func(*wire.Captured)
	tick        func(now time.Time) // called every second
}

// listener captures at an interface. It waits for the interface where it is not
// there, and for the next one of its name where it goes.
type listener struct {
	config listenerConfig
	quit   chan struct{}
	done   chan struct{}

	mu      sync.Mutex    // guards the rest
	tap     *wire.Capture // nil while there is no interface
	link    int           // the interface's index
	problem string
	dropped uint64 // of taps before this one
}

func listen(c listenerConfig) *listener {
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	l := &listener{config: c, quit: make(chan struct{}), done: make(chan struct{})}
	l.look()
	go l.run()
	return l
}

func (l *listener) run() {
	defer close(l.done)
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-l.quit:
			return
		case now := <-ticker.C:
			l.look()
			l.config.tick(now)
		}
	}
}

// look opens the interface where it has come, and lets go of one that has gone.
// It is called by one goroutine at a time, the only one that sets tap and link.
func (l *listener) look() {
	var link *net.Interface
	err := l.config.ns.Do(func() (err error) {
		link, err = net.InterfaceByName(l.config.name)
		return err
	})
	switch {
	case err != nil:
		l.leave()
		l.trouble(fmt.Errorf("interface %s is not there: %w", l.config.name, err))
	case l.tap == nil || l.link != link.Index:
		l.leave()
		l.trouble(l.open(link))
	}
}

func (l *listener) open(link *net.Interface) error {
	loopback := link.Flags&net.FlagLoopback != 0
	tap, err := wire.OpenCapture(wire.CaptureConfig{
		NS: l.config.ns, Link: link.Index, Take: l.config.take,
		Promiscuous: l.config.promiscuous && !loopback, Incoming: loopback,
		RingBytes: l.config.ringBytes, Handle: l.config.handle,
	})
	if err != nil {
		return fmt.Errorf("capture at interface %s: %w", l.config.name, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tap, l.link = tap, link.Index
	return nil
}

// leave closes the packet socket, if there is one.
func (l *listener) leave() {
	if l.tap == nil {
		return
	}
	if err := l.tap.Close(); err != nil {
		l.config.log.Warn("capture", slog.String("interface", l.config.name), slog.Any("error", err))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, dropped := l.tap.Stats()
	l.dropped += dropped
	l.tap = nil
}

// trouble notes what is wrong, and tells of it once.
func (l *listener) trouble(err error) {
	problem := ""
	if err != nil {
		problem = err.Error()
	}
	l.mu.Lock()
	told := l.problem
	l.problem = problem
	l.mu.Unlock()
	switch {
	case problem == told:
	case problem == "":
		l.config.log.Info("capture goes on", slog.String("interface", l.config.name))
	default:
		l.config.log.Warn("capture", slog.String("interface", l.config.name), slog.Any("error", err))
	}
}

// stats tells whether it listens, why not, and how many packets the kernel had no
// room for.
func (l *listener) stats() (listening bool, problem string, dropped uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	dropped = l.dropped
	if l.tap != nil {
		_, lost := l.tap.Stats()
		dropped += lost
	}
	return l.tap != nil, l.problem, dropped
}

// close ends the listening.
func (l *listener) close() {
	close(l.quit)
	<-l.done
	l.leave()
}
