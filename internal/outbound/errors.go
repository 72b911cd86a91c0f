package outbound

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
)

// Stage says how far a connection through a proxy came.
type Stage string

// The stages at which it can fail.
const (
	StageReach   Stage = "reach"   // the proxy cannot be reached
	StageTLS     Stage = "tls"     // it is an https proxy, and TLS with it fails
	StageAnswer  Stage = "answer"  // its answer does not come, or is none
	StageRefused Stage = "refused" // it says no; Status tells why
)

// ProxyError says why there is no connection through a proxy.
type ProxyError struct {
	Proxy  string // host:port
	Target string // host:port
	Stage  Stage
	Status int    // of HTTP, where it said no
	Reason string // its status line's own words
	Err    error  // nil where it said no

	schemes []string // of authentication that it would take
	user    bool     // we showed a name and password
}

func (e *ProxyError) Unwrap() error { return e.Err }

func (e *ProxyError) Error() string {
	switch e.Stage {
	case StageReach:
		return fmt.Sprintf("proxy %s cannot be reached: %v", e.Proxy, e.Err)
	case StageTLS:
		return fmt.Sprintf("TLS with proxy %s: %v", e.Proxy, e.Err)
	case StageRefused:
		return fmt.Sprintf("proxy %s refuses %s: %s", e.Proxy, e.Target, e.Reason)
	}
	if e.timeout() {
		return fmt.Sprintf("proxy %s gave no answer for %s in time", e.Proxy, e.Target)
	}
	return fmt.Sprintf("proxy %s, asked for %s: %v", e.Proxy, e.Target, e.Err)
}

// Timeout tells whether it took too long; with Temporary it makes this a net.Error.
func (e *ProxyError) Timeout() bool { return e.timeout() }

// Temporary tells whether a later try may do better by itself.
func (e *ProxyError) Temporary() bool {
	return e.Stage != StageRefused || e.Status >= 500
}

func (e *ProxyError) timeout() bool {
	var t net.Error
	return errors.Is(e.Err, context.DeadlineExceeded) || errors.Is(e.Err, os.ErrDeadlineExceeded) ||
		errors.As(e.Err, &t) && t.Timeout()
}

// Explain says what is wrong and what to do, for the person at the console.
func (e *ProxyError) Explain() string {
	switch e.Stage {
	case StageReach:
		return fmt.Sprintf("the proxy %s cannot be reached (%v): check its address and port; no other way out is tried", e.Proxy, e.Err)
	case StageTLS:
		var record tls.RecordHeaderError
		if errors.As(e.Err, &record) {
			return fmt.Sprintf("the proxy %s speaks no TLS: write http:// for it", e.Proxy)
		}
		return fmt.Sprintf("no TLS with the proxy %s (%v): its certificate must be valid for this machine's system roots, or write http:// for it", e.Proxy, e.Err)
	case StageRefused:
		return e.explainRefusal()
	}
	if e.timeout() {
		return fmt.Sprintf("the proxy %s gave no answer for %s in time: it cannot reach it, or is no proxy", e.Proxy, e.Target)
	}
	return fmt.Sprintf("the proxy %s, asked for %s, is no HTTP proxy or broken: %v; if it is reached by TLS, write https:// for it", e.Proxy, e.Target, e.Err)
}

func (e *ProxyError) explainRefusal() string {
	says := fmt.Sprintf("the proxy %s says %q to a connection to %s: ", e.Proxy, e.Reason, e.Target)
	switch e.Status {
	case 407, 401: // Tinyproxy says 401 to a wrong password
		switch basic := slices.Contains(e.schemes, "basic"); {
		case !basic && len(e.schemes) > 0:
			return says + fmt.Sprintf("it wants %s authentication, and only Basic can be given; ask for Basic or for an exception for this machine", strings.Join(e.schemes, " or "))
		case e.user:
			return says + "user or password in the proxy's URL are wrong"
		}
		return says + "it wants a user and password; write them as http://user:password@" + e.Proxy
	case 403, 451:
		return says + "its rules forbid it; ask its administrator to allow CONNECT to this address and port"
	case 400, 404, 405, 501:
		return says + "it is no proxy for CONNECT, or forbids it; check its address and port"
	case 500, 502, 503, 504: // Tinyproxy says 500 where others say 502
		return says + "it could not reach it; check the address as seen from the proxy, and its firewall"
	case 429:
		return says + "too many connections for its liking"
	}
	return says + "ask its administrator why"
}
