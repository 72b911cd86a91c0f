package pump

import (
	"fmt"
	"net"

	"decoynet/deception"
)

// TCP is the Stream of a TCP connection.
type TCP struct {
	conn *net.TCPConn
	reading
}

// NewTCP returns the stream; the connection is the stream's from now on. It
// returns an error where the connection is closed.
func NewTCP(conn *net.TCPConn) (*TCP, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("open connection for reading: %w", err)
	}
	t := &TCP{conn: conn}
	t.reading.init(raw, false)
	return t, nil
}

// Read reads as the connection does.
func (t *TCP) Read(b []byte) (int, error) { return t.conn.Read(b) }

// Write writes as the connection does.
func (t *TCP) Write(b []byte) (int, error) { return t.conn.Write(b) }

// CloseWrite sends a FIN.
func (t *TCP) CloseWrite() error { return t.conn.CloseWrite() }

// Reset sends an RST: closing with a linger time of zero does that, by RFC 9293
// (section 3.10.5, ABORT) and by socket(7).
func (t *TCP) Reset(deception.EndReason) {
	_ = t.conn.SetLinger(0) // fails where it is closed already
	_ = t.conn.Close()
}

// Close closes the connection in order.
func (t *TCP) Close() error { return t.conn.Close() }
