package conntrack

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
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
	promptTick  = 200 * time.Millisecond
	promptBatch = 500 // questions in one system call

	// From so many questions on, walking the whole table once is cheaper.
	sweepFrom  = 1000
	sweepEvery = time.Second
)

// patiences is how long after a sign a flow is asked for, and after how much more
// each time again: a TCP connection may be closed halfway only and go on for
// long. In the end the collector is as good.
var patiences = []time.Duration{
	timeoutClosed + 100*time.Millisecond, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, 64 * time.Second,
}

// datagramPatience is for UDP, of which nothing tells that it is about to end: the
// shorter of the kernel's timeouts, and again until it has ended.
const datagramPatience = 31 * time.Second

// prompter asks for connections that are closing until their last event has come.
type prompter struct {
	conn  *netlink.Conn
	raw   syscall.RawConn
	wake  chan struct{} // holds a token when waiting has come to hold something
	swept time.Time     // when the whole table was walked last; of run alone

	mu      sync.Mutex // guards the rest
	waiting map[flowKey]uint64
	serial  uint64
	// queues hold one line for each patience, and the last for datagrams;
	// each line is in the order in which its questions are due.
	queues [][]question
}

// question is void if its flow does not wait for its serial number any more.
type question struct {
	key       flowKey
	transport deception.Transport
	serial    uint64
	due       time.Time
}

func newPrompter(ns Namespace) (*prompter, error) {
	conn, err := dial(ns)
	if err != nil {
		return nil, err
	}
	p := &prompter{conn: conn, wake: make(chan struct{}, 1), waiting: map[flowKey]uint64{}, queues: make([][]question, len(patiences)+1)}
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

// note takes the signs of ends that are near, and of accomplished ones, out of the
// events.
func (p *prompter) note(e *Event) {
	line := -1
	switch {
	case e.Type == EventDestroy:
	case e.Transport == deception.UDP && e.Type == EventNew:
		line = len(patiences)
	case e.Transport == deception.TCP && (closeMark(e.Mark) || e.TCPState == TCPTimeWait || e.TCPState == TCPClose):
		line = 0
	default:
		return
	}
	key := flowKey{e.ID, e.Orig.Src, e.Orig.Dst}
	p.mu.Lock()
	defer p.mu.Unlock()
	if line < 0 {
		delete(p.waiting, key)
		return
	}
	p.enqueue(line, question{key: key, transport: e.Transport}, e.At)
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// enqueue must be called with mu held.
func (p *prompter) enqueue(line int, q question, now time.Time) {
	patience := datagramPatience
	if line < len(patiences) {
		patience = patiences[line]
	}
	p.serial++
	q.serial, q.due = p.serial, now.Add(patience)
	p.waiting[q.key] = p.serial
	p.queues[line] = append(p.queues[line], q)
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
				var due []question
				due, more = p.dueBy(now)
				switch {
				case len(due) < sweepFrom:
					p.ask(due)
				case now.Sub(p.swept) >= sweepEvery:
					p.swept = now
					p.sweep()
				} // else the next sweep, for which they stand in line again
			}
		}
	}
}

// dueBy returns what is to be asked now, and whether anything is left to ask at
// all. What is asked is put in line again: only its last event ends the waiting.
func (p *prompter) dueBy(now time.Time) (due []question, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	first := len(due)
	for line := range p.queues {
		queue := p.queues[line]
		n := 0
		for ; n < len(queue) && !queue[n].due.After(now); n++ {
			if q := queue[n]; p.waiting[q.key] == q.serial {
				due = append(due, q)
			}
		}
		p.queues[line] = queue[n:]
		for _, q := range due[first:] {
			switch again := line + 1; {
			case line == len(patiences): // datagrams
				p.enqueue(line, q, now)
			case again < len(patiences):
				p.enqueue(again, q, now)
			default:
				delete(p.waiting, q.key)
			}
		}
		first = len(due)
	}
	return due, len(p.waiting) > 0
}

// ask sends the questions and throws the answers away: netlink has made them when
// the system call returns. A lost question only makes an end late.
func (p *prompter) ask(due []question) {
	for some := range slices.Chunk(due, promptBatch) {
		msgs := make([]netlink.Message, len(some))
		for i, d := range some {
			msgs[i] = questionFor(d.key, d.transport)
		}
		_, _ = p.conn.SendMessages(msgs)
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

// sweep walks the table as a dump does, on which the kernel forgets all that has
// expired, but asks for a mark that nothing has.
func (p *prompter) sweep() {
	_ = p.conn.SetDeadline(time.Now().Add(dumpTimeout))
	_, _ = p.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: subsystem<<8 | msgGet, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{unix.AF_UNSPEC, 0, 0, 0}, impossibleMark...),
	})
	_ = p.conn.SetDeadline(time.Time{})
}

// impossibleMark is a filter: the attributes CTA_MARK and CTA_MARK_MASK.
var impossibleMark = func() (b []byte) {
	for _, kind := range []uint16{ctaMark, ctaMarkMask} {
		b = binary.NativeEndian.AppendUint16(b, nlaHeader+4)
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = append(b, 0xff, 0xff, 0xff, 0xff)
	}
	return b
}()

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
