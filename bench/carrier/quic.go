package carrier

import (
	"context"
	"io"
	"sync/atomic"
	"time"

	"decoynet/internal/pki"

	"github.com/quic-go/quic-go"
)

const quicProtocol = "bench"

// quicConfig lets windows grow as far as the tunnel's do.
func quicConfig() *quic.Config {
	return &quic.Config{
		MaxIncomingStreams:             1 << 16,
		InitialStreamReceiveWindow:     512 << 10,
		MaxStreamReceiveWindow:         64 << 20,
		InitialConnectionReceiveWindow: 2 << 20,
		MaxConnectionReceiveWindow:     128 << 20,
		MaxIdleTimeout:                 time.Minute,
	}
}

type quicFlow struct {
	*quic.Stream
	sentEnd bool
}

// CloseWrite is what quic-go calls Close: a FIN.
func (f *quicFlow) CloseWrite() error {
	f.sentEnd = true
	return f.Stream.Close()
}

// Close breaks off what has not ended. CancelWrite behind a FIN would take back
// what is not acknowledged yet.
func (f *quicFlow) Close() error {
	f.CancelRead(0)
	if !f.sentEnd {
		f.CancelWrite(0)
	}
	return nil
}

func listenQUIC(address string, id *pki.Identity, serve func([]byte, Flow)) (io.Closer, error) {
	l, err := quic.ListenAddr(address, serverTLS(id, quicProtocol), quicConfig())
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept(context.Background())
			if err != nil {
				return
			}
			go acceptQUIC(c, serve)
		}
	}()
	return l, nil
}

func acceptQUIC(c *quic.Conn, serve func([]byte, Flow)) {
	for {
		s, err := c.AcceptStream(context.Background())
		if err != nil {
			return
		}
		go func() {
			f := &quicFlow{Stream: s}
			defer f.Close()
			if header, err := readHeader(s); err == nil {
				serve(header, f)
			}
		}()
	}
}

type quicClient struct {
	conns [connections]*quic.Conn
	turn  atomic.Uint32
}

func (c *quicClient) Open(header []byte) (Flow, error) {
	ctx, cancel := context.WithTimeout(context.Background(), openWithin)
	defer cancel()
	s, err := c.conns[c.turn.Add(1)%connections].OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	_, err = s.Write(header)
	return &quicFlow{Stream: s}, err
}

func (c *quicClient) Close() error {
	for _, conn := range c.conns {
		if conn != nil {
			_ = conn.CloseWithError(0, "")
		}
	}
	return nil
}

func dialQUIC(address string, id *pki.Identity) (Client, error) {
	ctx, cancel := context.WithTimeout(context.Background(), openWithin)
	defer cancel()
	c := &quicClient{}
	for i := range c.conns {
		conn, err := quic.DialAddr(ctx, address, clientTLS(id, quicProtocol), quicConfig())
		if err != nil {
			c.Close()
			return nil, err
		}
		c.conns[i] = conn
	}
	return c, nil
}
