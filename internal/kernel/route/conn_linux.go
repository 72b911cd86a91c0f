package route

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/netns"
)

const (
	// batchSize is how many changes go to the kernel in one system call. It
	// handles them one after the other and queues an answer only for those that
	// fail and for the last, so that even a batch that fails as a whole (768
	// bytes each, as the kernel counts) fits the default receive buffer.
	batchSize = 256

	receiveBuffer = 4 << 20
	answerTimeout = 30 * time.Second

	// An interrupted dump is tried again after 1 ms, 2 ms, 4 ms, ...: a second
	// in all. Thousands of IPv6 addresses that were just added change for
	// some time after (the kernel finishes each in a work queue).
	dumpAttempts = 12
	dumpMaxPause = 250 * time.Millisecond

	// From linux/netlink.h: what follows the error code of an answer.
	flagCapped = 0x100 // NLM_F_CAPPED: only the header of our message
	flagTLVs   = 0x200 // NLM_F_ACK_TLVS: attributes
	attrErrMsg = 1     // NLMSGERR_ATTR_MSG: a sentence
)

var native = binary.NativeEndian

// conn is a route netlink socket in a namespace. The netlink package sends one
// change per system call and waits for its answer; a segment may have tens of
// thousands of routes, so they are sent in batches here.
type conn struct {
	fd  int
	seq uint32
	buf []byte // receives
}

func dial(ns *netns.NS) (*conn, error) {
	fd, err := ns.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	c := &conn{fd: fd, buf: make([]byte, 64<<10)}
	// Best effort, all of it: an unprivileged or older kernel (NETLINK_EXT_ACK
	// and CAP_ACK 4.12, GET_STRICT_CHK 4.20) answers with less, or dumps more than
	// asked for, and the decoder filters again.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	for _, opt := range []int{unix.NETLINK_EXT_ACK, unix.NETLINK_CAP_ACK, unix.NETLINK_GET_STRICT_CHK} {
		_ = unix.SetsockoptInt(fd, unix.SOL_NETLINK, opt, 1)
	}
	timeout := unix.NsecToTimeval(answerTimeout.Nanoseconds())
	err = errors.Join(
		os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout)),
		os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)),
		os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})),
	)
	if err != nil {
		c.close()
		return nil, fmt.Errorf("open netlink in %s: %w", ns, err)
	}
	return c, nil
}

func (c *conn) close() { unix.Close(c.fd) }

// run sends n changes of one kind; body appends the i-th. It returns the
// changes that the kernel refused, by i. The error is for the conversation
// itself: what became of changes not yet answered is then unknown.
func (c *conn) run(ctx context.Context, kind uint16, flags, n int, body func(b []byte, i int) []byte) (map[int]error, error) {
	refused := map[int]error{}
	var out []byte
	for start := 0; start < n; start += batchSize {
		if err := ctx.Err(); err != nil {
			return refused, err
		}
		end := min(start+batchSize, n)
		first := c.seq + 1
		out = out[:0]
		for i := start; i < end; i++ {
			f := flags | unix.NLM_F_REQUEST
			if i == end-1 {
				f |= unix.NLM_F_ACK
			}
			out = c.message(out, kind, f, func(b []byte) []byte { return body(b, i) })
		}
		if err := c.send(out); err != nil {
			return refused, err
		}
		last := c.seq
		err := c.receive(func(h unix.NlMsghdr, data []byte) (done bool, err error) {
			if h.Type != unix.NLMSG_ERROR || h.Seq < first || h.Seq > last {
				return false, nil
			}
			if err := answer(h, data); err != nil {
				refused[start+int(h.Seq-first)] = err
			}
			return h.Seq == last, nil
		})
		if err != nil {
			return refused, err
		}
	}
	return refused, nil
}

// one sends a single change and returns the kernel's answer.
func (c *conn) one(kind uint16, body func([]byte) []byte) error {
	refused, err := c.run(context.Background(), kind, 0, 1, func(b []byte, _ int) []byte { return body(b) })
	return errors.Join(err, refused[0])
}

// errInterrupted says that a dump lacks objects since they changed meanwhile.
var errInterrupted = errors.New("dump was interrupted by concurrent changes")

// dump asks for all objects of a kind and gives each to fn. begin is called
// first, and again for every new attempt after an interrupted dump.
func (c *conn) dump(kind uint16, body []byte, begin func(), fn func(kind uint16, data []byte)) error {
	for attempt := 1; ; attempt++ {
		begin()
		err := c.dumpOnce(kind, body, fn)
		if !errors.Is(err, errInterrupted) || attempt == dumpAttempts {
			return err
		}
		time.Sleep(min(time.Millisecond<<(attempt-1), dumpMaxPause))
	}
}

func (c *conn) dumpOnce(kind uint16, body []byte, fn func(kind uint16, data []byte)) error {
	msg := c.message(nil, kind, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, func(b []byte) []byte {
		return append(b, body...)
	})
	if err := c.send(msg); err != nil {
		return err
	}
	interrupted := false
	err := c.receive(func(h unix.NlMsghdr, data []byte) (done bool, err error) {
		if h.Seq != c.seq {
			return false, nil
		}
		interrupted = interrupted || h.Flags&unix.NLM_F_DUMP_INTR != 0
		switch h.Type {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			return true, answer(h, data)
		}
		fn(h.Type, data)
		return false, nil
	})
	if err == nil && interrupted {
		return errInterrupted
	}
	return err
}

// message appends one netlink message to b.
func (c *conn) message(b []byte, kind uint16, flags int, body func([]byte) []byte) []byte {
	c.seq++
	start := len(b)
	b = append(b, make([]byte, unix.SizeofNlMsghdr)...)
	b = body(b)
	native.PutUint32(b[start:], uint32(len(b)-start))
	native.PutUint16(b[start+4:], kind)
	native.PutUint16(b[start+6:], uint16(flags))
	native.PutUint32(b[start+8:], c.seq)
	return b
}

func (c *conn) send(b []byte) error {
	for {
		err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("send to netlink", err)
		}
	}
}

// receive hands over messages until fn is done. Only those of the kernel count
// (port 0): any process may send to a netlink socket.
func (c *conn) receive(fn func(unix.NlMsghdr, []byte) (done bool, err error)) error {
	for {
		n, flags, from, err := c.recvmsg()
		if err != nil {
			return os.NewSyscallError("receive from netlink", err)
		}
		if flags&unix.MSG_TRUNC != 0 {
			return errors.New("receive from netlink: message is longer than the buffer")
		}
		if from.Pid != 0 {
			continue
		}
		for b := c.buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			h := unix.NlMsghdr{
				Len: native.Uint32(b), Type: native.Uint16(b[4:]), Flags: native.Uint16(b[6:]),
				Seq: native.Uint32(b[8:]), Pid: native.Uint32(b[12:]),
			}
			if h.Len < unix.SizeofNlMsghdr || int(h.Len) > len(b) {
				return errors.New("receive from netlink: malformed message")
			}
			done, err := fn(h, b[unix.SizeofNlMsghdr:h.Len])
			if done || err != nil {
				return err
			}
			b = b[min(align(int(h.Len)), len(b)):]
		}
	}
}

func (c *conn) recvmsg() (n, flags int, from *unix.SockaddrNetlink, err error) {
	for {
		n, _, flags, sa, err := unix.Recvmsg(c.fd, c.buf, nil, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, 0, nil, err
		}
		from, ok := sa.(*unix.SockaddrNetlink)
		if !ok {
			return 0, 0, nil, fmt.Errorf("unexpected sender %T", sa)
		}
		return n, flags, from, nil
	}
}

// answer reads an NLMSG_ERROR or NLMSG_DONE: nil for success, else the errno
// with the kernel's own sentence if it sent one.
func answer(h unix.NlMsghdr, data []byte) error {
	if len(data) < 4 {
		if h.Type == unix.NLMSG_DONE {
			return nil
		}
		return errors.New("malformed answer from netlink")
	}
	code := int32(native.Uint32(data))
	if code >= 0 {
		return nil
	}
	errno := unix.Errno(-code)
	if h.Flags&flagTLVs == 0 {
		return errno
	}
	rest := data[4:]
	if h.Type == unix.NLMSG_ERROR {
		skip := unix.SizeofNlMsghdr
		if h.Flags&flagCapped == 0 && len(rest) >= skip {
			skip = align(int(native.Uint32(rest)))
		}
		rest = rest[min(skip, len(rest)):]
	}
	var said string
	attributes(rest, func(kind uint16, value []byte) {
		if kind == attrErrMsg {
			said = cString(value)
		}
	})
	if said == "" {
		return errno
	}
	return fmt.Errorf("%w (%s)", errno, said)
}

func align(n int) int { return (n + 3) &^ 3 }
