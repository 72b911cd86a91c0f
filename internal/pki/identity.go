package pki

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ErrNoIdentity is returned by LoadIdentity for a directory that holds none.
var ErrNoIdentity = errors.New("this machine is not enrolled: paste the command that `decoynet token create` prints")

// ErrDamaged is returned by LoadIdentity where files are missing, broken or do not
// belong together.
var ErrDamaged = errors.New("this machine's identity is damaged: enrol it again with the command that `decoynet token create` prints on the controller")

// Identity is what makes a machine a node: its key, its certificate, the CA that
// it trusts, and where controllers are. It is safe for concurrent use; TLS
// configurations made of it use the newest certificate in each handshake.
type Identity struct {
	node string
	key  *ecdsa.PrivateKey
	ca   *x509.Certificate
	now  func() time.Time // time.Now but in tests

	pair atomic.Pointer[tls.Certificate]

	mu          sync.Mutex // guards what follows, and the files
	dir         string     // empty where it is in memory only
	controllers []string
	proxy       string
}

// IdentityConfig is what enrolment brought.
type IdentityConfig struct {
	Key         *ecdsa.PrivateKey // from NewRequest
	Certificate []byte            // the node's, DER
	CA          []byte            // the controller's, DER
	Controllers []string          // https URLs, best first
	Proxy       string            // towards controllers and gateways, empty for none
}

// NewIdentity makes an identity in memory; Save puts it on the disk. It returns an
// error where the parts do not belong together. The caller has checked the CA
// against its pin.
func NewIdentity(cfg IdentityConfig) (*Identity, error) {
	ca, err := x509.ParseCertificate(cfg.CA)
	if err != nil {
		return nil, fmt.Errorf("read CA certificate: %w", err)
	}
	if err := checkCA(ca); err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(cfg.Certificate)
	if err != nil {
		return nil, fmt.Errorf("read node certificate: %w", err)
	}
	if cfg.Key == nil {
		return nil, errors.New("an identity needs a key")
	}
	if err := checkControllers(cfg.Controllers); err != nil {
		return nil, err
	}
	node, err := checkLeaf(leaf, cfg.Key, ca)
	if err != nil {
		return nil, err
	}
	i := &Identity{
		node: node, key: cfg.Key, ca: ca, now: time.Now,
		controllers: slices.Clone(cfg.Controllers), proxy: cfg.Proxy,
	}
	i.pair.Store(keyPair(cfg.Key, leaf))
	return i, nil
}

// checkLeaf returns the node that the certificate is of. Its time does not count: an
// expired certificate is what a renewal begins with.
func checkLeaf(leaf *x509.Certificate, key *ecdsa.PrivateKey, ca *x509.Certificate) (node string, err error) {
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return "", errors.New("the certificate does not belong to the node's key")
	}
	var off *TimeError
	if err := verify(leaf, ca, x509.ExtKeyUsageClientAuth, leaf.NotAfter, 0); err != nil && !errors.As(err, &off) {
		return "", err
	}
	node, _, err = NodeOf(leaf)
	return node, err
}

func checkControllers(urls []string) error {
	if len(urls) == 0 {
		return errors.New("no controller is named; at least one URL, as https://hq.example.com:7443")
	}
	for _, s := range urls {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "https" || u.Hostname() == "" {
			return fmt.Errorf("bad controller %q; a URL as https://hq.example.com:7443", s)
		}
	}
	return nil
}

// Node returns the node's name.
func (i *Identity) Node() string { return i.node }

// Controllers returns the URLs under which controllers are reached, best first.
func (i *Identity) Controllers() []string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.controllers)
}

// Proxy returns the proxy towards controllers and gateways, empty for none. It may
// hold a password.
func (i *Identity) Proxy() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.proxy
}

// Pin returns the fingerprint of the CA that the node trusts.
func (i *Identity) Pin() string { return Pin(i.ca.Raw) }

// Certificate returns the node's present certificate and when it expires.
func (i *Identity) Certificate() (leaf *x509.Certificate, expires time.Time) {
	leaf = i.pair.Load().Leaf
	return leaf, leaf.NotAfter
}

// Request returns a request for the next certificate (PKCS #10, DER), of the same
// key.
func (i *Identity) Request() ([]byte, error) { return request(i.key) }

// RenewAt returns when the certificate should be renewed: at half of its lifetime,
// up to a tenth of it sooner or later. That is told from the certificate itself, so
// a restart does not move it, and nodes enrolled together do not come together.
func (i *Identity) RenewAt() time.Time {
	leaf, _ := i.Certificate()
	issued := leaf.NotBefore.Add(Backdate)
	life := leaf.NotAfter.Sub(issued)
	if life <= 0 {
		return leaf.NotBefore
	}
	spread := life / 5
	// The serial number is random (see newSerial), so its low bits are.
	var low [8]byte
	serial := leaf.SerialNumber.Bytes()
	copy(low[:], serial[max(0, len(serial)-8):])
	jitter := time.Duration(binary.BigEndian.Uint64(low[:]) % uint64(spread+1))
	return issued.Add(life/2 - spread/2 + jitter)
}

// Update takes a renewed certificate (DER). Handshakes use it from now on, and the
// file is replaced in one step. It returns an error and changes nothing where the
// certificate is not this node's, of its key and CA. Where only the writing failed
// (a full disk) it returns an error too, and the new certificate is in use until
// the process ends.
func (i *Identity) Update(der []byte) error {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("read renewed certificate: %w", err)
	}
	node, err := checkLeaf(leaf, i.key, i.ca)
	if err != nil {
		return fmt.Errorf("renewed certificate: %w", err)
	}
	if node != i.node {
		return fmt.Errorf("renewed certificate: %w", &PeerError{Want: "node " + i.node, Got: "node " + node})
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.pair.Store(keyPair(i.key, leaf))
	if i.dir == "" {
		return nil
	}
	if err := replaceFile(i.dir, certFile, certPEM(der)); err != nil {
		return fmt.Errorf("the renewed certificate is in use, but not saved: %w", err)
	}
	return nil
}

// SetControllers replaces the URLs under which controllers are reached. It returns
// an error and changes nothing where the list is empty or holds a bad URL. Where
// only the writing failed it returns an error too, and the URLs are in use until
// the process ends.
func (i *Identity) SetControllers(urls []string) error {
	if err := checkControllers(urls); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if slices.Equal(urls, i.controllers) {
		return nil
	}
	i.controllers = slices.Clone(urls)
	if i.dir == "" {
		return nil
	}
	if err := i.saveInfo(); err != nil {
		return fmt.Errorf("the controllers are in use, but not saved: %w", err)
	}
	return nil
}

// SetProxy replaces the proxy towards controllers and gateways; "" is none. A
// process that runs with this identity goes on with what it loaded. It returns an
// error where the writing failed.
func (i *Identity) SetProxy(proxy string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	before := i.proxy
	i.proxy = proxy
	if i.dir == "" {
		return nil
	}
	if err := i.saveInfo(); err != nil {
		i.proxy = before
		return fmt.Errorf("save the proxy: %w", err)
	}
	return nil
}

// ControllerTLS returns the configuration of a client of the controller. The
// server must show a controller's certificate of the node's CA; its host name does
// not count. The node shows its own certificate, expired or not: the controller
// renews those too.
func (i *Identity) ControllerTLS() *tls.Config {
	return i.client(func(state tls.ConnectionState) error {
		return verifyController(state, i.ca, i.now())
	})
}

// GatewayTLS returns the configuration of a client of the ingress gateway that runs
// on the node: the server must show that node's certificate.
func (i *Identity) GatewayTLS(node string) *tls.Config {
	return i.client(func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return ErrNoCertificate
		}
		leaf := state.PeerCertificates[0]
		if err := verify(leaf, i.ca, x509.ExtKeyUsageServerAuth, i.now(), 0); err != nil {
			return err
		}
		if got, _, err := NodeOf(leaf); err != nil || got != node {
			return &PeerError{Want: "node " + node, Got: nameOf(leaf)}
		}
		return nil
	})
}

// client makes a configuration whose whole check of the server is the one given.
func (i *Identity) client(check func(tls.ConnectionState) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		Time:       i.now,
		// The checks of crypto/tls ask for a host name, which ours have not to
		// have. VerifyConnection is run on each handshake, and there is no session
		// cache, so none is resumed.
		InsecureSkipVerify: true,
		VerifyConnection:   check,
		// Shown whatever CAs the server names: a server of another CA shall say
		// "unknown certificate authority", not "certificate required".
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return i.pair.Load(), nil
		},
	}
}

// IngressTLS returns the configuration of an ingress gateway's port. Clients must
// show a valid certificate of a node; allow says whether that node with that
// generation may bring flows, and is asked on each handshake.
func (i *Identity) IngressTLS(allow func(node string, generation uint32) error) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(i.ca)
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Time:                   i.now,
		SessionTicketsDisabled: true,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return i.pair.Load(), nil
		},
		// Verified by crypto/tls, so that the peer is told by alert what is wrong:
		// expired, unknown authority, or (by VerifyConnection) bad.
		ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs:  pool,
		VerifyConnection: func(state tls.ConnectionState) error {
			node, generation, err := PeerNode(state)
			if err != nil {
				return err
			}
			if err := allow(node, generation); err != nil {
				return &RefusedError{Node: node, Generation: generation, Err: err}
			}
			return nil
		},
	}
}
