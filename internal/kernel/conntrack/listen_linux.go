package conntrack

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Groups of NETLINK_NETFILTER (enum nfnetlink_groups).
const (
	groupNew     = 1
	groupUpdate  = 2
	groupDestroy = 3
)

// receiveBuffer holds the events of some ten thousand connections; the kernel
// accounts about 1 KB for each. Only tests change it.
var receiveBuffer = 64 << 20

// Listener hands out the events of a namespace.
type Listener struct {
	socket *eventSocket
	prompt *prompter
	lost   atomic.Uint64
	bad    atomic.Uint64
	done   chan struct{}
	err    error // how the reader ended; read after done
}

// Listen calls handler for every event of the namespace's connections, one after
// the other from one goroutine, until ctx ends. Events from before the call are
// not told; see [Dump]. Under load they come in batches, up to 10 ms late.
//
// A closed connection's last event comes within about two seconds of its expiry,
// since Listen asks the kernel for those that are closing. The kernel keeps that
// event until it could be delivered, so a slow handler loses no ends. Of the rest
// something may be lost; Lost counts.
func Listen(ctx context.Context, ns Namespace, handler func(Event)) (*Listener, error) {
	socket, err := openEvents(ns)
	if err != nil {
		return nil, err
	}
	prompt, err := newPrompter(ns)
	if err != nil {
		return nil, errors.Join(err, socket.close())
	}
	l := &Listener{socket: socket, prompt: prompt, done: make(chan struct{})}
	go l.run(ctx, func(e Event) {
		prompt.note(&e)
		handler(e)
	})
	return l, nil
}

func (l *Listener) run(ctx context.Context, handler func(Event)) {
	defer close(l.done)
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		l.socket.interrupt()
		close(stopped)
	})
	prompting, cancel := context.WithCancel(ctx)
	var prompter sync.WaitGroup
	prompter.Go(func() { l.prompt.run(prompting) })
	err := l.read(ctx, handler)
	cancel()
	prompter.Wait()
	if !stop() {
		<-stopped // else the descriptor would be closed under it
	}
	l.err = errors.Join(err, l.socket.close(), l.prompt.close())
}

// Lost returns how often the kernel found no room for an event. After it has
// grown the caller should compare with [Dump]; see [Tracker.Sync].
func (l *Listener) Lost() uint64 { return l.lost.Load() }

// Malformed returns how many messages could not be read.
func (l *Listener) Malformed() uint64 { return l.bad.Load() }

// Wait returns when the listener has ended and its handler is not called any
// more: nil after the context's end, else what broke it.
func (l *Listener) Wait() error {
	<-l.done
	return l.err
}

// read drains the socket, lets events collect, and waits only where none have.
func (l *Listener) read(ctx context.Context, handler func(Event)) error {
	for ctx.Err() == nil {
		at, some := time.Now(), false
		for more := true; more && ctx.Err() == nil; {
			n, err := l.socket.read(func(b []byte) {
				if b == nil {
					l.bad.Add(1)
					return
				}
				l.bad.Add(uint64(messages(b, at, handler)))
			})
			switch {
			case errors.Is(err, unix.ENOBUFS):
				l.lost.Add(1)
				n = batch // there is more to read
			case err != nil:
				return fmt.Errorf("read connection events: %w", err)
			}
			some = some || n > 0
			more = n == batch
		}
		if some {
			time.Sleep(gather)
			continue
		}
		if err := l.socket.wait(); err != nil {
			return fmt.Errorf("wait for connection events: %w", err)
		}
	}
	return nil
}

// messages parses a datagram and returns how many of its messages are malformed.
func messages(b []byte, at time.Time, handler func(Event)) (bad int) {
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return bad + 1
		}
		e := Event{At: at}
		kind, flags := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:])
		if err := parseMessage(kind, flags, b[unix.NLMSG_HDRLEN:size], &e); err != nil {
			bad++
		} else {
			handler(e)
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return bad
}

func dial(ns Namespace) (*netlink.Conn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: ns.FD()})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket in namespace %s: %w", ns.Name(), err)
	}
	// SO_RCVBUFFORCE where allowed.
	if err := conn.SetReadBuffer(receiveBuffer); err != nil {
		return nil, errors.Join(fmt.Errorf("enlarge the receive buffer in namespace %s: %w", ns.Name(), err), conn.Close())
	}
	return conn, nil
}

// dumpTimeout bounds a dump.
const dumpTimeout = 30 * time.Second

// Dump returns the connections that the namespace tracks now, as UPDATE events
// with counters. The kernel ends expired connections that it meets on the way.
func Dump(ns Namespace) ([]Event, error) {
	conn, err := dial(ns)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetDeadline(time.Now().Add(dumpTimeout)); err != nil {
		return nil, fmt.Errorf("bound the dump of namespace %s: %w", ns.Name(), err)
	}
	msgs, err := conn.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  subsystem<<8 | msgGet,
			Flags: netlink.Request | netlink.Dump,
		},
		Data: []byte{unix.AF_UNSPEC, 0, 0, 0}, // struct nfgenmsg
	})
	if err != nil {
		return nil, fmt.Errorf("dump connections of namespace %s: %w", ns.Name(), err)
	}
	at := time.Now()
	out := make([]Event, 0, len(msgs))
	for _, m := range msgs {
		e := Event{At: at}
		if err := parseMessage(uint16(m.Header.Type), 0, m.Data, &e); err != nil {
			return nil, fmt.Errorf("dump connections of namespace %s: %w", ns.Name(), err)
		}
		out = append(out, e)
	}
	return out, nil
}
