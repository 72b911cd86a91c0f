package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"
)

// Explain says for the person at the console why a connection to a controller or
// gateway could not be made, or broke: what is wrong, on which side, and what to
// do. An error that has an Explain method explains itself; of one that is none of
// those known here it returns the text, and of nil nothing.
func Explain(err error) string {
	if err == nil {
		return ""
	}
	var own interface{ Explain() string }
	if errors.As(err, &own) {
		return own.Explain()
	}
	for _, explain := range []func(error) string{explainCertificate, explainAlert, explainTLS, explainNetwork} {
		if text := explain(err); text != "" {
			return text
		}
	}
	return err.Error()
}

// Explain says which clock or certificate is wrong.
func (e *TimeError) Explain() string {
	if !e.Expired() {
		return fmt.Sprintf("the certificate of %s is valid from %s only, and this machine's clock shows %s: the clock of this machine is behind; set it (NTP)",
			nameOf(e.Cert), stamp(e.Cert.NotBefore), stamp(e.Now))
	}
	remedy := "enrol it again with the command that `decoynet token create` prints"
	switch {
	case e.Cert.IsCA:
		remedy = "its controller needs a new CA, and every machine enrols again"
	case isController(e.Cert):
		remedy = "restart the controller and check its clock"
	}
	return fmt.Sprintf("the certificate of %s expired at %s (%s ago by this machine's clock, %s): if that clock is right, %s",
		nameOf(e.Cert), stamp(e.Cert.NotAfter), e.Now.Sub(e.Cert.NotAfter).Round(time.Second), stamp(e.Now), remedy)
}

// Explain says whose certificate it is and what this machine trusts.
func (e *AuthorityError) Explain() string {
	return fmt.Sprintf("the other side shows a certificate of %s by another CA than this machine's (%q, not %q): one of the two is enrolled with another controller, or something in between reads TLS; enrol it again, or except this address from inspection",
		nameOf(e.Cert), e.Cert.Issuer.CommonName, e.CA.Subject.CommonName)
}

// Explain says who answered.
func (e *PeerError) Explain() string {
	return fmt.Sprintf("%s answered where %s should be: the address leads to the wrong machine; check it (for a gateway, in the document), DNS and port forwarding",
		e.Got, e.Want)
}

// Explain says why nothing was sent.
func (e *PinError) Explain() string {
	if e.Got == "" {
		return "the server is no decoynet controller: it showed no CA certificate; check the address and port, and whether something in between reads TLS"
	}
	return fmt.Sprintf("the server's CA has the fingerprint %s, the command says %s: this is another controller, or somebody stands in between; nothing was sent to it. Do not change the pin: make a new command with `decoynet token create` on the controller",
		e.Got, e.Want)
}

// Explain says who was refused.
func (e *RefusedError) Explain() string {
	return fmt.Sprintf("node %s was refused: %v", e.Node, e.Err)
}

// explainCertificate is for what crypto/tls found by itself, as the ingress lets it.
func explainCertificate(err error) string {
	var invalid x509.CertificateInvalidError
	if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
		if strings.Contains(invalid.Detail, " is before ") {
			return fmt.Sprintf("the certificate of %s is not valid yet by this machine's clock (%s): the clock of this machine is behind; set it (NTP)",
				nameOf(invalid.Cert), invalid.Detail)
		}
		return fmt.Sprintf("the certificate of %s expired at %s (%s): it could not be renewed in time, or this machine's clock is ahead",
			nameOf(invalid.Cert), stamp(invalid.Cert.NotAfter), invalid.Detail)
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		whose := "a stranger"
		if unknown.Cert != nil {
			whose = nameOf(unknown.Cert)
		}
		return fmt.Sprintf("the other side shows a certificate of %s by a CA that this machine does not trust: it is enrolled with another controller, or something in between reads TLS",
			whose)
	}
	switch {
	case errors.Is(err, ErrNoCertificate), strings.Contains(err.Error(), "client didn't provide a certificate"):
		return "the other side showed no certificate: it is no enrolled node"
	case errors.Is(err, ErrNotNode):
		return "the other side shows a certificate that names no node: " + err.Error()
	case errors.Is(err, ErrNotController):
		return "the server is no controller: " + err.Error()
	}
	return ""
}

// alerts are what the other side may say of us (RFC 8446, section 6.2), by the
// text of crypto/tls, which keeps the numbers to itself.
var alerts = map[string]string{
	"bad certificate":                "the other side does not let this machine in: its certificate was revoked, or the other side took it for another one's. Its log says which; if it was revoked, enrol again with the command that `decoynet token create` prints",
	"revoked certificate":            "the other side says that this machine's certificate was revoked: enrol again with the command that `decoynet token create` prints",
	"expired certificate":            "the other side says that this machine's certificate is not valid now: it expired and must be renewed (is a controller reachable?), or one of the two clocks is wrong",
	"unknown certificate authority":  "the other side says that this machine's certificate is of another CA: the two are enrolled with different controllers; enrol this machine again",
	"unknown certificate":            "the other side does not accept this machine's certificate, and does not say why; its log may",
	"unsupported certificate":        "the other side cannot read this machine's certificate: it is of another version, or no decoynet",
	"certificate required":           "the other side asks for a node's certificate, and this machine showed none: enrol it",
	"access denied":                  "the other side knows this machine's certificate and does not let it in",
	"protocol version not supported": "the other side speaks no TLS 1.3: it is no decoynet, or something in between reads TLS",
	"handshake failure":              "the other side found no way to speak TLS with this machine: it is no decoynet, or something in between reads TLS",
	"no application protocol":        "the other side serves something else on this port: check the port",
	"internal error":                 "the other side had a fault of its own while it made the connection; its log says which",
}

const remotePrefix = "remote error: tls: "

func explainAlert(err error) string {
	_, alert, ok := strings.Cut(err.Error(), remotePrefix)
	if !ok {
		return ""
	}
	for name, text := range alerts {
		if strings.HasPrefix(alert, name) && !longerAlert(alert, name) {
			return text
		}
	}
	return fmt.Sprintf("the other side ended the connection with the TLS alert %q", alert)
}

// longerAlert tells whether another alert's name, which begins with this one, is
// meant.
func longerAlert(alert, name string) bool {
	for other := range alerts {
		if len(other) > len(name) && strings.HasPrefix(other, name) && strings.HasPrefix(alert, other) {
			return true
		}
	}
	return false
}

func explainTLS(err error) string {
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return "no TLS is spoken at the other end: check the port, and whether a proxy or captive portal answers instead"
	case strings.Contains(err.Error(), "protocol version not supported"),
		strings.Contains(err.Error(), "client offered only unsupported versions"):
		return "the other side speaks no TLS 1.3: it is no decoynet, or something in between reads TLS"
	case strings.Contains(err.Error(), "http2: client conn could not be established"):
		// All that net/http says where the alert came before the first request.
		return "the other side ended the connection at once: most likely it does not accept this machine's certificate (revoked, or of another controller); its log says"
	}
	return ""
}

func explainNetwork(err error) string {
	at := remoteOf(err)
	var dns *net.DNSError
	if errors.As(err, &dns) {
		switch {
		case dns.IsNotFound:
			return fmt.Sprintf("the name %s has no address in DNS: check its spelling and this machine's resolver", dns.Name)
		case dns.IsTimeout:
			return fmt.Sprintf("the resolver%s did not answer when asked for %s: check this machine's DNS", before(" ", dns.Server), dns.Name)
		}
		return fmt.Sprintf("the name %s could not be resolved: %s", dns.Name, dns.Err)
	}
	var timeout net.Error
	switch {
	case errors.Is(err, errRefused):
		return fmt.Sprintf("nothing listens at %s: is it running, and is the port right", at)
	case errors.Is(err, errNoHost):
		return fmt.Sprintf("%s does not answer in its network, or a firewall on the way says so", at)
	case errors.Is(err, errNoNet):
		return fmt.Sprintf("this machine has no route to %s", at)
	case errors.Is(err, errNotPermitted):
		return fmt.Sprintf("this machine's own firewall forbids the connection to %s", at)
	case errors.Is(err, errReset), errors.Is(err, errPipe), errors.Is(err, errAborted):
		return fmt.Sprintf("%s broke the connection off: it restarted, it refused this machine (its log says so), or a firewall in between does not allow it", at)
	case errors.Is(err, errAddrNotUsable):
		return fmt.Sprintf("this machine has no address or port left to reach %s from", at)
	case errors.Is(err, errTimeout), errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Sprintf("%s did not answer in time: it is off, overloaded, or a firewall drops the packets; in many networks only a proxy leads out", at)
	case errors.Is(err, context.Canceled):
		return "given up before an answer came"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Sprintf("%s closed the connection without a word: it is no decoynet, it is ending, or a firewall in between does not allow it", at)
	}
	return ""
}

// remoteOf returns the address that a connection was to go to.
func remoteOf(err error) string {
	var op *net.OpError
	if errors.As(err, &op) && op.Addr != nil {
		return op.Addr.String()
	}
	return "the other side"
}

func before(sep, s string) string {
	if s == "" {
		return ""
	}
	return sep + s
}
