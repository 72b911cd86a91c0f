package tunnel

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"decoynet/deception"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what has to happen.
const patience = 20 * time.Second

// authority is a certificate authority for one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{cert: cert, key: key, pool: x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

// node makes a certificate for a node.
func (a *authority) node(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) serverTLS(t testing.TB, node string) *tls.Config {
	return &tls.Config{
		Certificates: []tls.Certificate{a.node(t, node)},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: a.pool,
	}
}

// clientTLS returns what ClientConfig.TLS wants, for an agent on the node.
func (a *authority) clientTLS(t testing.TB, node string) func(string) *tls.Config {
	cert := a.node(t, node)
	return func(gateway string) *tls.Config {
		return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: a.pool, ServerName: gateway}
	}
}

// peerName is the name in the certificate of a connection.
func peerName(state tls.ConnectionState) (string, error) {
	return state.PeerCertificates[0].Subject.CommonName, nil
}

// bench of one ingress on loopback: what most tests start from.
type site struct {
	t       testing.TB
	ca      *authority
	server  *Server
	address netip.AddrPort

	mu      sync.Mutex
	refused []error
}

// newSite starts an ingress on node "hq".
func newSite(t testing.TB, serve func(node string, s *Stream)) *site {
	t.Helper()
	return startSite(t, newAuthority(t), "hq", loopback, serve)
}

func startSite(t testing.TB, ca *authority, node string, at netip.AddrPort, serve func(node string, s *Stream)) *site {
	t.Helper()
	st := &site{t: t, ca: ca}
	st.server = NewServer(ServerConfig{
		TLS: ca.serverTLS(t, node), Node: peerName, Serve: serve,
		Refused: func(_ netip.AddrPort, err error) {
			st.mu.Lock()
			defer st.mu.Unlock()
			st.refused = append(st.refused, err)
		},
	})
	l := listen(t, at)
	st.address = l.Addr().(*net.TCPAddr).AddrPort()
	served := make(chan error, 1)
	go func() { served <- st.server.Serve(l) }()
	t.Cleanup(func() {
		st.server.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return st
}

func listen(t testing.TB, at netip.AddrPort) net.Listener {
	t.Helper()
	var l net.Listener
	var err error
	eventually(t, "listen on "+at.String(), func() bool {
		l, err = net.Listen("tcp", at.String())
		return err == nil
	})
	return l
}

func (st *site) refusals() []error {
	st.mu.Lock()
	defer st.mu.Unlock()
	return append([]error(nil), st.refused...)
}

// gateway is the site as a client knows it, reached at an address.
func (st *site) gateway(name string, at ...netip.AddrPort) deception.Gateway {
	g := deception.Gateway{Name: name, Node: "hq", Listen: st.address}
	for _, a := range at {
		g.Addresses = append(g.Addresses, a.String())
	}
	return g
}

// client starts a client of the gateways, as node crm-1.
func (st *site) client(list ...deception.Gateway) *Client {
	st.t.Helper()
	return st.clientWith(ClientConfig{}, list...)
}

func (st *site) clientWith(cfg ClientConfig, list ...deception.Gateway) *Client {
	st.t.Helper()
	if cfg.TLS == nil {
		cfg.TLS = st.ca.clientTLS(st.t, "crm-1")
	}
	c := NewClient(cfg)
	st.t.Cleanup(c.Close)
	if len(list) == 0 {
		list = []deception.Gateway{st.gateway("gw1")}
	}
	c.SetGateways(list)
	return c
}

func open(t testing.TB, c *Client, header string, datagrams bool) *Stream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := c.Open(ctx, []byte(header), datagrams)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return s
}

// eventually waits until ok is true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after %v still not: %s", patience, what)
		}
	}
}

// within fails the test if f has not returned in time. It must not call Fatal.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("after %v still running: %s", patience, what)
	}
}

// echo sends back what it reads, and ends as the peer does.
func echo(_ string, s *Stream) {
	buf := make([]byte, 64<<10)
	for {
		n, err := s.Read(buf)
		if err != nil {
			if err == io.EOF {
				s.CloseWrite()
			}
			return
		}
		if _, err := s.Write(buf[:n]); err != nil {
			return
		}
	}
}

// exchange sends a line, half-closes, and wants it back.
func exchange(t testing.TB, s *Stream, text string) {
	t.Helper()
	within(t, "exchange", func() {
		var both sync.WaitGroup
		both.Go(func() {
			if _, err := io.WriteString(s, text); err != nil {
				t.Errorf("write: %v", err)
			}
			if err := s.CloseWrite(); err != nil {
				t.Errorf("close: %v", err)
			}
		})
		got, err := io.ReadAll(s)
		if err != nil || !bytes.Equal(got, []byte(text)) {
			t.Errorf("read %d bytes, %v; want %d", len(got), err, len(text))
		}
		both.Wait()
	})
}

// endsWith wants the error of a stream to be a reset with the reason.
func endsWith(t testing.TB, err error, reason deception.EndReason) {
	t.Helper()
	var reset *ResetError
	if !errors.As(err, &reset) || reset.Reason != reason {
		t.Errorf("the stream ended with %v; want a reset with reason %q", err, reason)
	}
}
