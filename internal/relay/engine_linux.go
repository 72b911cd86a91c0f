package relay

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// Engine runs the loops. Its methods may be called from any goroutine.
type Engine struct {
	handler Handler
	cfg     Config
	loops   []*loop
	wg      sync.WaitGroup

	active, activeUDP                                        atomic.Int64
	accepted, refused, overload, retries, spliced, truncated atomic.Uint64
	barred, badHeader, taken                                 atomic.Uint64
}

// reservedFiles is how many descriptors are left for everything that is not a
// flow: listeners, epoll, database, pipes.
const reservedFiles = 1024

// New makes an engine and starts its loops. Close it.
func New(handler Handler, cfg Config) (*Engine, error) {
	if cfg.Loops <= 0 {
		cfg.Loops = runtime.GOMAXPROCS(0)
	}
	if cfg.MaxFlows <= 0 {
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return nil, fmt.Errorf("read descriptor limit: %w", err)
		}
		cfg.MaxFlows = max(16, (int(min(limit.Cur, 1<<30))-reservedFiles)/2)
	}
	if cfg.MaxUDPFlows <= 0 {
		cfg.MaxUDPFlows = max(16, cfg.MaxFlows/4)
	}
	if cfg.ConnectTimeout <= 0 {
		cfg.ConnectTimeout = 5 * time.Second
	}
	if cfg.SpliceAfter == 0 {
		cfg.SpliceAfter = 256 << 10
	}
	e := &Engine{handler: handler, cfg: cfg}
	for number := range cfg.Loops {
		l, err := newLoop(e, number)
		if err != nil {
			for _, l := range e.loops {
				l.free()
			}
			return nil, err
		}
		e.loops = append(e.loops, l)
	}
	for _, l := range e.loops {
		e.wg.Add(1)
		go func() {
			defer e.wg.Done()
			l.run()
		}()
	}
	return e, nil
}

// Loops returns how many loops there are, and so how many sockets of a kind a
// listener should bring.
func (e *Engine) Loops() int { return len(e.loops) }

// Add registers listening TCP sockets and UDP sockets (with
// IP_RECVORIGDSTADDR). TCP connections are taken by whichever loop is awake:
// with a listener for each loop, those that the kernel gave to a loop whose
// thread has to wait for a processor would wait with it, which doubled the 99th
// percentile. A UDP socket belongs to one loop, since its flows do. The
// descriptors stay the caller's: Remove them before they are closed.
func (e *Engine) Add(l *Listener, tcp, udp []int) error {
	for _, fd := range tcp {
		for _, loop := range e.loops {
			if err := loop.do(func() error { return loop.addListener(l, fd, deception.TCP) }); err != nil {
				return fmt.Errorf("listen on segment %s: %w", l.Name, err)
			}
		}
	}
	for i, fd := range udp {
		loop := e.loops[i%len(e.loops)]
		if err := loop.do(func() error { return loop.addListener(l, fd, deception.UDP) }); err != nil {
			return fmt.Errorf("listen on segment %s: %w", l.Name, err)
		}
	}
	return nil
}

// Remove forgets a listener's sockets. Its flows go on, except those over UDP
// at a listener with a Header, whose answers go out through its sockets: they
// end with reason shutdown. Connections that have not brought their header are
// reset.
func (e *Engine) Remove(l *Listener) {
	for _, loop := range e.loops {
		_ = loop.do(func() error { loop.removeListener(l); return nil })
	}
}

// CloseFlows ends every flow that match wants ended, with a reset to both
// sides, and returns when that has happened. match runs on the loops. It is not
// asked about connections that have not brought their header.
func (e *Engine) CloseFlows(match func(*Flow) bool, reason deception.EndReason) {
	for _, loop := range e.loops {
		_ = loop.do(func() error {
			for _, s := range loop.slots {
				if s.flow != nil && s.flow.state > stateHeader && match(s.flow) {
					loop.end(s.flow, reason, true)
				}
			}
			return nil
		})
	}
}

// Close ends all flows with reason shutdown and stops the loops. It waits for
// them no longer than ctx allows.
func (e *Engine) Close(ctx context.Context) error {
	e.CloseFlows(func(*Flow) bool { return true }, deception.EndShutdown)
	for _, l := range e.loops {
		_ = l.do(func() error { l.dropHeaders(nil); return nil })
		l.stop()
	}
	done := make(chan struct{})
	go func() { e.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("stop relay loops: %w", ctx.Err())
	}
	for _, l := range e.loops {
		l.free()
	}
	return nil
}

// Stats returns the counters as they are now.
func (e *Engine) Stats() Stats {
	return Stats{
		Active: e.active.Load(), ActiveUDP: e.activeUDP.Load(),
		Accepted: e.accepted.Load(), Refused: e.refused.Load(), Overload: e.overload.Load(),
		Retries: e.retries.Load(), Spliced: e.spliced.Load(), Truncated: e.truncated.Load(),
		Barred: e.barred.Load(), BadHeader: e.badHeader.Load(), Taken: e.taken.Load(),
	}
}
