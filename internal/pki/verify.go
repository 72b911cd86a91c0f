package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"
)

// TimeError says that a certificate is not valid at the time that the checking
// machine's clock shows.
type TimeError struct {
	Cert *x509.Certificate
	Now  time.Time // by the clock of the machine that checked
}

// Expired tells whether the certificate's time is over; else it has not begun.
func (e *TimeError) Expired() bool { return Expired(e.Cert, e.Now) }

func (e *TimeError) Error() string {
	if e.Expired() {
		return fmt.Sprintf("certificate of %s expired at %s", nameOf(e.Cert), stamp(e.Cert.NotAfter))
	}
	return fmt.Sprintf("certificate of %s is valid from %s only", nameOf(e.Cert), stamp(e.Cert.NotBefore))
}

// AuthorityError says that a certificate is of another CA than the one trusted.
type AuthorityError struct {
	Cert *x509.Certificate
	CA   *x509.Certificate // that was trusted
	Err  error             // of package x509
}

func (e *AuthorityError) Error() string {
	return fmt.Sprintf("certificate of %s is of another CA (%q, trusted is %q): %v",
		nameOf(e.Cert), e.Cert.Issuer.CommonName, e.CA.Subject.CommonName, e.Err)
}

func (e *AuthorityError) Unwrap() error { return e.Err }

// PeerError says that a valid certificate is of somebody else than the one who
// was called.
type PeerError struct {
	Want, Got string
}

func (e *PeerError) Error() string { return fmt.Sprintf("%s answered, not %s", e.Got, e.Want) }

// PinError says that a server's CA is not the one that was pinned.
type PinError struct {
	Want, Got string // as Pin writes them; Got is empty where the server showed no CA
}

func (e *PinError) Error() string {
	if e.Got == "" {
		return "the server showed no CA certificate to compare with the pin"
	}
	return fmt.Sprintf("the server's CA is %s, the pin %s", e.Got, e.Want)
}

// RefusedError says that a certificate is valid, and its owner not let in.
type RefusedError struct {
	Node       string
	Generation uint32 // of its certificate
	Err        error
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("node %s with a certificate of generation %d is refused: %v", e.Node, e.Generation, e.Err)
}

func (e *RefusedError) Unwrap() error { return e.Err }

// verify checks that the certificate is directly of the CA, for the usage, and
// valid now or expired for at most grace. It returns *AuthorityError or *TimeError;
// the former where both are so, since a stranger's certificate is a stranger's at
// any time.
func verify(cert, ca *x509.Certificate, usage x509.ExtKeyUsage, now time.Time, grace time.Duration) error {
	at := now
	switch {
	case at.Before(cert.NotBefore):
		at = cert.NotBefore
	case at.After(cert.NotAfter):
		at = cert.NotAfter
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	_, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage}})
	var unknown x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unknown):
		return &AuthorityError{Cert: cert, CA: ca, Err: err}
	case err != nil:
		return fmt.Errorf("certificate of %s: %w", nameOf(cert), err)
	case now.Before(cert.NotBefore), now.After(cert.NotAfter.Add(grace)):
		return &TimeError{Cert: cert, Now: now}
	case now.Before(ca.NotBefore), now.After(ca.NotAfter):
		return &TimeError{Cert: ca, Now: now}
	}
	return nil
}

// verifyController checks that the server is a controller of the CA.
func verifyController(state tls.ConnectionState, ca *x509.Certificate, now time.Time) error {
	if len(state.PeerCertificates) == 0 {
		return ErrNoCertificate
	}
	leaf := state.PeerCertificates[0]
	if err := verify(leaf, ca, x509.ExtKeyUsageServerAuth, now, 0); err != nil {
		return err
	}
	if !isController(leaf) {
		return fmt.Errorf("%w: %w", ErrNotController, &PeerError{Want: "the controller", Got: nameOf(leaf)})
	}
	return nil
}

// PinnedTLS returns the configuration of a client that knows nothing of the
// controller but its CA's fingerprint, for enrolment. The server must show that CA
// certificate and a controller's certificate that it signed; the system's roots
// play no part. A bad pin fails every handshake; ParsePin tells beforehand.
func PinnedTLS(pin string) *tls.Config { return pinnedTLS(pin, time.Now) }

func pinnedTLS(pin string, now func() time.Time) *tls.Config {
	want, bad := ParsePin(pin)
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		Time:       now,
		// The checks of crypto/tls ask system roots and a host name. Ours, in
		// VerifyConnection, ask for the pinned CA and a controller, on each handshake.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if bad != nil {
				return bad
			}
			n := len(state.PeerCertificates)
			if n < 2 {
				return &PinError{Want: want}
			}
			ca := state.PeerCertificates[n-1]
			if got := Pin(ca.Raw); got != want {
				return &PinError{Want: want, Got: got}
			}
			if err := checkCA(ca); err != nil {
				return err
			}
			return verifyController(state, ca, now())
		},
	}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }
