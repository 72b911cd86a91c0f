package tunnel

import "sync"

// The sizes of buffers. The largest holds one frame.
const (
	tinyBuffer   = 256
	smallBuffer  = 1 << 10
	mediumBuffer = 4 << 10
	largeBuffer  = maxFrame
)

// buffer is a piece of a stream's data. It is in one list, or in the hands of
// one goroutine.
type buffer struct {
	next *buffer
	b    []byte
	r, w int  // the data is b[r:w]
	more bool // the datagram goes on in the next buffer
}

var pools = [...]struct {
	size int
	pool sync.Pool
}{{size: tinyBuffer}, {size: smallBuffer}, {size: mediumBuffer}, {size: largeBuffer}}

// getBuffer returns an empty buffer for n bytes, at most largeBuffer.
func getBuffer(n int) *buffer {
	for i := range pools {
		p := &pools[i]
		if n > p.size {
			continue
		}
		if b, ok := p.pool.Get().(*buffer); ok {
			return b
		}
		return &buffer{b: make([]byte, p.size)}
	}
	panic("tunnel: no buffer is that large")
}

// free gives the buffer back. Nobody may hold it any more.
func (b *buffer) free() {
	b.next, b.r, b.w, b.more = nil, 0, 0, false
	for i := range pools {
		if len(b.b) == pools[i].size {
			pools[i].pool.Put(b)
			return
		}
	}
}

func (b *buffer) data() []byte { return b.b[b.r:b.w] }
func (b *buffer) len() int     { return b.w - b.r }
func (b *buffer) room() int    { return len(b.b) - b.w }

// fill appends what fits of p and returns how much that was.
func (b *buffer) fill(p []byte) int {
	n := copy(b.b[b.w:], p)
	b.w += n
	return n
}

// bufferList is a queue of buffers.
type bufferList struct {
	head, tail *buffer
}

func (l *bufferList) push(b *buffer) {
	if l.tail == nil {
		l.head = b
	} else {
		l.tail.next = b
	}
	l.tail = b
}

func (l *bufferList) pop() *buffer {
	b := l.head
	if b == nil {
		return nil
	}
	l.head = b.next
	if l.head == nil {
		l.tail = nil
	}
	b.next = nil
	return b
}

// free gives all buffers back and returns how much memory they held.
func (l *bufferList) free() (held int) {
	for b := l.pop(); b != nil; b = l.pop() {
		held += len(b.b)
		b.free()
	}
	return held
}
