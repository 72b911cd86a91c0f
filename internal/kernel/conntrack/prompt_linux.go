package conntrack

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// The kernel tells a connection's end when it forgets the connection, and a closed
// one that no packet comes near is only found by its collector, up to two
// minutes after its timeout (gc_worker in net/netfilter/nf_conntrack_core.c). Asking
// for a connection makes the kernel look where it is kept, and forget there what has
// expired.

const (
	promptAfter = timeoutClosed + 100*time.Millisecond // of the first sign of an end
	promptLimit = 64 * time.Second                     // from which the collector is as good
	promptTick  = 200 * time.Millisecond
	promptBatch = 500 // questions in one system call
)

// prompter asks for connections that are closing until their last event has come.
type prompter struct {
	conn *netlink.Conn
	raw  syscall.RawConn
	wake chan struct{} // holds a token while closing is not empty

	mu      sync.Mutex // guards closing
	closing map[flowKey]question
}

type question struct {
	due       time.Time
	wait      time.Duration // until the next one
	transport deception.Transport
}

func newPrompter(ns Namespace) (*prompter, error) {
	conn, err := dial(ns)
	if err != nil {
		return nil, err
	}
	p := &prompter{conn: conn, wake: make(chan struct{}, 1), closing: map[flowKey]question{}}
	// Answers are of no interest, so they need not repeat the question.
	err = conn.SetOption(netlink.CapAcknowledge, true)
	if err == nil {
		p.raw, err = conn.SyscallConn()
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("open netlink socket in namespace %s: %w", ns.Name(), err)
	}
	return p, nil
}

// note takes the signs of beginning and accomplished ends out of the events.
func (p *prompter) note(e *Event) {
	closing := e.Type == EventUpdate && (closeMark(e.Mark) || e.TCPState == TCPTimeWait || e.TCPState == TCPClose)
	if !closing && e.Type != EventDestroy {
		return
	}
	key := flowKey{e.ID, e.Orig.Src, e.Orig.Dst}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !closing {
		delete(p.closing, key)
		return
	}
	p.closing[key] = question{due: e.At.Add(promptAfter), wait: promptAfter, transport: e.Transport}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func closeMark(mark uint32) bool { return mark >= MarkClientClosed && mark <= MarkUnreachable }

// run asks until ctx ends.
func (p *prompter) run(ctx context.Context) {
	ticker := time.NewTicker(promptTick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		}
		for more := true; more; {
			select {
			case <-ctx.Done():
				return
			case now := <-ticker.C:
				var msgs []netlink.Message
				msgs, more = p.dueBy(now)
				p.ask(msgs)
			}
		}
	}
}

// dueBy returns what is to be asked now, and whether anything is left to ask at all.
func (p *prompter) dueBy(now time.Time) (msgs []netlink.Message, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, q := range p.closing {
		if q.due.After(now) {
			continue
		}
		msgs = append(msgs, questionFor(key, q.transport))
		// It may be closed halfway only and go on for long.
		q.wait *= 2
		q.due = now.Add(q.wait)
		if q.wait > promptLimit {
			delete(p.closing, key)
			continue
		}
		p.closing[key] = q
	}
	return msgs, len(p.closing) > 0
}

// ask sends the questions and throws the answers away: netlink has made them when
// the system call returns. A lost question only makes an end late.
func (p *prompter) ask(msgs []netlink.Message) {
	for len(msgs) > 0 {
		n := min(len(msgs), promptBatch)
		_, _ = p.conn.SendMessages(msgs[:n])
		msgs = msgs[n:]
		_ = p.raw.Read(func(fd uintptr) bool {
			var buf [512]byte
			for {
				// Of an answer that is longer the rest is dropped.
				if _, err := unix.Read(int(fd), buf[:]); err != nil && err != unix.EINTR && err != unix.ENOBUFS {
					return true
				}
			}
		})
	}
}

func (p *prompter) close() error { return p.conn.Close() }

// questionFor asks for the connection of the key's first direction.
func questionFor(key flowKey, transport deception.Transport) netlink.Message {
	family, srcType, dstType := byte(unix.AF_INET6), uint16(ctaIPv6Src), uint16(ctaIPv6Dst)
	if key.src.Addr().Is4() {
		family, srcType, dstType = unix.AF_INET, ctaIPv4Src, ctaIPv4Dst
	}
	ae := netlink.NewAttributeEncoder()
	ae.Nested(ctaTupleOrig, func(tuple *netlink.AttributeEncoder) error {
		tuple.Nested(ctaTupleIP, func(ip *netlink.AttributeEncoder) error {
			ip.Bytes(srcType, key.src.Addr().AsSlice())
			ip.Bytes(dstType, key.dst.Addr().AsSlice())
			return nil
		})
		tuple.Nested(ctaTupleProto, func(proto *netlink.AttributeEncoder) error {
			proto.Uint8(ctaProtoNum, uint8(transport))
			proto.Bytes(ctaProtoSrcPort, []byte{byte(key.src.Port() >> 8), byte(key.src.Port())})
			proto.Bytes(ctaProtoDstPort, []byte{byte(key.dst.Port() >> 8), byte(key.dst.Port())})
			return nil
		})
		return nil
	})
	data, err := ae.Encode()
	if err != nil {
		data = nil // cannot happen with these types; the kernel refuses it
	}
	return netlink.Message{
		Header: netlink.Header{Type: subsystem<<8 | msgGet, Flags: netlink.Request},
		Data:   append([]byte{family, 0, 0, 0}, data...), // struct nfgenmsg
	}
}
