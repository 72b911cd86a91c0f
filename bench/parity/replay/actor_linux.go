package replay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"decoynet/internal/lab"
)

// patience is how long one step may take.
const patience = 5 * time.Second

// actor is the service: it hands every connection to whoever plays that flow.
type actor struct {
	listener net.Listener
	done     chan struct{}

	mu      sync.Mutex // guards what follows
	waiting map[netip.AddrPort]chan *net.TCPConn
}

func newActor(ctx context.Context, m *lab.Machine) (*actor, error) {
	l, err := m.Listen(ctx, "tcp", fmt.Sprintf("[::]:%d", target))
	if err != nil {
		return nil, fmt.Errorf("start the service: %w", err)
	}
	a := &actor{listener: l, done: make(chan struct{}), waiting: map[netip.AddrPort]chan *net.TCPConn{}}
	go a.serve()
	return a, nil
}

func (a *actor) serve() {
	defer close(a.done)
	for {
		conn, err := a.listener.Accept()
		if err != nil {
			return // closed
		}
		peer := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
		peer = netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
		a.mu.Lock()
		to := a.waiting[peer]
		delete(a.waiting, peer)
		a.mu.Unlock()
		if to == nil {
			_ = conn.Close() // a check of the service's health
			continue
		}
		to <- conn.(*net.TCPConn) // buffered
	}
}

// expect returns where the connection from the client will arrive.
func (a *actor) expect(client netip.AddrPort) <-chan *net.TCPConn {
	to := make(chan *net.TCPConn, 1)
	a.mu.Lock()
	a.waiting[client] = to
	a.mu.Unlock()
	return to
}

func (a *actor) forget(client netip.AddrPort) {
	a.mu.Lock()
	delete(a.waiting, client)
	a.mu.Unlock()
}

func (a *actor) close() error {
	err := a.listener.Close()
	<-a.done
	if err != nil {
		return errors.Join(errors.New("stop the service"), err)
	}
	return nil
}
