package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"
)

// CA is the controller's certificate authority. It is safe for concurrent use.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	now  func() time.Time // time.Now but in tests
}

// NewCA makes a certificate authority that is valid from Backdate ago for
// CALifetime.
func NewCA() (*CA, error) { return newCA(time.Now) }

func newCA(now func() time.Time) (*CA, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	at := now()
	template := &x509.Certificate{
		SerialNumber: serial,
		// Two CAs of two controllers must not be called the same: verifiers find
		// issuers by name, and so do people.
		Subject: pkix.Name{
			Organization: []string{organization},
			CommonName:   fmt.Sprintf("decoynet CA %.8x", serial.Bytes()),
		},
		NotBefore:             at.Add(-Backdate),
		NotAfter:              at.Add(CALifetime),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // it signs peers, never another CA
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make CA certificate: %w", err)
	}
	return &CA{cert: cert, key: key, now: now}, nil
}

// LoadCA reads what PEM returned. It returns an error where the two do not belong
// together or the certificate is no CA's.
func LoadCA(cert, key []byte) (*CA, error) {
	c, err := parseCertPEM(cert)
	if err != nil {
		return nil, fmt.Errorf("read CA certificate: %w", err)
	}
	if err := checkCA(c); err != nil {
		return nil, fmt.Errorf("read CA certificate: %w", err)
	}
	k, err := parseKeyPEM(key)
	if err != nil {
		return nil, fmt.Errorf("read CA key: %w", err)
	}
	if !k.PublicKey.Equal(c.PublicKey) {
		return nil, errors.New("read CA key: it does not belong to the CA's certificate")
	}
	return &CA{cert: c, key: k, now: time.Now}, nil
}

// PEM returns the certificate and the key (PKCS #8), each as one PEM block. The
// key is not encrypted: who has it can be any node and any controller.
func (ca *CA) PEM() (cert, key []byte, err error) {
	key, err = keyPEM(ca.key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode CA key: %w", err)
	}
	return certPEM(ca.cert.Raw), key, nil
}

// Certificate returns the CA's certificate.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// Pin returns the fingerprint of the CA's certificate, as sha256:HEX of its DER.
// It goes into the command that enrols a machine.
func (ca *CA) Pin() string { return Pin(ca.cert.Raw) }

// SignNode makes a certificate for a node from its request (PKCS #10, DER), valid
// from Backdate before now for ttl after it; 0 is NodeLifetime, and none outlives
// the CA. Of the request only the key counts, whatever names it holds. It returns
// an error where the request is not signed by the key it holds, where that key is
// not ECDSA P-256, and where the name is no host name.
func (ca *CA) SignNode(csr []byte, node string, generation uint32, ttl time.Duration, now time.Time) ([]byte, error) {
	if err := checkNode(node); err != nil {
		return nil, err
	}
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, fmt.Errorf("read certificate request of node %s: %w", node, err)
	}
	if err := req.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request of node %s is not signed by its own key: %w", node, err)
	}
	public, err := p256(req.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("certificate request of node %s: %w", node, err)
	}
	if ttl <= 0 {
		ttl = NodeLifetime
	}
	template := &x509.Certificate{
		Subject: subject(node),
		URIs:    []*url.URL{nodeURI(node, generation)},
		// A node that is an ingress gateway serves with the certificate that it
		// shows to the controller.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	return ca.sign(template, public, ttl, now)
}

// sign completes the template of a peer's certificate and signs it.
func (ca *CA) sign(template *x509.Certificate, public *ecdsa.PublicKey, ttl time.Duration, now time.Time) ([]byte, error) {
	if now.After(ca.cert.NotAfter) {
		return nil, &TimeError{Cert: ca.cert, Now: now}
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = now.Add(-Backdate)
	template.NotAfter = now.Add(ttl)
	if template.NotAfter.After(ca.cert.NotAfter) {
		template.NotAfter = ca.cert.NotAfter
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	return der, nil
}

// subject is for people who look at a certificate; nothing reads it. The bound is
// ub-common-name (RFC 5280, appendix A.1).
func subject(name string) pkix.Name {
	s := pkix.Name{Organization: []string{organization}}
	if len(name) <= 64 {
		s.CommonName = name
	}
	return s
}

func checkCA(c *x509.Certificate) error {
	if !c.BasicConstraintsValid || !c.IsCA || c.KeyUsage&x509.KeyUsageCertSign == 0 {
		return fmt.Errorf("the certificate of %s is no CA's", nameOf(c))
	}
	if err := c.CheckSignatureFrom(c); err != nil {
		return fmt.Errorf("the CA certificate of %s is not signed by itself: %w", nameOf(c), err)
	}
	return nil
}

// p256 returns the key where it is of the one kind that nodes make.
func p256(key any) (*ecdsa.PublicKey, error) {
	k, ok := key.(*ecdsa.PublicKey)
	if !ok || k.Curve != elliptic.P256() {
		return nil, errors.New("its key is not ECDSA P-256")
	}
	return k, nil
}

const (
	certBlock = "CERTIFICATE"
	keyBlock  = "PRIVATE KEY"
)

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: certBlock, Bytes: der})
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: der}), nil
}

func parseCertPEM(text []byte) (*x509.Certificate, error) {
	der, err := onlyBlock(text, certBlock)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func parseKeyPEM(text []byte) (*ecdsa.PrivateKey, error) {
	der, err := onlyBlock(text, keyBlock)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("the key is not ECDSA P-256")
	}
	if _, err := p256(key.Public()); err != nil {
		return nil, errors.New("the key is not ECDSA P-256")
	}
	return key, nil
}

// onlyBlock returns the content of a text that is one PEM block of the kind.
func onlyBlock(text []byte, kind string) ([]byte, error) {
	block, rest := pem.Decode(text)
	switch {
	case len(bytes.TrimSpace(text)) == 0:
		return nil, errors.New("it is empty")
	case block == nil:
		return nil, errors.New("it holds no whole PEM block")
	case block.Type != kind:
		return nil, fmt.Errorf("it holds a PEM block %q, not %q", block.Type, kind)
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, errors.New("something follows its PEM block")
	}
	return block.Bytes, nil
}

// keyPair joins what crypto/tls wants in one value.
func keyPair(key *ecdsa.PrivateKey, leaf *x509.Certificate, above ...*x509.Certificate) *tls.Certificate {
	c := &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, a := range above {
		c.Certificate = append(c.Certificate, a.Raw)
	}
	return c
}
