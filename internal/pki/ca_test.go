package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func write(t testing.TB, dir, name string, text []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestOpenSSLReads has openssl say what is in the certificates and whether they
// belong together.
func TestOpenSSLReads(t *testing.T) {
	dir := t.TempDir()
	ca, other := makeCA(t), makeCA(t)
	caText, caKey, err := ca.PEM()
	if err != nil {
		t.Fatal(err)
	}
	caPath := write(t, dir, "ca.pem", caText)
	keyPath := write(t, dir, "ca.key", caKey)
	otherPath := write(t, dir, "other.pem", certPEM(other.cert.Raw))
	node := enrol(t, ca, "crm-1.example.com", 7, time.Now())
	leaf, _ := node.Certificate()
	nodePath := write(t, dir, "node.pem", certPEM(leaf.Raw))
	server, err := ca.signController([]string{"hq.example.com", "192.0.2.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	serverPath := write(t, dir, "server.pem", certPEM(server.Leaf.Raw))

	text := func(path string) string {
		out, err := openssl(t, "", "x509", "-in", path, "-noout", "-text")
		if err != nil {
			t.Fatalf("openssl x509: %v: %s", err, out)
		}
		return out
	}
	mentions(t, "CA", text(caPath), "CA:TRUE, pathlen:0", "Certificate Sign", "prime256v1", "CN = decoynet CA ")
	mentions(t, "node", text(nodePath), "URI:decoynet://node/crm-1.example.com?generation=7",
		"TLS Web Client Authentication, TLS Web Server Authentication", "CA:FALSE", "prime256v1", "CN = crm-1.example.com")
	mentions(t, "controller", text(serverPath), "URI:decoynet://controller", "DNS:hq.example.com", "IP Address:192.0.2.1",
		"DNS:localhost", "IP Address:127.0.0.1")
	if strings.Contains(text(serverPath), "TLS Web Client Authentication") {
		t.Error("the controller's certificate can be shown to an ingress gateway")
	}

	print, _ := openssl(t, "", "x509", "-in", caPath, "-noout", "-fingerprint", "-sha256")
	_, digest, _ := strings.Cut(strings.TrimSpace(print), "=")
	if pin, err := ParsePin("sha256:" + digest); err != nil || pin != ca.Pin() {
		t.Errorf("openssl's fingerprint %q is %q (%v), ours %q", digest, pin, err, ca.Pin())
	}
	if out, err := openssl(t, "", "pkey", "-in", keyPath, "-noout", "-check"); err != nil {
		t.Errorf("openssl pkey: %s", out)
	}
	for _, tt := range []struct {
		ca, cert, purpose string
		ok                bool
	}{
		{caPath, nodePath, "sslclient", true},
		{caPath, nodePath, "sslserver", true},
		{caPath, serverPath, "sslserver", true},
		{caPath, serverPath, "sslclient", false},
		{otherPath, nodePath, "sslclient", false},
	} {
		out, err := openssl(t, "", "verify", "-x509_strict", "-purpose", tt.purpose, "-CAfile", tt.ca, tt.cert)
		if (err == nil) != tt.ok {
			t.Errorf("openssl verify -purpose %s of %s by %s: %s", tt.purpose, filepath.Base(tt.cert), filepath.Base(tt.ca), out)
		}
	}
}

// TestOpenSSLTalks has openssl's client at a controller's port.
func TestOpenSSLTalks(t *testing.T) {
	dir := t.TempDir()
	ca, other := makeCA(t), makeCA(t)
	caPath := write(t, dir, "ca.pem", certPEM(ca.cert.Raw))
	identity := func(name string, of *CA, made time.Time) (cert, key string) {
		i := enrol(t, of, "crm-1", 1, made)
		text, err := keyPEM(i.key)
		if err != nil {
			t.Fatal(err)
		}
		return write(t, dir, name+".pem", certPEM(i.pair.Load().Leaf.Raw)), write(t, dir, name+".key", text)
	}
	good, goodKey := identity("good", ca, time.Now())
	old, oldKey := identity("old", ca, time.Now().Add(-2*NodeLifetime))
	bad, badKey := identity("bad", other, time.Now())

	l := listen(t)
	server := ca.ControllerTLS([]string{"hq.example.com"})
	served := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-served })
	go func() {
		defer close(served)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			greet(c, server)
		}
	}()
	base := []string{"s_client", "-connect", l.Addr().String(), "-CAfile", caPath, "-verify_return_error", "-ign_eof"}
	for _, tt := range []struct {
		name string
		args []string
		ok   bool
		says []string
	}{
		{"host name", []string{"-verify_hostname", "hq.example.com"}, true, []string{"Verify return code: 0 (ok)", "TLSv1.3", "greetings, nobody"}},
		{"address", []string{"-verify_ip", "127.0.0.1"}, true, []string{"Verify return code: 0 (ok)"}},
		{"another host", []string{"-verify_hostname", "evil.example.com"}, false, []string{"hostname mismatch"}},
		{"node", []string{"-cert", good, "-key", goodKey}, true, []string{"greetings, crm-1"}},
		{"expired node", []string{"-cert", old, "-key", oldKey}, true, []string{"greetings, crm-1"}},
		{"another CA's", []string{"-cert", bad, "-key", badKey}, false, []string{"alert bad certificate"}},
		{"TLS 1.2", []string{"-tls1_2"}, false, []string{"alert protocol version"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := openssl(t, "", append(base, tt.args...)...)
			if tt.ok && err != nil {
				t.Errorf("openssl s_client: %v", err)
			}
			mentions(t, "openssl s_client", out, tt.says...)
			if strings.Contains(out, "Post-Handshake New Session Ticket") {
				t.Error("the server gives session tickets")
			}
			if !tt.ok && strings.Contains(out, "greetings") {
				t.Errorf("served nevertheless: %s", out)
			}
		})
	}
}

// greet is a service that says whom it sees.
func greet(raw net.Conn, cfg *tls.Config) {
	defer raw.Close()
	raw.SetDeadline(time.Now().Add(patience))
	c := tls.Server(raw, cfg)
	if c.Handshake() != nil {
		return
	}
	node, _, err := PeerNode(c.ConnectionState())
	if errors.Is(err, ErrNoCertificate) {
		node = "nobody"
	}
	io.WriteString(c, "greetings, "+node+"\n")
	c.Close()
}

func TestLoadCA(t *testing.T) {
	ca := makeCA(t)
	cert, key, err := ca.PEM()
	if err != nil {
		t.Fatal(err)
	}
	again, err := LoadCA(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	if again.Pin() != ca.Pin() {
		t.Errorf("pin %s, want %s", again.Pin(), ca.Pin())
	}
	// What the one signed, the other knows.
	if got := shake(t, again.ControllerTLS(nil), enrol(t, ca, "hq", 1, time.Now()).ControllerTLS()); got.client != nil {
		t.Error(got.client)
	}

	_, otherKey, _ := makeCA(t).PEM()
	node := enrol(t, ca, "hq", 1, time.Now())
	nodeKey, _ := keyPEM(node.key)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaDER, _ := x509.MarshalPKCS8PrivateKey(rsaKey)
	rsaText := strings.ReplaceAll(string(certPEM(rsaDER)), certBlock, keyBlock)
	for name, tt := range map[string]struct{ cert, key, says string }{
		"other key":     {string(cert), string(otherKey), "does not belong"},
		"node's":        {string(certPEM(node.pair.Load().Leaf.Raw)), string(nodeKey), "no CA's"},
		"empty":         {"", string(key), "it is empty"},
		"cut":           {string(cert[:len(cert)/2]), string(key), "no whole PEM block"},
		"exchanged":     {string(key), string(cert), "not \"CERTIFICATE\""},
		"two":           {string(cert) + string(cert), string(key), "something follows"},
		"RSA key":       {string(cert), rsaText, "not ECDSA P-256"},
		"garbage in it": {"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", string(key), "x509"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := LoadCA([]byte(tt.cert), []byte(tt.key))
			if err == nil {
				t.Fatal("loaded")
			}
			mentions(t, "error", err.Error(), tt.says)
		})
	}
}

func TestSignNode(t *testing.T) {
	ca := makeCA(t)
	now := time.Now()
	key, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	csr384, _ := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, p384)
	forged := append([]byte(nil), csr...)
	forged[len(forged)-1] ^= 1
	for name, tt := range map[string]struct {
		csr        []byte
		node, says string
	}{
		"forged":        {forged, "hq", "not signed by its own key"},
		"other curve":   {csr384, "hq", "not ECDSA P-256"},
		"garbage":       {[]byte("garbage"), "hq", "read certificate request of node hq"},
		"cut":           {csr[:len(csr)-3], "hq", "read certificate request"},
		"trailing":      {append(append([]byte(nil), csr...), 0), "hq", "read certificate request"},
		"no name":       {csr, "", "bad node name"},
		"path in name":  {csr, "a/b", "bad node name"},
		"query in name": {csr, "a?generation=9", "bad node name"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ca.SignNode(tt.csr, tt.node, 1, 0, now)
			if err == nil {
				t.Fatal("signed")
			}
			mentions(t, "error", err.Error(), tt.says)
		})
	}

	// A request full of names and wishes: nothing of it gets through.
	greedy, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject:  pkix.Name{CommonName: "root", OrganizationalUnit: []string{"admins"}},
		DNSNames: []string{"hq.example.com"}, IPAddresses: []net.IP{net.IPv4(192, 0, 2, 1)},
		EmailAddresses: []string{"root@example.com"}, URIs: []*url.URL{controllerURI()},
		ExtraExtensions: []pkix.Extension{{Id: []int{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}}, // CA:TRUE
	}, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.SignNode(greedy, "crm-1", 2, 0, now)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if node, generation, err := NodeOf(cert); node != "crm-1" || generation != 2 || err != nil {
		t.Errorf("node %q, generation %d, %v", node, generation, err)
	}
	if cert.IsCA || len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses) != 0 || len(cert.URIs) != 1 ||
		cert.Subject.CommonName != "crm-1" || cert.Subject.OrganizationalUnit != nil {
		t.Errorf("the request's wishes are in the certificate: %+v", cert)
	}
	if got := cert.NotAfter.Sub(now).Round(time.Minute); got != NodeLifetime {
		t.Errorf("lifetime %v", got)
	}
	if got := now.Sub(cert.NotBefore).Round(time.Minute); got != Backdate {
		t.Errorf("backdated %v", got)
	}

	// Near the CA's end, and after it.
	last := ca.cert.NotAfter
	der, err = ca.SignNode(csr, "hq", 1, 0, last.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if cert, _ = x509.ParseCertificate(der); !cert.NotAfter.Equal(last) {
		t.Errorf("certificate until %v, the CA until %v", cert.NotAfter, last)
	}
	var over *TimeError
	if _, err := ca.SignNode(csr, "hq", 1, 0, last.Add(time.Hour)); !errors.As(err, &over) {
		t.Errorf("signed by an expired CA: %v", err)
	}
}

// TestNodeOf is about spelling: there is one way to write a node's name, and all
// else is nobody.
func TestNodeOf(t *testing.T) {
	for _, tt := range []struct {
		uris       []string
		node       string
		generation uint32
	}{
		{uris: []string{"decoynet://node/crm-1?generation=3"}, node: "crm-1", generation: 3},
		{uris: []string{"decoynet://node/CRM.example.com?generation=4294967295"}, node: "CRM.example.com", generation: 1<<32 - 1},
		{uris: []string{"spiffe://x/y", "decoynet://node/hq?generation=0"}, node: "hq"},
		{uris: nil},
		{uris: []string{"decoynet://controller"}},
		{uris: []string{"decoynet://node/hq"}},
		{uris: []string{"decoynet://node/hq?generation="}},
		{uris: []string{"decoynet://node/hq?generation=-1"}},
		{uris: []string{"decoynet://node/hq?generation=+1"}},
		{uris: []string{"decoynet://node/hq?generation=01"}},
		{uris: []string{"decoynet://node/hq?generation=4294967296"}},
		{uris: []string{"decoynet://node/hq?generation=1&generation=2"}},
		{uris: []string{"decoynet://node/hq?generation=1#x"}},
		{uris: []string{"decoynet://node//hq?generation=1"}},
		{uris: []string{"decoynet://node/hq/x?generation=1"}},
		{uris: []string{"decoynet://node/%68q?generation=1"}},
		{uris: []string{"decoynet://user@node/hq?generation=1"}},
		{uris: []string{"decoynet://node:1/hq?generation=1"}},
		{uris: []string{"decoynet://node/?generation=1"}},
		{uris: []string{"decoynet://other/hq?generation=1"}},
		{uris: []string{"decoynet:node/hq?generation=1"}},
		{uris: []string{"decoynet://node/hq?generation=1", "decoynet://node/hq?generation=1"}},
		{uris: []string{"decoynet://node/hq?generation=1", "decoynet://controller"}},
	} {
		cert := &x509.Certificate{}
		for _, s := range tt.uris {
			u, err := url.Parse(s)
			if err != nil {
				t.Fatal(err)
			}
			cert.URIs = append(cert.URIs, u)
		}
		node, generation, err := NodeOf(cert)
		if node != tt.node || generation != tt.generation || (err == nil) != (tt.node != "") {
			t.Errorf("%v: node %q, generation %d, %v; want %q, %d", tt.uris, node, generation, err, tt.node, tt.generation)
		}
		if err != nil && !errors.Is(err, ErrNotNode) {
			t.Errorf("%v: %v is not ErrNotNode", tt.uris, err)
		}
	}
	if _, _, err := NodeOf(nil); !errors.Is(err, ErrNoCertificate) {
		t.Errorf("no certificate: %v", err)
	}
}

func TestParsePin(t *testing.T) {
	pin := makeCA(t).Pin()
	for _, s := range []string{pin, strings.ToUpper(pin), " " + pin + "\n"} {
		if got, err := ParsePin(s); got != pin || err != nil {
			t.Errorf("ParsePin(%q) = %q, %v", s, got, err)
		}
	}
	for _, s := range []string{"", "sha256:", pin[:len(pin)-1], pin + "0", pin[len("sha256:"):], "sha1:" + pin[7:], "sha256:" + strings.Repeat("g", 64)} {
		if got, err := ParsePin(s); err == nil {
			t.Errorf("ParsePin(%q) = %q", s, got)
		}
	}
}
