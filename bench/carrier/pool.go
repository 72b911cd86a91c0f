package carrier

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"

	"decoynet/internal/pki"
)

// A pooled connection carries one flow after the other, so each needs an end of
// its own: data goes in pieces of a length (2 bytes) and as many bytes, and a
// length of 0 is the FIN. A piece fills a record of TLS.
const maxPiece = 16<<10 - 2

// poolFlow is one flow on a connection, or none.
type poolFlow struct {
	conn    *tls.Conn
	in      *bufio.Reader
	out     []byte
	left    int // of the piece that is being read
	readEnd bool
	sentEnd bool
	done    func(*poolFlow) // takes the connection back
}

func newPoolFlow(c *tls.Conn, done func(*poolFlow)) *poolFlow {
	return &poolFlow{conn: c, in: bufio.NewReaderSize(c, 16<<10), out: make([]byte, 0, maxPiece+2), done: done}
}

// begin readies the connection for the next flow.
func (f *poolFlow) begin() { f.left, f.readEnd, f.sentEnd = 0, false, false }

func (f *poolFlow) Read(p []byte) (int, error) {
	if f.readEnd {
		return 0, io.EOF
	}
	if f.left == 0 {
		var length [2]byte
		if _, err := io.ReadFull(f.in, length[:]); err != nil {
			return 0, io.ErrUnexpectedEOF
		}
		if f.left = int(binary.BigEndian.Uint16(length[:])); f.left == 0 {
			f.readEnd = true
			return 0, io.EOF
		}
	}
	n, err := f.in.Read(p[:min(len(p), f.left)])
	f.left -= n
	return n, err
}

var errEnded = errors.New("written after its end")

func (f *poolFlow) Write(p []byte) (n int, err error) {
	if f.sentEnd {
		return 0, errEnded
	}
	for len(p) > 0 {
		k := min(len(p), maxPiece)
		f.out = append(binary.BigEndian.AppendUint16(f.out[:0], uint16(k)), p[:k]...)
		if _, err := f.conn.Write(f.out); err != nil {
			return n, err
		}
		n, p = n+k, p[k:]
	}
	return n, nil
}

func (f *poolFlow) CloseWrite() error {
	if f.sentEnd {
		return nil
	}
	f.sentEnd = true
	_, err := f.conn.Write([]byte{0, 0})
	return err
}

// Close keeps the connection for the next flow where this one ended well.
func (f *poolFlow) Close() error {
	if f.readEnd && f.sentEnd {
		f.done(f)
		return nil
	}
	return f.conn.Close()
}

func listenPool(address string, id *pki.Identity, serve func([]byte, Flow)) (io.Closer, error) {
	l, err := tls.Listen("tcp", address, serverTLS(id))
	if err != nil {
		return nil, err
	}
	go accept(l, func(c net.Conn) {
		f := newPoolFlow(c.(*tls.Conn), func(*poolFlow) {})
		for {
			f.begin()
			header, err := readHeader(f)
			if err != nil {
				return
			}
			serve(header, f)
			if !f.readEnd || !f.sentEnd {
				return
			}
		}
	})
	return l, nil
}

type poolClient struct {
	address string
	cfg     *tls.Config
	mu      sync.Mutex // guards idle
	idle    []*poolFlow
}

func (c *poolClient) Open(header []byte) (Flow, error) {
	f, err := c.take()
	if err != nil {
		return nil, err
	}
	f.begin()
	_, err = f.Write(header)
	return f, err
}

func (c *poolClient) take() (*poolFlow, error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		f := c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		return f, nil
	}
	c.mu.Unlock()
	conn, err := tls.Dial("tcp", c.address, c.cfg)
	if err != nil {
		return nil, err
	}
	return newPoolFlow(conn, c.give), nil
}

func (c *poolClient) give(f *poolFlow) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = append(c.idle, f)
}

func (c *poolClient) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, f := range c.idle {
		f.conn.Close()
	}
	c.idle = nil
	return nil
}

func dialPool(address string, id *pki.Identity) (Client, error) {
	return &poolClient{address: address, cfg: clientTLS(id)}, nil
}
