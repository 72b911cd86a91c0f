// Package outbound makes a node's connections to controllers and gateways,
// directly or through an HTTP proxy by CONNECT (RFC 9110, section 9.3.6). In many
// networks a proxy is the only way out; where one is named, it is the only way
// taken: a node that went around it would raise the alarm of those whose network
// it guards.
package outbound

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// DefaultTimeout is how long a connection may take to be made, the proxy's answer
// included.
const DefaultTimeout = 30 * time.Second

// Dialer makes connections. It is safe for concurrent use.
type Dialer struct {
	// Timeout limits the making of a connection as a whole: name, TCP, TLS with the
	// proxy, its answer. It is set before the first use; 0 is DefaultTimeout.
	Timeout time.Duration

	proxy *proxy         // nil where the way is direct
	roots *x509.CertPool // for https proxies; nil is the system's
}

// proxy is one HTTP proxy.
type proxy struct {
	address string // host:port
	host    string // as in its certificate
	tls     bool
	user    *url.Userinfo
}

// New makes a dialer that takes the proxy: http://[user:password@]host[:port], or
// https:// where the proxy itself is reached by TLS. "" is no proxy. Without a port
// it is the scheme's, without a scheme http. It returns an error for anything else;
// no error holds the password.
func New(proxy string) (*Dialer, error) {
	if proxy == "" {
		return &Dialer{}, nil
	}
	p, err := parseProxy(proxy)
	if err != nil {
		return nil, err
	}
	return &Dialer{proxy: p}, nil
}

// FromEnvironment returns the proxy for a controller's URL (or host:port) that the
// environment names by HTTPS_PROXY (https_proxy), as text for New, which says what is
// wrong with it. It is "" where there is none, where NO_PROXY (no_proxy) excepts the
// host, and for this machine itself; the variables mean what they mean to curl.
func FromEnvironment(target string) string {
	env := httpproxy.FromEnvironment()
	if env.HTTPSProxy == "" {
		return ""
	}
	if !strings.Contains(target, "://") {
		target = "https://" + target
	}
	u, err := url.Parse(target)
	if err != nil {
		return ""
	}
	// Only the choice is made by that package: it would read the proxy's URL by other
	// rules than New does.
	choice := &httpproxy.Config{HTTPSProxy: "http://proxy.invalid", NoProxy: env.NoProxy}
	via, err := choice.ProxyFunc()(&url.URL{Scheme: "https", Host: u.Host})
	if err != nil || via == nil {
		return ""
	}
	return env.HTTPSProxy
}

// DialContext connects to host:port by "tcp", "tcp4" or "tcp6"; through a proxy the
// host may be a name that only the proxy can resolve, and the network says how the
// proxy is reached. What fails at or behind a proxy is a *ProxyError. There is no
// second try around a proxy.
func (d *Dialer) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	switch network {
	case "tcp", "tcp4", "tcp6":
	default:
		return nil, fmt.Errorf("dial %s: network %q is not possible here, only tcp", address, network)
	}
	timeout := d.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	var plain net.Dialer
	p := d.proxy
	if p == nil {
		return plain.DialContext(ctx, network, address)
	}
	target, err := checkTarget(address)
	if err != nil {
		return nil, err
	}
	conn, err := plain.DialContext(ctx, network, p.address)
	if err != nil {
		return nil, &ProxyError{Proxy: p.address, Target: target, Stage: StageReach, Err: err}
	}
	tunnel, err := d.through(ctx, conn, p, target)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return tunnel, nil
}

// through asks the proxy at the other end of conn for a tunnel to the target.
func (d *Dialer) through(ctx context.Context, conn net.Conn, p *proxy, target string) (net.Conn, error) {
	// What the context ends, the deadline of the past ends on the connection.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	fail := func(stage Stage, err error) error {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return &ProxyError{Proxy: p.address, Target: target, Stage: stage, Err: err}
	}
	if p.tls {
		secure := tls.Client(conn, &tls.Config{
			ServerName: p.host, RootCAs: d.roots, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		})
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, fail(StageTLS, err)
		}
		conn = secure
	}
	if _, err := conn.Write(request(p, target)); err != nil {
		return nil, fail(StageAnswer, err)
	}
	rest, status, err := readAnswer(conn)
	if err != nil {
		return nil, fail(StageAnswer, err)
	}
	if status.code/100 != 2 {
		return nil, &ProxyError{
			Proxy: p.address, Target: target, Stage: StageRefused, Status: status.code, Reason: status.reason,
			schemes: status.schemes, user: p.user != nil,
		}
	}
	if !stop() {
		return nil, fail(StageAnswer, context.Canceled)
	}
	if len(rest) == 0 {
		return conn, nil
	}
	return &prefixed{Conn: conn, rest: rest}, nil
}

// parseProxy reads the proxy's URL. Its errors never repeat the text, which may hold
// a password.
func parseProxy(text string) (*proxy, error) {
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	const form = "as http://proxy.example.com:3128 or http://user:password@proxy.example.com:3128"
	u, err := url.Parse(text)
	if err != nil {
		var detail *url.Error
		if errors.As(err, &detail) && !strings.Contains(text, "@") {
			return nil, fmt.Errorf("bad proxy: %w; %s", detail.Err, form)
		}
		return nil, fmt.Errorf("bad proxy; a URL %s (in user and password write %%40 for @, %%2F for /, %%3A for :)", form)
	}
	p := &proxy{host: u.Hostname(), user: u.User}
	port := u.Port()
	switch u.Scheme {
	case "http":
		port = orElse(port, "80")
	case "https":
		p.tls, port = true, orElse(port, "443")
	default:
		return nil, fmt.Errorf("bad proxy: scheme %q is not possible, only http and https; %s", u.Scheme, form)
	}
	switch {
	case p.host == "":
		return nil, fmt.Errorf("bad proxy: it names no host; %s", form)
	case u.Path != "" && u.Path != "/", u.RawQuery != "", u.Fragment != "":
		return nil, fmt.Errorf("bad proxy: something follows host and port; %s", form)
	case !goodPort(port):
		return nil, fmt.Errorf("bad proxy: port %q is none of 1 to 65535; %s", port, form)
	}
	// RFC 7617, section 2: the first colon ends the user.
	if u.User != nil && strings.Contains(u.User.Username(), ":") {
		return nil, errors.New("bad proxy: the user's name holds a colon, which Basic authentication cannot carry")
	}
	p.address = net.JoinHostPort(p.host, port)
	return p, nil
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func goodPort(s string) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n > 0
}

// checkTarget returns the address as it goes into the request line.
func checkTarget(address string) (string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", fmt.Errorf("dial %q: not host:port", address)
	}
	if !goodPort(port) {
		return "", fmt.Errorf("dial %q: port %q is none of 1 to 65535", address, port)
	}
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return "", fmt.Errorf("dial %q: an address with an interface (%%%s) means nothing to a proxy", address, a.Zone())
		}
		return net.JoinHostPort(host, port), nil
	}
	// Whatever could end the request line or add a header to it has no place in a
	// host name.
	bad := func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"<>\^{}|/?#@:[]%`, r) }
	if host == "" || len(host) > 253 || strings.ContainsFunc(host, bad) {
		return "", fmt.Errorf("dial %q: %q is no host name", address, host)
	}
	return net.JoinHostPort(host, port), nil
}

// prefixed is a connection of which the first bytes came with the proxy's answer.
type prefixed struct {
	net.Conn
	rest []byte
}

// Read returns the first bytes first. As with any connection, one goroutine reads.
func (c *prefixed) Read(b []byte) (int, error) {
	if len(c.rest) == 0 {
		return c.Conn.Read(b)
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// CloseWrite ends this side's direction.
func (c *prefixed) CloseWrite() error {
	w, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok {
		return errors.ErrUnsupported
	}
	return w.CloseWrite()
}
