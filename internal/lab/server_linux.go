package lab

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Contact is one entry of a server's own log: who came, and where it came to.
type Contact struct {
	Peer  netip.AddrPort
	Local netip.AddrPort // the zero AddrPort where the server's log does not say
}

// Listen says where a server listens.
type Listen struct {
	Addrs []string // literal addresses; none: all of the machine's, present and future
	Ports []uint16 // none: the server's usual one
	TLS   []uint16 // further ports, with TLS and a self-made certificate (nginx only)
}

// Server is a server in a machine, with a directory of its own, that can be
// stopped and started again on the same ports. What it logs about its peers is
// the witness for what really arrived.
type Server struct {
	name    string
	machine *Machine
	dir     string
	service service
	logFile string
	parse   func(line string) (Contact, bool)

	mu      sync.Mutex // guards running
	running bool
}

// service is what stands behind a Server: a program, or Go code.
type service interface {
	// start returns when the service answers.
	start(ctx context.Context) error
	// stop returns when its ports are closed.
	stop(ctx context.Context) error
}

// newServer makes the server's directory; begin starts it for the first time.
func newServer(m *Machine, name string, parse func(string) (Contact, bool)) (*Server, error) {
	if err := m.usable(); err != nil {
		return nil, err
	}
	s := &Server{name: name, machine: m, parse: parse}
	s.dir = filepath.Join(m.Dir(), fmt.Sprintf("%s-%d", name, m.lab.next()))
	s.logFile = filepath.Join(s.dir, name+".log")
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of %s: %w", name, err)
	}
	return s, nil
}

func (s *Server) begin(ctx context.Context, what service) (*Server, error) {
	s.service = what
	if err := s.Start(ctx); err != nil {
		return nil, err
	}
	l := s.machine.lab
	l.mu.Lock()
	closed := l.closed
	if !closed {
		l.servers = append(l.servers, s)
	}
	l.mu.Unlock()
	if closed {
		return nil, errors.Join(ErrClosed, s.Stop(ctx))
	}
	return s, nil
}

func (s *Server) inProcess() bool {
	_, ok := s.service.(*program)
	return !ok
}

// Name returns the kind of server: nginx, redis, sshd, udp, tcp.
func (s *Server) Name() string { return s.name }

// Machine returns the machine that the server runs in.
func (s *Server) Machine() *Machine { return s.machine }

// Dir returns the server's own directory on the host.
func (s *Server) Dir() string { return s.dir }

// LogPath returns the file in which the server itself notes who came.
func (s *Server) LogPath() string { return s.logFile }

// Start starts a server that was stopped and returns when it answers.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running {
		return nil
	}
	if err := s.service.start(ctx); err != nil {
		return fmt.Errorf("start %s in %s: %w", s.name, s.machine, err)
	}
	s.running = true
	return nil
}

// Stop ends the server; its ports are closed when it returns.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running {
		return nil
	}
	s.running = false
	if err := s.service.stop(ctx); err != nil {
		return fmt.Errorf("stop %s in %s: %w", s.name, s.machine, err)
	}
	return nil
}

// Contacts returns what the server's own log says about who came, oldest first.
func (s *Server) Contacts() ([]Contact, error) {
	text, err := os.ReadFile(s.logFile)
	if err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("read the log of %s: %w", s.name, err)
	}
	var out []Contact
	for line := range strings.Lines(string(text)) {
		// A line without its end is still being written.
		if c, ok := s.parse(strings.TrimSuffix(line, "\n")); ok && strings.HasSuffix(line, "\n") {
			out = append(out, c)
		}
	}
	return out, nil
}

// Peers returns the peers of Contacts.
func (s *Server) Peers() ([]netip.AddrPort, error) {
	contacts, err := s.Contacts()
	peers := make([]netip.AddrPort, len(contacts))
	for i, c := range contacts {
		peers[i] = c.Peer
	}
	return peers, err
}

// WaitPeer waits until the server's own log names the peer, for at most d. A log
// may come later than what the client sees.
func (s *Server) WaitPeer(ctx context.Context, d time.Duration, peer netip.AddrPort) error {
	return Eventually(ctx, d, func() error {
		peers, err := s.Peers()
		if err == nil && !slices.Contains(peers, peer) {
			err = fmt.Errorf("%s has logged %v, not %s", s.name, peers, peer)
		}
		return err
	})
}

// program is a service that is a program of the machine.
type program struct {
	machine *Machine
	argv    []string
	at      []netip.AddrPort // the TCP sockets that it opens
	process *Process
}

func (p *program) start(ctx context.Context) error {
	open, err := p.machine.listening()
	if err != nil {
		return err
	}
	for _, at := range p.at {
		if slices.Contains(open, at) { // would pass for the new one below
			return fmt.Errorf("%s is in use in %s", at, p.machine)
		}
	}
	process, err := p.machine.Start(p.argv[0], p.argv[1:]...)
	if err != nil {
		return err
	}
	p.process = process
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-process.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	err = Eventually(ctx, 10*time.Second, func() error {
		open, err := p.machine.listening()
		for _, at := range p.at {
			if !slices.Contains(open, at) {
				return errors.Join(fmt.Errorf("%s is not open", at), err)
			}
		}
		return err
	})
	if err != nil {
		return errors.Join(err, process.Kill(), errors.New(tail(process.Log(), 2000)))
	}
	return nil
}

func (p *program) stop(ctx context.Context) error {
	if err := p.process.Stop(ctx); err != nil {
		return err
	}
	// A child that was forked for a connection a moment ago has the listening
	// sockets until it gets to closing them.
	return Eventually(ctx, 2*time.Second, func() error {
		open, err := p.machine.listening()
		for _, at := range p.at {
			if slices.Contains(open, at) {
				err = errors.Join(err, fmt.Errorf("%s is still open", at))
			}
		}
		return err
	})
}

// listening returns the listening TCP sockets of the machine: by the kernel's
// table rather than by connections, which a server would log.
func (m *Machine) listening() ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	err := m.Do(func() error {
		for _, table := range []string{"tcp", "tcp6"} {
			text, err := os.ReadFile("/proc/thread-self/net/" + table)
			if err != nil && !os.IsNotExist(err) {
				return err
			}
			for line := range strings.Lines(string(text)) {
				// sl local_address rem_address st ...; 0A is TCP_LISTEN
				f := strings.Fields(line)
				if len(f) < 4 || f[3] != "0A" {
					continue
				}
				if at, ok := procAddrPort(f[1]); ok {
					out = append(out, at)
				}
			}
		}
		return nil
	})
	return out, err
}

// procAddrPort reads a socket address of /proc/net: 32-bit words as the
// processor holds them (little-endian on all that we build for), then the port.
func procAddrPort(s string) (netip.AddrPort, bool) {
	addr, port, _ := strings.Cut(s, ":")
	b, err1 := hex.DecodeString(addr)
	p, err2 := strconv.ParseUint(port, 16, 16)
	for i := 0; i+4 <= len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a, uint16(p)), ok && err1 == nil && err2 == nil
}

// addrPort reads an address and a port from a log.
func addrPort(addr, port string) (netip.AddrPort, bool) {
	a, err1 := netip.ParseAddr(strings.Trim(addr, "[]"))
	p, err2 := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), err1 == nil && err2 == nil
}

// orUsual returns the ports, or the server's usual ones.
func orUsual(ports []uint16, usual ...uint16) []uint16 {
	if len(ports) == 0 {
		return usual
	}
	return ports
}

// sockets returns what a server listens on, addresses times ports; without
// addresses the wildcards of both families.
func sockets(addrs []string, ports ...uint16) ([]netip.AddrPort, error) {
	if len(addrs) == 0 {
		addrs = []string{"0.0.0.0", "::"}
	}
	var out []netip.AddrPort
	for _, s := range addrs {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("bad address to listen on: %w", err)
		}
		for _, port := range ports {
			out = append(out, netip.AddrPortFrom(a, port))
		}
	}
	return out, nil
}
