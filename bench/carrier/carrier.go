// Package carrier runs the same flows over the ways in which they could be
// carried between agent and ingress gateway: decoynet's own multiplexer, yamux,
// QUIC, and plain TLS connections, pooled or one for each flow. All are tuned as
// their documentation advises and certified by both ends as decoynet's are.
package carrier

import (
	"crypto/tls"
	"fmt"
	"io"
	"slices"

	"decoynet/internal/pki"
)

// ServerNode is the node whose certificate a server must show.
const ServerNode = "ingress"

// HeaderSize is how long the header of every flow is, in bytes: about as long as
// a PROXY v2 header with decoynet's facts. It goes out when the flow is opened,
// as a service may be the first to speak.
const HeaderSize = 120

// connections is how many connections carry all flows of a multiplexer.
const connections = 2

// Flow is one flow on a carrier.
type Flow interface {
	io.ReadWriter
	// CloseWrite tells the peer that nothing more will be written: its Read
	// returns io.EOF.
	CloseWrite() error
	// Close gives back what the flow holds, and breaks it off unless both ends
	// have called CloseWrite and this one has read to the end.
	Close() error
}

// Client opens flows.
type Client interface {
	Open(header []byte) (Flow, error)
	Close() error
}

// Kind is a way of carrying flows.
type Kind struct {
	Name string
	What string
	// Listen serves flows at host:port until the Closer is closed, each with a
	// call of serve in a goroutine of its own.
	Listen func(address string, id *pki.Identity, serve func(header []byte, f Flow)) (io.Closer, error)
	// Dial makes a client of the server at host:port.
	Dial func(address string, id *pki.Identity) (Client, error)
	// Muxed: idle flows cost no connections of their own.
	Muxed bool
}

// Kinds lists all, decoynet's first.
var Kinds = []Kind{
	{"tunnel", "decoynet's multiplexer over TLS 1.3", listenTunnel, dialTunnel, true},
	{"yamux", "hashicorp/yamux over TLS 1.3", listenYamux, dialYamux, true},
	{"quic", "streams of quic-go", listenQUIC, dialQUIC, true},
	{"pool", "plain TLS 1.3 connections, used again for one flow after the other", listenPool, dialPool, false},
	{"tls", "a plain TLS 1.3 connection for each flow, sessions resumed", listenTLS, dialTLS, false},
}

// Find returns the kind of that name.
func Find(name string) (Kind, error) {
	if i := slices.IndexFunc(Kinds, func(k Kind) bool { return k.Name == name }); i >= 0 {
		return Kinds[i], nil
	}
	return Kind{}, fmt.Errorf("unknown carrier %q", name)
}

// serverTLS is the ingress's own configuration, with session tickets: a carrier
// that makes many connections is not to pay for that decoynet needs none.
func serverTLS(id *pki.Identity, protocols ...string) *tls.Config {
	cfg := id.IngressTLS(func(string, uint32) error { return nil })
	cfg.SessionTicketsDisabled = false
	cfg.NextProtos = protocols
	return cfg
}

func clientTLS(id *pki.Identity, protocols ...string) *tls.Config {
	cfg := id.GatewayTLS(ServerNode)
	cfg.ServerName = ServerNode // the key of the session cache
	cfg.ClientSessionCache = tls.NewLRUClientSessionCache(1024)
	cfg.NextProtos = protocols
	return cfg
}

// readHeader reads what a flow without a place for headers begins with.
func readHeader(r io.Reader) ([]byte, error) {
	header := make([]byte, HeaderSize)
	_, err := io.ReadFull(r, header)
	return header, err
}
