package enrolled

import (
	"context"
	"net"
	"sync"
	"time"

	"decoynet/deception"
	"decoynet/internal/outbound"
	"decoynet/internal/pki"
	"decoynet/internal/tunnel"
)

// gatewayTimeout bounds the attempts to reach the gateways, the handshake included.
const gatewayTimeout = 10 * time.Second

// callGateways connects to every address of every gateway that the node's flows may
// leave by, as the agent does, and carries no flow.
func callGateways(ctx context.Context, state *deception.State, identity *pki.Identity, way *outbound.Dialer) []Gateway {
	if state == nil || !state.Tunnels() {
		return nil
	}
	var out []Gateway
	var list []deception.Gateway
	for _, g := range state.Gateways {
		addresses := g.Addresses
		if len(addresses) == 0 {
			addresses = []string{g.Listen.String()}
		}
		for _, at := range addresses {
			out = append(out, Gateway{Name: g.Name, Node: g.Node, Address: at})
			list = append(list, deception.Gateway{Name: g.Name, Node: g.Node, Addresses: []string{at}})
		}
	}
	dials := &dialed{way: way, errs: map[string]error{}}
	client := tunnel.NewClient(tunnel.ClientConfig{
		TLS: identity.GatewayTLS, Dial: dials.dial, Connections: 1, Explain: pki.Explain,
	})
	defer client.Close()
	client.SetGateways(list)
	ctx, cancel := context.WithTimeout(ctx, gatewayTimeout)
	defer cancel()
	for again := true; again; {
		again = false
		for i, s := range client.Status() {
			g := &out[i]
			switch err, tried := dials.of(g.Address); {
			case g.Connected || g.Text != "": // it is known
			case s.Connected:
				g.Connected = true
			case tried && s.Address != "": // set by an attempt that is over
				g.Dial, g.Text = err, s.Err
			default:
				again = true
			}
			g.RoundTrip = max(g.RoundTrip, s.RoundTrip)
		}
		select {
		case <-ctx.Done():
			again = false
		case <-time.After(20 * time.Millisecond):
		}
	}
	for i := range out {
		if g := &out[i]; !g.Connected && g.Text == "" {
			g.Text = g.Address + " took the connection and did not answer in time"
			if g.Dial, _ = dials.of(g.Address); g.Dial != nil {
				g.Text = pki.Explain(g.Dial)
			}
		}
	}
	return out
}

// dialed keeps what came of dialing each address.
type dialed struct {
	way *outbound.Dialer

	mu   sync.Mutex // guards errs
	errs map[string]error
}

func (d *dialed) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := d.way.DialContext(ctx, network, address)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.errs[address] = err
	return conn, err
}

func (d *dialed) of(address string) (err error, tried bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	err, tried = d.errs[address]
	return err, tried
}
