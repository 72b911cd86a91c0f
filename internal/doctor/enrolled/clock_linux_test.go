package enrolled_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/doctor"
	"decoynet/internal/doctor/enrolled"
	"decoynet/internal/pki"
)

// home is a certificate authority, and a node of it with a controller's URL.
type home struct {
	ca   *pki.CA
	data string
}

func newHome(t *testing.T, url string, ttl time.Duration, signed time.Time) home {
	t.Helper()
	ca, err := pki.NewCA()
	check(t, err)
	key, csr, err := pki.NewRequest()
	check(t, err)
	der, err := ca.SignNode(csr, "crm-1", 1, ttl, signed)
	check(t, err)
	id, err := pki.NewIdentity(pki.IdentityConfig{Key: key, Certificate: der, CA: ca.Certificate().Raw, Controllers: []string{url}})
	check(t, err)
	h := home{ca, t.TempDir()}
	check(t, id.Save(h.data))
	return h
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	return l
}

// serve answers as a controller does to a node that it knows.
func serve(t *testing.T, l net.Listener, cfg *tls.Config) {
	t.Helper()
	s := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			if r.Method == http.MethodPost {
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `{"code":"invalid_argument","message":"no JSON"}`)
			}
		}),
		ErrorLog: log.New(io.Discard, "", 0),
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve(tls.NewListener(l, cfg)) // ends with Close
	}()
	t.Cleanup(func() {
		_ = s.Close()
		<-done
	})
}

func examine(t *testing.T, h home, now func() time.Time) []doctor.Finding {
	t.Helper()
	return enrolled.Judge(enrolled.Read(t.Context(), enrolled.Subject{Data: h.data, Now: now}))
}

func TestClock(t *testing.T) {
	l := listen(t)
	h := newHome(t, "https://"+l.Addr().String(), pki.NodeLifetime, time.Now())
	serve(t, l, h.ca.ControllerTLS(nil))
	for off, want := range map[time.Duration]string{
		time.Hour:       "1h0m0s ahead of",
		-40 * time.Hour: "40h0m0s behind",
	} {
		list := examine(t, h, func() time.Time { return time.Now().Add(off) })
		f := must(t, list, "clock", want, setClock)
		if !strings.Contains(f.What, l.Addr().String()) {
			t.Errorf("it does not say whose: %q", f.What)
		}
		gone(t, list, "certificate") // the clock is at fault, not the certificate
	}
	list := examine(t, h, nil)
	gone(t, list, "clock")
	gone(t, list, "controller")
}

// TestNoCertificateCounts has a controller whose certificate begins in the future by
// this machine's clock: the call as the node fails, and the clock is named.
func TestNoCertificateCounts(t *testing.T) {
	l := listen(t)
	h := newHome(t, "https://"+l.Addr().String(), pki.NodeLifetime, time.Now())
	leaf, key := selfMade(t, h.ca, "decoynet://controller", time.Now().Add(48*time.Hour))
	serve(t, l, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf, h.ca.Certificate().Raw}, PrivateKey: key}}})
	list := examine(t, h, func() time.Time { return time.Now().Add(-49 * time.Hour) })
	must(t, list, "clock", "49h0m0s behind", setClock)
	must(t, list, "controller", "no certificate counts by this machine's clock", setClock)
}

// selfMade makes a server's certificate of the CA, or where that is nil, of another.
func selfMade(t *testing.T, ca *pki.CA, uri string, from time.Time) (der []byte, key *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "controller"}, NotBefore: from, NotAfter: from.Add(24 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if uri != "" {
		template.URIs = append(template.URIs, parseURL(t, uri))
	}
	parent, signer := &x509.Certificate{Subject: pkix.Name{CommonName: "Acme TLS inspection"}}, key
	if ca != nil {
		parent, signer = ca.Certificate(), caKey(t, ca)
	}
	der, err = x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	check(t, err)
	return der, key
}

// TestStrangers has somebody else answer at the controller's address.
func TestStrangers(t *testing.T) {
	t.Run("inspection", func(t *testing.T) {
		l := listen(t)
		h := newHome(t, "https://"+l.Addr().String(), pki.NodeLifetime, time.Now())
		leaf, key := selfMade(t, nil, "", time.Now())
		serve(t, l, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf}, PrivateKey: key}}})
		f := must(t, examine(t, h, nil), "controller", `one by "Acme TLS inspection" is shown`, "except "+l.Addr().String()+" from TLS inspection")
		if f.On != "the proxy or firewall that does it" {
			t.Errorf("the fix belongs on %q", f.On)
		}
	})
	t.Run("another controller", func(t *testing.T) {
		l := listen(t)
		h := newHome(t, "https://"+l.Addr().String(), pki.NodeLifetime, time.Now())
		other, err := pki.NewCA()
		check(t, err)
		serve(t, l, other.ControllerTLS(nil))
		must(t, examine(t, h, nil), "controller", "another controller answers there", "decoynet token create --node crm-1")
	})
	t.Run("no TLS", func(t *testing.T) {
		l := listen(t)
		h := newHome(t, "https://"+l.Addr().String(), pki.NodeLifetime, time.Now())
		s := &http.Server{Handler: http.NotFoundHandler()}
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(l) }()
		t.Cleanup(func() { _ = s.Close(); <-done })
		must(t, examine(t, h, nil), "controller", "no TLS is spoken", "decoynet status")
	})
	t.Run("silence", func(t *testing.T) {
		t.Parallel()
		l := listen(t) // the kernel takes the connection
		t.Cleanup(func() { _ = l.Close() })
		h := newHome(t, "https://"+l.Addr().String(), pki.NodeLifetime, time.Now())
		must(t, examine(t, h, nil), "controller", "did not answer in time", "decoynet status")
	})
}

func TestExpired(t *testing.T) {
	l := listen(t)
	h := newHome(t, "https://"+l.Addr().String(), time.Hour, time.Now().Add(-2*time.Hour))
	serve(t, l, h.ca.ControllerTLS(nil))
	list := examine(t, h, nil)
	must(t, list, "certificate", "the certificate expired at", "decoynet up")
	gone(t, list, "controller") // it would renew it

	// No CA is old enough for a certificate that is past renewing.
	now := time.Now()
	list = enrolled.Judge(&enrolled.Facts{
		Now: now, System: "linux", State: &deception.State{},
		Identity: enrolled.Identity{Node: "crm-1", Expires: now.Add(-pki.RenewGrace - time.Minute)},
	})
	must(t, list, "certificate", "longer ago than it may be renewed", "decoynet token create --node crm-1")
}

func TestNoIdentity(t *testing.T) {
	list := examine(t, home{data: t.TempDir()}, nil)
	must(t, list, "identity", "no node of a controller", "decoynet token create --node NAME")
	if n := doctor.Problems(list); n != 1 {
		t.Errorf("%d problems:\n%s", n, text(list))
	}
}

// TestSpool is about what only the running agent knows.
func TestSpool(t *testing.T) {
	list := enrolled.Judge(&enrolled.Facts{
		System: "linux", State: &deception.State{}, Data: enrolled.Data{Path: "/d"},
		Running: &enrolled.Running{Failing: "write /d/spool/1: no space left on device", Lost: 3},
	})
	must(t, list, "spool", "no space left", "du -xh")
	list = enrolled.Judge(&enrolled.Facts{System: "linux", State: &deception.State{}, Data: enrolled.Data{Path: "/d"}, Running: &enrolled.Running{Lost: 3, LostKinds: "2 sessions, 1 findings"}})
	if f := find(list, "spool"); f == nil || f.Severity != doctor.Note || !strings.Contains(f.What, "3 records") || !strings.Contains(f.What, "1 findings") {
		t.Errorf("found:\n%s", text(list))
	}
}
