package steer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// backend is the kernel's side of steering.
type backend interface {
	// apply writes the change and keeps cur true to what the kernel holds,
	// whatever happens. It returns the number of entries written.
	apply(ctx context.Context, cur *state, c change) (int, error)
	close() error
}

// Steering steers one namespace. Its methods may be called concurrently.
type Steering struct {
	mode deception.Steering
	lim  limits

	sockets *sockets // as they were opened
	closed  atomic.Bool

	mu      sync.Mutex // guards what follows
	backend backend    // nil once closed
	state   *state
}

// Open opens the sockets and puts steering into the namespace, nothing bound
// yet. SteeringAuto takes the first of Mechanisms that can be had; Probe tells
// which. The error matches ErrNotSupported where the kernel lacks the mechanism
// asked for, or all.
func Open(ns Namespace, cfg Config) (*Steering, error) {
	return open(ns, cfg, defaultLimits)
}

func open(ns Namespace, cfg Config, lim limits) (*Steering, error) {
	if slices.Contains(Mechanisms, cfg.Mode) {
		return openMode(ns, cfg, lim)
	}
	if cfg.Mode != deception.SteeringAuto && cfg.Mode != "" {
		return nil, fmt.Errorf("unknown steering %q", cfg.Mode)
	}
	var errs []error
	for _, cfg.Mode = range Mechanisms {
		s, err := openMode(ns, cfg, lim)
		if err == nil {
			return s, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

func openMode(ns Namespace, cfg Config, lim limits) (*Steering, error) {
	backlog := cfg.Backlog
	if backlog <= 0 {
		backlog = 4096
	}
	socks, err := openIn(ns, max(cfg.Sockets, 1), backlog)
	if err != nil {
		return nil, fmt.Errorf("open steering sockets in namespace %s: %w", ns.Name(), err)
	}
	s := &Steering{mode: cfg.Mode, lim: lim, state: newState(), sockets: socks}
	if s.backend, err = openBackend(cfg.Mode, socks, lim); err != nil {
		return nil, errors.Join(fmt.Errorf("steer namespace %s: %w", ns.Name(), err), socks.close())
	}
	return s, nil
}

func openBackend(mode deception.Steering, socks *sockets, lim limits) (backend, error) {
	if mode != deception.SteeringIPTables {
		if err := newIPTables(socks, lim).dropStale(); err != nil {
			return nil, err
		}
	}
	switch mode {
	case deception.SteeringSKLookup:
		return backendOf(openSKLookup(socks, lim))
	case deception.SteeringTPROXY:
		return backendOf(openTPROXY(socks))
	default:
		return backendOf(openIPTables(socks, lim))
	}
}

// backendOf keeps a nil pointer from becoming an interface that is not nil.
func backendOf[B backend](b B, err error) (backend, error) {
	if err != nil {
		return nil, err
	}
	return b, nil
}

// awaitLookups returns when every packet that was being looked up is done. A
// lookup takes two steps, and a processor may be taken away from it in between:
// the ports of the group that the first step found must still be there.
func awaitLookups() {
	const global = 1 // MEMBARRIER_CMD_GLOBAL, which is a grace period of RCU
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 {
		time.Sleep(20 * time.Millisecond) // refused on kernels with nohz_full
	}
}

// Mode returns the mechanism in use.
func (s *Steering) Mode() deception.Steering { return s.mode }

// Namespace returns a descriptor of the namespace for the caller to close, so that
// who steers many segments needs to keep none open for each. It does not wait for
// an Apply that is under way: relay loops call it. As with the sockets of TCP, no
// call may be under way when Close is called.
func (s *Steering) Namespace() (fd int, err error) {
	if s.closed.Load() {
		return -1, ErrClosed
	}
	return s.sockets.namespace()
}

// TCP returns the listeners. They are nonblocking and close-on-exec, and stay
// Steering's: Close closes them, and no call may use them by then. The name of an accepted socket (getsockname) is
// the decoy's address and port; an IPv4 address comes in mapped form.
func (s *Steering) TCP() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sockets.tcp)
}

// UDP returns the UDP sockets, under the same terms. A datagram's destination
// comes in its control messages, see OriginalDst. A socket of the caller's own
// that is bound to that destination and connected to the sender gets all further
// datagrams of the pair.
func (s *Steering) UDP() []int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sockets.udp)
}

// Apply makes the groups the whole of what is steered. Groups at fault do not
// block the others: the error joins a GroupError for each, which may match
// ErrInvalid or ErrFull. After any error a further Apply goes on from what is
// really there.
func (s *Steering) Apply(ctx context.Context, groups []Group) (Status, error) {
	want, faults := compile(groups, s.lim)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.backend == nil {
		return Status{Mode: s.mode}, ErrClosed
	}
	writes, err := s.backend.apply(ctx, s.state, plan(s.state, want))
	errs := []error{err}
	for _, f := range faults {
		errs = append(errs, f)
	}
	err = errors.Join(errs...)
	status := s.state.status()
	status.Mode, status.Writes, status.Failed = s.mode, writes, failedGroups(err)
	return status, err
}

// Close takes steering out of the namespace, then closes the sockets.
// Connections that were accepted go on. A second Close does nothing.
func (s *Steering) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.backend == nil {
		return nil
	}
	err := errors.Join(s.backend.close(), s.sockets.close())
	s.closed.Store(true)
	s.backend, s.state = nil, nil
	return err
}
