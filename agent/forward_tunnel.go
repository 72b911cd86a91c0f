package agent

import (
	"context"

	"decoynet/internal/pump"
	"decoynet/internal/tunnel"
)

// Tunnel makes an Upstream of a tunnel's client. The client is the caller's, to
// give its gateways to and to close.
func Tunnel(c *tunnel.Client) Upstream { return tunnelUpstream{c} }

type tunnelUpstream struct{ client *tunnel.Client }

func (t tunnelUpstream) Open(ctx context.Context, header []byte, datagrams bool) (pump.Stream, error) {
	s, err := t.client.Open(ctx, header, datagrams)
	if err != nil {
		return nil, err
	}
	return pump.NewTunnel(s), nil
}

func (t tunnelUpstream) Gateways() []GatewayLink {
	var out []GatewayLink
	for _, s := range t.client.Status() {
		out = append(out, GatewayLink{
			Name: s.Gateway, Address: s.Address, Connected: s.Connected, RoundTrip: s.RoundTrip, Problem: s.Err,
		})
	}
	return out
}
