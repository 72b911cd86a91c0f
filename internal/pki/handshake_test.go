package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/url"
	"slices"
	"testing"
	"time"
)

// A world is two controllers with nodes of theirs.
type world struct {
	ca, other *CA
	hq, crm   *Identity // of ca; hq runs the gateway, crm is an agent
	stranger  *Identity // of other, called hq too
	old       *Identity // of ca, expired an hour ago
	ancient   *Identity // of ca, expired longer ago than RenewGrace
	early     *Identity // of ca, valid from tomorrow
}

func makeWorld(t *testing.T) *world {
	now := time.Now()
	w := &world{ca: makeCA(t), other: makeCA(t)}
	w.hq = enrol(t, w.ca, "hq", 1, now)
	w.crm = enrol(t, w.ca, "crm-1", 3, now)
	w.stranger = enrol(t, w.other, "hq", 1, now)
	w.old = enrol(t, w.ca, "crm-1", 3, now.Add(-NodeLifetime-time.Hour))
	w.ancient = enrol(t, w.ca, "crm-1", 3, now.Add(-NodeLifetime-RenewGrace-time.Hour))
	w.early = enrol(t, w.ca, "crm-1", 3, now.Add(Backdate+24*time.Hour))
	return w
}

// with returns the client's configuration with another identity shown.
func with(cfg *tls.Config, shown *tls.Certificate) *tls.Config {
	cfg = cfg.Clone()
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return shown, nil }
	return cfg
}

// serving returns a server's configuration with another certificate shown.
func serving(cfg *tls.Config, shown *tls.Certificate) *tls.Config {
	cfg = cfg.Clone()
	cfg.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return shown, nil }
	return cfg
}

// errRevoked is what a gateway's table says of an old generation.
var errRevoked = errors.New("generation 3 was revoked")

func generations(want map[string]uint32) func(string, uint32) error {
	return func(node string, generation uint32) error {
		if want[node] != generation {
			return errRevoked
		}
		return nil
	}
}

// TestHandshakes goes through who may talk to whom. Where one side refuses, both
// must be able to tell a person why: the one in its own words, the other by what
// the alert says.
func TestHandshakes(t *testing.T) {
	w := makeWorld(t)
	allow := generations(map[string]uint32{"crm-1": 3, "hq": 1})
	revoked := generations(map[string]uint32{"crm-1": 4})
	controller := func() *tls.Config { return w.ca.ControllerTLS([]string{"hq.example.com", "192.0.2.1"}) }
	ingress := func() *tls.Config { return w.hq.IngressTLS(allow) }
	twoNames := resign(t, w.ca, func(c *x509.Certificate) {
		c.URIs = []*url.URL{nodeURI("crm-1", 3), nodeURI("hq", 1)}
	})
	noName := resign(t, w.ca, func(*x509.Certificate) {})
	clientOnly := resign(t, w.ca, func(c *x509.Certificate) {
		c.URIs = []*url.URL{nodeURI("hq", 1)}
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	})
	posing := resign(t, w.ca, func(c *x509.Certificate) { // a controller that dials
		c.URIs = []*url.URL{controllerURI()}
	})
	none := &tls.Certificate{}

	tests := []struct {
		name           string
		server, client *tls.Config
		fits           []any  // sentinels of the side that refuses
		refuses        string // client or server; empty where both are content
		says, told     string // what Explain says on the refusing side, and on the other
	}{
		{name: "node at controller", server: controller(), client: w.crm.ControllerTLS()},
		{name: "expired node at controller", server: controller(), client: w.old.ControllerTLS()},
		{name: "nobody at controller", server: controller(), client: with(w.crm.ControllerTLS(), none)},
		{name: "enrolment", server: controller(), client: PinnedTLS(w.ca.Pin())},
		{name: "agent at gateway", server: ingress(), client: w.crm.GatewayTLS("hq")},

		{
			name: "node of another CA at controller", server: controller(), client: with(w.crm.ControllerTLS(), w.stranger.pair.Load()),
			refuses: "server", says: "node hq by another CA", told: "does not let this machine in",
		},
		{
			name: "expired long ago", server: controller(), client: w.ancient.ControllerTLS(),
			refuses: "server", says: "certificate of node crm-1 expired at", told: "does not let this machine in",
		},
		{
			name: "not yet valid at controller", server: controller(), client: w.early.ControllerTLS(),
			refuses: "server", says: "set it (NTP)", told: "does not let this machine in",
		},
		{
			name: "two names", server: controller(), client: with(w.crm.ControllerTLS(), twoNames),
			refuses: "server", says: "names no node", told: "does not let this machine in",
		},
		{
			name: "no name", server: controller(), client: with(w.crm.ControllerTLS(), noName),
			refuses: "server", says: "names no node", told: "does not let this machine in",
		},
		{
			name: "controller of another CA", server: w.other.ControllerTLS(nil), client: w.crm.ControllerTLS(),
			refuses: "client", says: "the controller by another CA", told: "does not let this machine in",
		},
		{
			name: "node posing as controller", server: serving(controller(), w.crm.pair.Load()), client: w.hq.ControllerTLS(),
			refuses: "client", fits: []any{ErrNotController}, says: "node crm-1 answered where the controller should be", told: "does not let this machine in",
		},
		{
			name: "wrong pin", server: controller(), client: PinnedTLS(w.other.Pin()),
			refuses: "client", says: "has the fingerprint " + w.ca.Pin() + ", the command says " + w.other.Pin(), told: "does not let this machine in",
		},
		{
			name: "no pin", server: controller(), client: PinnedTLS("sha256:00"),
			refuses: "client", says: "bad pin", told: "does not let this machine in",
		},
		{
			name: "pinned, but no CA shown", server: serving(controller(), w.hq.pair.Load()), client: PinnedTLS(w.ca.Pin()),
			refuses: "client", says: "no decoynet controller", told: "does not let this machine in",
		},
		{
			name:   "pinned, node posing as controller",
			server: serving(controller(), keyPair(w.hq.key, w.hq.pair.Load().Leaf, w.ca.cert)), client: PinnedTLS(w.ca.Pin()),
			refuses: "client", fits: []any{ErrNotController}, says: "node hq answered", told: "does not let this machine in",
		},
		{
			// The CA's certificate is public: who shows it must have been signed by it.
			name:   "pinned, the CA behind another's certificate",
			server: serving(controller(), keyPair(w.stranger.key, w.stranger.pair.Load().Leaf, w.ca.cert)), client: PinnedTLS(w.ca.Pin()),
			refuses: "client", says: "by another CA", told: "does not let this machine in",
		},
		{
			name: "agent posing as gateway", server: w.crm.IngressTLS(allow), client: w.hq.GatewayTLS("hq"),
			refuses: "client", says: "node crm-1 answered where node hq should be", told: "does not let this machine in",
		},
		{
			name: "controller posing as gateway", server: serving(ingress(), posing), client: w.crm.GatewayTLS("hq"),
			refuses: "client", says: "the controller answered where node hq", told: "does not let this machine in",
		},
		{
			name: "gateway of another CA", server: w.stranger.IngressTLS(allow), client: w.crm.GatewayTLS("hq"),
			refuses: "client", says: "node hq by another CA", told: "does not let this machine in",
		},
		{
			name: "gateway with a client's certificate", server: serving(ingress(), clientOnly), client: w.crm.GatewayTLS("hq"),
			refuses: "client", says: "incompatible key usage", told: "does not let this machine in",
		},
		{
			name: "expired gateway", server: serving(ingress(), w.old.pair.Load()), client: w.hq.GatewayTLS("crm-1"),
			refuses: "client", says: "node crm-1 expired at", told: "does not let this machine in",
		},
		{
			name: "agent of another CA at gateway", server: ingress(), client: with(w.crm.GatewayTLS("hq"), w.stranger.pair.Load()),
			refuses: "server", says: "by a CA that this machine does not trust", told: "enrolled with different controllers",
		},
		{
			name: "expired agent at gateway", server: ingress(), client: w.old.GatewayTLS("hq"),
			refuses: "server", says: "node crm-1 expired at", told: "it expired and must be renewed",
		},
		{
			name: "early agent at gateway", server: ingress(), client: w.early.GatewayTLS("hq"),
			refuses: "server", says: "not valid yet by this machine's clock", told: "one of the two clocks is wrong",
		},
		{
			name: "nobody at gateway", server: ingress(), client: with(w.crm.GatewayTLS("hq"), none),
			refuses: "server", says: "it is no enrolled node", told: "this machine showed none",
		},
		{
			name: "revoked generation", server: w.hq.IngressTLS(revoked), client: w.crm.GatewayTLS("hq"),
			refuses: "server", fits: []any{errRevoked}, says: "node crm-1 was refused: generation 3 was revoked", told: "its certificate was revoked",
		},
		{
			name: "controller dials gateway", server: ingress(), client: with(w.crm.GatewayTLS("hq"), posing),
			refuses: "server", says: "names no node", told: "does not let this machine in",
		},
		{
			name: "gateway with TLS 1.2", server: &tls.Config{MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{*w.hq.pair.Load()}},
			client: w.crm.GatewayTLS("hq"), refuses: "server", says: "speaks no TLS 1.3", told: "speaks no TLS 1.3",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := shake(t, tt.server, tt.client)
			refusing, other := got.server, got.client
			switch tt.refuses {
			case "":
				if got.client != nil || got.server != nil {
					t.Fatalf("client: %v, server: %v; want a connection", got.client, got.server)
				}
				if got.clientState.Version != tls.VersionTLS13 {
					t.Errorf("TLS version %x, want 1.3", got.clientState.Version)
				}
				return
			case "client":
				refusing, other = got.client, got.server
			}
			if refusing == nil || other == nil {
				t.Fatalf("client: %v, server: %v; want no connection", got.client, got.server)
			}
			for _, want := range tt.fits {
				if !errors.Is(refusing, want.(error)) {
					t.Errorf("error %v is not %v", refusing, want)
				}
			}
			mentions(t, "refusing side", Explain(refusing), tt.says)
			mentions(t, "other side", Explain(other), tt.told)
		})
	}
}

// TestPeerNode shows what a service learns of its peer.
func TestPeerNode(t *testing.T) {
	w := makeWorld(t)
	for _, tt := range []struct {
		name    string
		client  *tls.Config
		node    string
		expired bool
		err     error
	}{
		{name: "node", client: w.crm.ControllerTLS(), node: "crm-1"},
		{name: "expired node", client: w.old.ControllerTLS(), node: "crm-1", expired: true},
		{name: "nobody", client: PinnedTLS(w.ca.Pin()), err: ErrNoCertificate},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := shake(t, w.ca.ControllerTLS(nil), tt.client)
			if got.client != nil || got.server != nil {
				t.Fatalf("client: %v, server: %v", got.client, got.server)
			}
			node, generation, err := PeerNode(got.serverState)
			if !errors.Is(err, tt.err) || node != tt.node {
				t.Fatalf("peer is node %q (%v), want %q (%v)", node, err, tt.node, tt.err)
			}
			if tt.node == "" {
				return
			}
			if generation != 3 {
				t.Errorf("generation %d, want 3", generation)
			}
			if got := Expired(got.serverState.PeerCertificates[0], time.Now()); got != tt.expired {
				t.Errorf("expired: %v, want %v", got, tt.expired)
			}
		})
	}
}

// TestClockOff sets one side's clock and lets both talk: hours must not matter,
// days must be called what they are.
func TestClockOff(t *testing.T) {
	for _, tt := range []struct {
		off  time.Duration
		says string
	}{
		{off: -20 * time.Hour},
		{off: -time.Hour},
		{off: time.Hour},
		{off: 11 * time.Hour},
		{off: -20 * 365 * 24 * time.Hour, says: "clock of this machine is behind"},
		{off: -48 * time.Hour, says: "clock of this machine is behind"},
		{off: 30 * 24 * time.Hour, says: "by this machine's clock"},
	} {
		t.Run(tt.off.String(), func(t *testing.T) {
			ca := makeCA(t)
			now := func() time.Time { return time.Now().Add(tt.off) }
			i := enrol(t, ca, "crm-1", 1, time.Now())
			i.now = now
			for name, client := range map[string]*tls.Config{
				"enrolment": pinnedTLS(ca.Pin(), now), "controller": i.ControllerTLS(),
			} {
				got := shake(t, ca.ControllerTLS(nil), client)
				switch {
				case tt.says == "" && got.client != nil:
					t.Errorf("%s: %v", name, got.client)
				case tt.says != "":
					var off *TimeError
					if !errors.As(got.client, &off) {
						t.Errorf("%s: %v; want a TimeError", name, got.client)
					}
					mentions(t, name, Explain(got.client), tt.says)
				}
			}
		})
	}
}

// TestNoResumption shows that a second connection shows its certificate again,
// also where the client would rather not: a revocation in between counts.
func TestNoResumption(t *testing.T) {
	w := makeWorld(t)
	table := map[string]uint32{"crm-1": 3}
	server := w.hq.IngressTLS(func(node string, generation uint32) error { return generations(table)(node, generation) })
	client := w.crm.GatewayTLS("hq")
	client.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	client.ServerName = "hq"
	for range 3 {
		got := shake(t, server, client)
		if got.client != nil || got.server != nil {
			t.Fatalf("client: %v, server: %v", got.client, got.server)
		}
		if got.clientState.DidResume || got.serverState.DidResume {
			t.Fatal("the session was resumed")
		}
	}
	table["crm-1"] = 4
	if got := shake(t, server, client); got.client == nil || !errors.Is(got.server, errRevoked) {
		t.Errorf("after the revocation: client %v, server %v", got.client, got.server)
	}
}

// TestControllerRenews lets a controller's clock run for a year.
func TestControllerRenews(t *testing.T) {
	now := time.Now()
	ca, err := newCA(func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	client := pinnedTLS(ca.Pin(), func() time.Time { return now })
	server := ca.ControllerTLS([]string{"https://hq.example.com:7443", "192.0.2.1:7443", "bad host", "[2001:db8::1]"})
	var serials []string
	for range 2 * 365 {
		cert, err := server.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if left := cert.Leaf.NotAfter.Sub(now); left < ControllerLifetime/2 {
			t.Fatalf("at %v the certificate has %v left", now, left)
		}
		if s := cert.Leaf.SerialNumber.String(); !slices.Contains(serials, s) {
			serials = append(serials, s)
		}
		now = now.Add(12 * time.Hour)
	}
	if want := 365 * 2 / 7; len(serials) < want-1 || len(serials) > want+2 {
		t.Errorf("%d certificates in a year, want about %d", len(serials), want)
	}
	if got := shake(t, server, client); got.client != nil {
		t.Errorf("after a year: %v", got.client)
	}
	// A clock that jumps back: the certificate of the future is of no use.
	now = now.Add(-90 * 24 * time.Hour)
	if got := shake(t, server, client); got.client != nil {
		t.Errorf("after the clock was set back: %v", got.client)
	}
	cert, _ := server.GetCertificate(nil)
	if want := []string{"localhost", "hq.example.com"}; !slices.Equal(cert.Leaf.DNSNames, want) {
		t.Errorf("names %v, want %v", cert.Leaf.DNSNames, want)
	}
	now = now.Add(CALifetime)
	got := shake(t, server, client)
	mentions(t, "CA's end, server", Explain(got.server), "needs a new CA")
	mentions(t, "CA's end, client", Explain(got.client), "fault of its own")
}
