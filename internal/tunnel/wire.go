package tunnel

import (
	"net"
	"sync"
	"sync/atomic"
)

const (
	batchSize     = 128 << 10 // written to the socket at once, at most (and a frame of each kind)
	minReadBuffer = 4 << 10
	maxReadBuffer = 64 << 10

	// The kernel is to hold what it sends in a quarter of a tick, in bytes. What
	// waits there waits before every other flow: megabytes, if it were left to
	// itself. But with too little, TCP's own window does not open.
	minUnsent = 2 * batchSize
	maxUnsent = 4 << 20
	unsentTo  = 4
)

// transport is what a conn needs of the connection below.
type transport interface {
	Read(p []byte) (int, error)
	// Write takes bytes for the peer, at most a TLS record's worth to make one
	// record. It does not wait: Flush does.
	Write(p []byte) (int, error)
	Flush() error
	Close() error
	// Received counts up whenever bytes arrived.
	Received() uint64
	// Tune is called at every tick.
	Tune()
}

// wire stands between a tls.Conn and its socket. crypto/tls makes a system call
// for each record, in both directions; wire makes one for many. It passes writes
// through until cork is called.
type wire struct {
	net.Conn
	received atomic.Uint64
	sent     atomic.Int64 // bytes since the last tick

	limit  func(unsent int) // nil where the kernel has none
	unsent int              // the limit that is set; the ticks' alone

	// The reader's alone.
	in    []byte
	r, w  int
	small int // reads in a row that would have fitted a smaller buffer

	mu     sync.Mutex // of what follows; held while the socket is written, so that records stay in order
	corked bool
	out    *[]byte // nil while empty, so that idle connections hold no memory
}

// outPool holds buffers for a batch in TLS records, and a frame in excess.
var outPool = sync.Pool{New: func() any {
	b := make([]byte, 0, batchSize+4*maxFrame)
	return &b
}}

func newWire(c net.Conn) *wire {
	w := &wire{Conn: c, in: make([]byte, minReadBuffer), limit: unsentLimit(c)}
	w.Tune()
	return w
}

// Tune fits what may wait in the kernel to how fast it sends.
func (w *wire) Tune() {
	if w.limit == nil {
		return
	}
	want := min(max(int(w.sent.Swap(0))/unsentTo, minUnsent), maxUnsent)
	if want > w.unsent || want < w.unsent/2 {
		w.unsent = want
		w.limit(want)
	}
}

func (w *wire) Received() uint64 { return w.received.Load() }

// Read returns what was read ahead, else what the socket has.
func (w *wire) Read(p []byte) (int, error) {
	if w.r == w.w {
		w.resize()
		n, err := w.Conn.Read(w.in)
		if n > 0 {
			w.received.Add(1)
		}
		w.r, w.w = 0, n
		if n == 0 {
			return 0, err
		}
		// An error that came with bytes comes again with the next read.
	}
	n := copy(p, w.in[w.r:w.w])
	w.r += n
	return n, nil
}

// resize fits the read buffer to what arrives: a connection that only says ping
// keeps no 64 kB for it.
func (w *wire) resize() {
	switch {
	case w.w == len(w.in) && len(w.in) < maxReadBuffer:
		w.in, w.small = make([]byte, min(4*len(w.in), maxReadBuffer)), 0
	case w.w > len(w.in)/8 || len(w.in) == minReadBuffer:
		w.small = 0
	default:
		if w.small++; w.small > 256 {
			w.in, w.small = make([]byte, minReadBuffer), 0
		}
	}
}

// cork makes Write keep everything until Flush.
func (w *wire) cork() {
	w.mu.Lock()
	w.corked = true
	w.mu.Unlock()
}

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.corked {
		return w.Conn.Write(p)
	}
	if w.out == nil {
		w.out = outPool.Get().(*[]byte)
	}
	*w.out = append(*w.out, p...)
	return len(p), nil
}

// Flush writes what was kept.
func (w *wire) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.out == nil {
		return nil
	}
	n, err := w.Conn.Write(*w.out)
	w.sent.Add(int64(n))
	*w.out = (*w.out)[:0]
	outPool.Put(w.out)
	w.out = nil
	return err
}
