package pki

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"
)

// ControllerTLS returns the configuration of the controller's port, for HTTP/2 and
// HTTP/1.1. Its certificate is made from the CA in memory and renewed by itself.
// The hosts (names, addresses or URLs) go into it for tools that check a host
// name; nodes do not.
//
// A client may show no certificate: people have tokens, and a machine that enrols
// has none yet. One that is shown must be a node's, of this CA and expired for at
// most RenewGrace. So services ask PeerNode who it is, and Expired before anything
// but a renewal; a handshake says nothing about revocation either.
func (ca *CA) ControllerTLS(hosts []string) *tls.Config {
	own := &controllerCert{ca: ca, hosts: hosts}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{"h2", "http/1.1"},
		Time:                   ca.now,
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return own.get(ca.now())
		},
		// Requested, not verified by crypto/tls: that knows no grace.
		ClientAuth: tls.RequestClientCert,
		ClientCAs:  pool,
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return nil
			}
			leaf := state.PeerCertificates[0]
			if err := verify(leaf, ca.cert, x509.ExtKeyUsageClientAuth, ca.now(), RenewGrace); err != nil {
				return err
			}
			_, _, err := NodeOf(leaf)
			return err
		},
	}
}

// controllerCert is the certificate of a controller's port.
type controllerCert struct {
	ca    *CA
	hosts []string

	mu   sync.Mutex // guards what follows
	cert *tls.Certificate
	made time.Time
}

// get returns the certificate, made anew after half of its lifetime, and where the
// clock was set back to before its making.
func (c *controllerCert) get(now time.Time) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cert != nil && !now.Before(c.made) && now.Before(c.made.Add(ControllerLifetime/2)) {
		return c.cert, nil
	}
	cert, err := c.ca.signController(c.hosts, now)
	if err != nil {
		return nil, err
	}
	c.cert, c.made = cert, now
	return cert, nil
}

func (ca *CA) signController(hosts []string, now time.Time) (*tls.Certificate, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:     subject("decoynet controller"),
		URIs:        []*url.URL{controllerURI()},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	template.DNSNames, template.IPAddresses = hostNames(hosts)
	der, err := ca.sign(template, &key.PublicKey, ControllerLifetime, now)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	// The CA goes with it: a machine that enrols compares it with its pin.
	return keyPair(key, leaf, ca.cert), nil
}

// hostNames sorts hosts into names and addresses, this machine's own always among
// them. What cannot stand in a certificate is left out: no handshake of a node
// fails for a spelling that only other tools look at.
func hostNames(hosts []string) (names []string, addresses []net.IP) {
	seen := map[string]bool{}
	for _, h := range append([]string{"localhost", "127.0.0.1", "::1"}, hosts...) {
		h = bareHost(h)
		if seen[h] {
			continue
		}
		seen[h] = true
		if a, err := netip.ParseAddr(h); err == nil {
			addresses = append(addresses, a.WithZone("").AsSlice())
		} else if checkNode(h) == nil {
			names = append(names, h)
		}
	}
	return names, addresses
}

// bareHost takes the host out of a URL or host:port.
func bareHost(s string) string {
	if strings.Contains(s, "://") {
		u, err := url.Parse(s)
		if err != nil {
			return ""
		}
		return u.Hostname()
	}
	if host, _, err := net.SplitHostPort(s); err == nil {
		return host
	}
	return strings.Trim(s, "[]")
}
