package pump

import (
	"sync"

	"decoynet/internal/tunnel"
)

// Sizes of buffers, in bytes.
const (
	// streamSize is what one read of a stream may bring, and so what a direction
	// holds whose bytes the other end does not take: whole records of the tunnel.
	streamSize = 4 * tunnel.SegmentSize
	// DatagramSize is room for any datagram.
	DatagramSize = 64 << 10
	// firstSize is the buffer that waits where a stream can only be asked by
	// reading it.
	firstSize = 1 << 10
)

type buffer struct{ b []byte }

var (
	streamBuffers   = sync.Pool{New: func() any { return &buffer{make([]byte, streamSize)} }}
	datagramBuffers = sync.Pool{New: func() any { return &buffer{make([]byte, DatagramSize)} }}
)

func pool(datagrams bool) *sync.Pool {
	if datagrams {
		return &datagramBuffers
	}
	return &streamBuffers
}

// sourceOf returns the stream as a Lender.
func sourceOf(stream Stream, datagrams bool) Lender {
	if l, ok := stream.(Lender); ok {
		return l
	}
	l := &lender{stream: stream, datagrams: datagrams}
	l.waiter, _ = stream.(Waiter)
	return l
}

// lender makes a Lender of a stream that is none. Of a stream that cannot even
// wait, bytes are read by a small buffer first, and by a pooled one for as long
// as reads fill theirs; datagrams need the large one at once.
type lender struct {
	stream    Stream
	waiter    Waiter // nil where the stream is none
	datagrams bool
	full      bool // the last read filled its buffer: there may be more
	first     []byte
	buf       *buffer // on loan
}

// Lend implements Lender.
func (l *lender) Lend() ([]byte, error) {
	if l.waiter != nil {
		if err := l.waiter.WaitRead(); err != nil {
			return nil, err
		}
	} else if !l.datagrams && !l.full {
		if l.first == nil {
			l.first = make([]byte, firstSize)
		}
		return l.read(l.first)
	}
	l.buf = pool(l.datagrams).Get().(*buffer)
	return l.read(l.buf.b)
}

func (l *lender) read(b []byte) ([]byte, error) {
	n, err := l.stream.Read(b)
	l.full = n == len(b)
	return b[:n], err
}

// Return implements Lender.
func (l *lender) Return() {
	if l.buf != nil {
		pool(l.datagrams).Put(l.buf)
		l.buf = nil
	}
}
