package carrier

import (
	"crypto/tls"
	"io"
	"net"

	"decoynet/internal/pki"
)

func listenTLS(address string, id *pki.Identity, serve func([]byte, Flow)) (io.Closer, error) {
	l, err := tls.Listen("tcp", address, serverTLS(id))
	if err != nil {
		return nil, err
	}
	go accept(l, func(c net.Conn) {
		if header, err := readHeader(c); err == nil {
			serve(header, c.(*tls.Conn))
		}
	})
	return l, nil
}

type tlsClient struct {
	address string
	cfg     *tls.Config
}

func (c *tlsClient) Open(header []byte) (Flow, error) {
	conn, err := tls.Dial("tcp", c.address, c.cfg)
	if err != nil {
		return nil, err
	}
	_, err = conn.Write(header)
	return conn, err
}

func (c *tlsClient) Close() error { return nil }

func dialTLS(address string, id *pki.Identity) (Client, error) {
	return &tlsClient{address, clientTLS(id)}, nil
}
