package pump

import (
	"io"
	"sync"

	"decoynet/deception"
)

// packetsWaiting is how many datagrams may wait to be carried. What comes
// beyond is lost, as in a socket's queue.
const packetsWaiting = 32

// Packets is the Stream of an exchange of datagrams that has no socket of its
// own: whoever reads the common socket hands each datagram to Push.
type Packets struct {
	write func([]byte) error
	ended func()
	queue chan []byte
	done  chan struct{}
	once  sync.Once
}

// NewPackets returns the stream. write sends a datagram to the exchange's peer;
// it must not wait. ended is called once, when the stream is reset; nil for
// nobody.
func NewPackets(write func([]byte) error, ended func()) *Packets {
	if ended == nil {
		ended = func() {}
	}
	return &Packets{write: write, ended: ended, queue: make(chan []byte, packetsWaiting), done: make(chan struct{})}
}

// Push hands over a datagram, which is the stream's from now on. It never waits:
// false means that the datagram is lost.
func (p *Packets) Push(b []byte) bool {
	select {
	case p.queue <- b:
		return true
	default:
		return false
	}
}

// Lend implements Lender.
func (p *Packets) Lend() ([]byte, error) {
	select {
	case b := <-p.queue:
		return b, nil
	case <-p.done:
		return nil, io.EOF
	}
}

// Return implements Lender.
func (p *Packets) Return() {}

// Read returns the next datagram; what b has no room for is lost.
func (p *Packets) Read(b []byte) (int, error) {
	d, err := p.Lend()
	return copy(b, d), err
}

// Write sends one datagram.
func (p *Packets) Write(b []byte) (int, error) { return len(b), p.write(b) }

// CloseWrite does nothing: datagrams have no end.
func (p *Packets) CloseWrite() error { return nil }

// Reset ends the stream.
func (p *Packets) Reset(deception.EndReason) {
	p.once.Do(func() {
		close(p.done)
		p.ended()
	})
}
