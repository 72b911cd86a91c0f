package carrier

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"time"

	"decoynet/deception"
	"decoynet/internal/pki"
	"decoynet/internal/tunnel"
)

const openWithin = 10 * time.Second

type tunnelServer struct{ *tunnel.Server }

func (s tunnelServer) Close() error {
	s.Server.Close()
	return nil
}

func listenTunnel(address string, id *pki.Identity, serve func([]byte, Flow)) (io.Closer, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	s := tunnel.NewServer(tunnel.ServerConfig{
		TLS: id.IngressTLS(func(string, uint32) error { return nil }),
		Node: func(state tls.ConnectionState) (string, error) {
			node, _, err := pki.PeerNode(state)
			return node, err
		},
		Serve: func(_ string, st *tunnel.Stream) { serve(st.Header(), st) },
	})
	go func() { _ = s.Serve(l) }() // ends with Close
	return tunnelServer{s}, nil
}

type tunnelClient struct{ *tunnel.Client }

func (c tunnelClient) Open(header []byte) (Flow, error) {
	ctx, cancel := context.WithTimeout(context.Background(), openWithin)
	defer cancel()
	return c.Client.Open(ctx, header, false)
}

func (c tunnelClient) Close() error {
	c.Client.Close()
	return nil
}

func dialTunnel(address string, id *pki.Identity) (Client, error) {
	c := tunnelClient{tunnel.NewClient(tunnel.ClientConfig{TLS: id.GatewayTLS, Connections: connections})}
	c.SetGateways([]deception.Gateway{{Name: "gw", Node: ServerNode, Addresses: []string{address}}})
	for deadline := time.Now().Add(openWithin); ; time.Sleep(5 * time.Millisecond) {
		status := c.Status()[0]
		if status.Connections == connections {
			return c, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("connect the tunnel: %s", status.Err)
		}
	}
}
