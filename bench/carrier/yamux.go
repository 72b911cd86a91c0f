package carrier

import (
	"crypto/tls"
	"io"
	"net"
	"sync/atomic"

	"decoynet/internal/pki"

	"github.com/hashicorp/yamux"
)

// yamuxWindow is what one flow over a long way needs: yamux knows one size of
// window only, and gives it to every stream.
const yamuxWindow = 16 << 20

func yamuxConfig() *yamux.Config {
	cfg := yamux.DefaultConfig()
	cfg.AcceptBacklog = 4096
	cfg.MaxStreamWindowSize = yamuxWindow
	cfg.LogOutput = io.Discard
	return cfg
}

// yamuxFlow's CloseWrite is what yamux calls Close: a FIN.
type yamuxFlow struct{ *yamux.Stream }

func (f yamuxFlow) CloseWrite() error { return f.Stream.Close() }

func listenYamux(address string, id *pki.Identity, serve func([]byte, Flow)) (io.Closer, error) {
	l, err := tls.Listen("tcp", address, serverTLS(id))
	if err != nil {
		return nil, err
	}
	go accept(l, func(c net.Conn) {
		session, err := yamux.Server(c, yamuxConfig())
		if err != nil {
			return
		}
		defer session.Close()
		for {
			s, err := session.AcceptStream()
			if err != nil {
				return
			}
			go func() {
				defer s.Close()
				if header, err := readHeader(s); err == nil {
					serve(header, yamuxFlow{s})
				}
			}()
		}
	})
	return l, nil
}

// accept serves each connection in a goroutine of its own, until the listener is
// closed.
func accept(l net.Listener, serve func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			serve(c)
		}()
	}
}

type yamuxClient struct {
	sessions [connections]*yamux.Session
	turn     atomic.Uint32
}

func (c *yamuxClient) Open(header []byte) (Flow, error) {
	s, err := c.sessions[c.turn.Add(1)%connections].OpenStream()
	if err != nil {
		return nil, err
	}
	_, err = s.Write(header)
	return yamuxFlow{s}, err
}

func (c *yamuxClient) Close() error {
	for _, s := range c.sessions {
		if s != nil {
			s.Close()
		}
	}
	return nil
}

func dialYamux(address string, id *pki.Identity) (Client, error) {
	c := &yamuxClient{}
	for i := range c.sessions {
		raw, err := tls.Dial("tcp", address, clientTLS(id))
		if err == nil {
			c.sessions[i], err = yamux.Client(raw, yamuxConfig())
		}
		if err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}
