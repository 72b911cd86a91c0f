// Package pki is who is who between nodes and controller: the controller's own
// certificate authority, the certificates it gives to nodes, a node's identity
// on its disk, and the TLS configurations made of them.
//
// Nothing here trusts the system's roots, a host name, or whoever answered
// first. A peer is who the URI in its certificate says, and that certificate is
// of the one CA whose fingerprint was in the command that enrolled the machine.
// Every connection is TLS 1.3, without session resumption: each handshake shows
// and checks the certificates anew, so that no old session outlives a revocation.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Lifetimes.
const (
	// CALifetime is how long a controller's CA lasts. A new one means that every
	// machine enrols again.
	CALifetime = 10 * 365 * 24 * time.Hour
	// NodeLifetime is what a node's certificate lasts where nobody asks for
	// another time. Nodes renew at half of it. It has to outlast a controller that
	// breaks on a Friday evening, since tunnels need certificates; what takes a
	// node's rights away is its generation, not this.
	NodeLifetime = 7 * 24 * time.Hour
	// ControllerLifetime is what the certificate of a controller's port lasts. It
	// lives in memory only and is made anew at half of it.
	ControllerLifetime = 7 * 24 * time.Hour
	// Backdate is how long before its making a certificate becomes valid, so that
	// a machine whose clock is hours behind can still be talked to.
	Backdate = 24 * time.Hour
	// RenewGrace is how long after its expiry a node's certificate still opens
	// the controller's port, for a renewal only: a machine that was off over a
	// holiday needs no new token.
	RenewGrace = 30 * 24 * time.Hour
)

// Names in certificates: decoynet://controller and decoynet://node/NAME?generation=N.
const (
	uriScheme      = "decoynet"
	controllerHost = "controller"
	nodeHost       = "node"
	generationKey  = "generation"
)

var (
	// ErrNotNode is returned for a certificate that names no node.
	ErrNotNode = errors.New("this is no node's certificate")
	// ErrNotController is returned for a certificate of a peer that should be a
	// controller and is none.
	ErrNotController = errors.New("this is no controller's certificate")
	// ErrNoCertificate is returned for a peer that showed no certificate.
	ErrNoCertificate = errors.New("the peer showed no certificate")
)

// nodeForm is a host name (RFC 1123), as the document allows for nodes.
var nodeForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)

func checkNode(name string) error {
	if len(name) > 253 || !nodeForm.MatchString(name) {
		return fmt.Errorf("bad node name %q; a host name of letters, digits, dashes and dots, as hq or hq.example.com", name)
	}
	return nil
}

func controllerURI() *url.URL { return &url.URL{Scheme: uriScheme, Host: controllerHost} }

func nodeURI(name string, generation uint32) *url.URL {
	return &url.URL{
		Scheme: uriScheme, Host: nodeHost, Path: "/" + name,
		RawQuery: generationKey + "=" + strconv.FormatUint(uint64(generation), 10),
	}
}

// ourURI returns the one name of ours in a certificate. Two of them would be two
// identities, so that is none.
func ourURI(cert *x509.Certificate) (*url.URL, bool) {
	var found *url.URL
	for _, u := range cert.URIs {
		if u.Scheme != uriScheme {
			continue
		}
		if found != nil {
			return nil, false
		}
		found = u
	}
	return found, found != nil
}

// NodeOf returns the node that a certificate names and the generation of its
// enrolment. It reads names only: the certificate must have been verified by one
// of this package's TLS configurations. It returns ErrNotNode where it names
// none.
func NodeOf(cert *x509.Certificate) (node string, generation uint32, err error) {
	if cert == nil {
		return "", 0, ErrNoCertificate
	}
	u, ok := ourURI(cert)
	if !ok || u.Host != nodeHost {
		return "", 0, fmt.Errorf("%w: it is of %s", ErrNotNode, nameOf(cert))
	}
	node = strings.TrimPrefix(u.Path, "/")
	n, err := strconv.ParseUint(strings.TrimPrefix(u.RawQuery, generationKey+"="), 10, 32)
	// Only the one spelling that SignNode writes: nothing is left to how a URI
	// may be read.
	if err != nil || checkNode(node) != nil || nodeURI(node, uint32(n)).String() != u.String() {
		return "", 0, fmt.Errorf("%w: bad name %q", ErrNotNode, u)
	}
	return node, uint32(n), nil
}

// PeerNode returns the node at the other end of a connection made with one of
// this package's configurations. It returns ErrNoCertificate where the peer
// showed none, ErrNotNode where it is no node.
func PeerNode(state tls.ConnectionState) (node string, generation uint32, err error) {
	if len(state.PeerCertificates) == 0 {
		return "", 0, ErrNoCertificate
	}
	return NodeOf(state.PeerCertificates[0])
}

func isController(cert *x509.Certificate) bool {
	u, ok := ourURI(cert)
	return ok && u.String() == controllerURI().String()
}

// nameOf says in a few words whose certificate it is.
func nameOf(cert *x509.Certificate) string {
	if isController(cert) {
		return "the controller"
	}
	if u, ok := ourURI(cert); ok && u.Host == nodeHost {
		return "node " + strings.TrimPrefix(u.Path, "/")
	}
	if cert.Subject.CommonName != "" {
		return fmt.Sprintf("%q", cert.Subject.CommonName)
	}
	return fmt.Sprintf("%q", cert.Subject)
}

// Expired tells whether the certificate's time is over. The controller's port
// takes such a certificate for RenewGrace more, so its services ask.
func Expired(cert *x509.Certificate, now time.Time) bool { return now.After(cert.NotAfter) }

// Pin returns the fingerprint of a certificate, "sha256:" and the hexadecimal
// SHA-256 of its DER.
func Pin(der []byte) string {
	sum := sha256.Sum256(der)
	return pinPrefix + hex.EncodeToString(sum[:])
}

const pinPrefix = "sha256:"

// ParsePin returns the one spelling of a fingerprint, as Pin writes it. It takes
// upper case and the colons of `openssl x509 -fingerprint` too.
func ParsePin(s string) (string, error) {
	digits, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(s)), pinPrefix)
	digits = strings.ReplaceAll(digits, ":", "")
	if b, err := hex.DecodeString(digits); !ok || err != nil || len(b) != sha256.Size {
		return "", fmt.Errorf("bad pin %q; sha256: and 64 hexadecimal digits, as `decoynet token create` prints it", s)
	}
	return pinPrefix + digits, nil
}

// NewRequest makes a node's key and the request for its certificate (PKCS #10,
// DER). The request holds no name: a node is called what its token says.
func NewRequest() (key *ecdsa.PrivateKey, csr []byte, err error) {
	key, err = newKey()
	if err != nil {
		return nil, nil, err
	}
	csr, err = request(key)
	return key, csr, err
}

func request(key *ecdsa.PrivateKey) ([]byte, error) {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{Organization: []string{organization}},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("make certificate request: %w", err)
	}
	return csr, nil
}

const organization = "decoynet"

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	return key, nil
}

// newSerial returns 127 random bits: positive and below the 20 octets of RFC 5280,
// section 4.1.2.2.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}
