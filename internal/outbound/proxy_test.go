package outbound

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

func TestDirect(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		c, err := dialer(t, "").DialContext(t.Context(), "tcp", serve(t, at, greeter))
		if err != nil {
			t.Fatal(err)
		}
		converse(t, c)
	}
	if _, err := dialer(t, "").DialContext(t.Context(), "udp", "127.0.0.1:9"); err == nil {
		t.Error("a datagram socket")
	}
}

// TestNastyProxies: whatever a proxy does, the error names it and what it did, in
// bounded time and memory, and nobody is dialed around it.
func TestNastyProxies(t *testing.T) {
	say := func(text string) func(net.Conn, *http.Request) {
		return func(c net.Conn, _ *http.Request) { io.WriteString(c, text) }
	}
	stay := func(text string) func(net.Conn, *http.Request) {
		return func(c net.Conn, _ *http.Request) { io.WriteString(c, text); untilGone(c) }
	}
	tests := []struct {
		name    string
		answer  func(net.Conn, *http.Request)
		timeout time.Duration
		stage   Stage
		status  int
		slow    bool // ends by the timeout
		says    []string
	}{
		{name: "never answers", answer: stay(""), timeout: 300 * time.Millisecond, stage: StageAnswer, slow: true, says: []string{"gave no answer", "in time"}},
		{name: "half a header and stays", answer: stay("HTTP/1.1 200 OK\r\nX-Y: "), timeout: 300 * time.Millisecond, stage: StageAnswer, slow: true, says: []string{"in time"}},
		{name: "half a header and goes", answer: say("HTTP/1.1 200 OK\r\nX-Y: "), stage: StageAnswer, says: []string{"in the middle of its answer"}},
		{name: "half a word", answer: say("HTT"), stage: StageAnswer, says: []string{"in the middle of its answer"}},
		{name: "closes", answer: say(""), stage: StageAnswer, says: []string{"without an answer"}},
		{name: "resets", answer: func(c net.Conn, _ *http.Request) { c.(*net.TCPConn).SetLinger(0) }, stage: StageAnswer, says: []string{"connection reset"}},
		{name: "garbage", answer: stay("\x00\x1b[31mSSH-2.0-OpenSSH\r\n\r\n"), stage: StageAnswer, says: []string{"speaks no HTTP", "SSH-2.0"}},
		{name: "garbage after HTTP/", answer: stay("HTTP/1.1 two hundred\r\n\r\n"), stage: StageAnswer, says: []string{"malformed"}},
		{name: "TLS alert", answer: stay("\x15\x03\x01\x00\x02\x02\x0a\r\n\r\n"), stage: StageAnswer, says: []string{"write https://"}},
		{name: "a megabyte of header", answer: func(c net.Conn, _ *http.Request) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			for n := range 1 << 14 {
				if _, err := fmt.Fprintf(c, "X-%05d: %s\r\n", n, strings.Repeat("y", 56)); err != nil {
					return
				}
			}
		}, stage: StageAnswer, says: []string{"longer than 16384 bytes"}},
		{name: "one endless line", answer: func(c net.Conn, _ *http.Request) {
			io.WriteString(c, "HTTP/1.1 200 ")
			for range 1 << 10 {
				if _, err := io.WriteString(c, strings.Repeat("y", 1024)); err != nil {
					return
				}
			}
		}, stage: StageAnswer, says: []string{"longer than 16384 bytes"}},
		{name: "endless interim answers", answer: func(c net.Conn, _ *http.Request) {
			for range 1 << 16 {
				if _, err := io.WriteString(c, "HTTP/1.1 102 Processing\r\n\r\n"); err != nil {
					return
				}
			}
		}, stage: StageAnswer, says: []string{"longer than 16384 bytes"}},
		{name: "one byte at a time", answer: func(c net.Conn, _ *http.Request) {
			for _, b := range []byte("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") {
				c.Write([]byte{b})
			}
		}, stage: StageRefused, status: 403, says: []string{`"403 Forbidden"`, "its rules forbid it"}},
		{name: "407 Basic", answer: stay("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 5\r\n\r\nsorry"), stage: StageRefused, status: 407, says: []string{"wants a user and password", "http://user:password@"}},
		{name: "407 NTLM", answer: stay("HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n\r\n"), stage: StageRefused, status: 407, says: []string{"negotiate or ntlm", "only Basic"}},
		{name: "403 with colours", answer: stay("HTTP/1.1 403 \x1b[2JForbidden\x07" + strings.Repeat("z", 500) + "\r\n\r\n"), stage: StageRefused, status: 403, says: []string{"403 .[2JForbidden.zz", "..."}},
		{name: "502", answer: stay("HTTP/1.1 502 Bad Gateway\r\n\r\n"), stage: StageRefused, status: 502, says: []string{"it could not reach it"}},
		{name: "405", answer: stay("HTTP/1.0 405 Method Not Allowed\r\n\r\n"), stage: StageRefused, status: 405, says: []string{"no proxy for CONNECT"}},
		{name: "302", answer: stay("HTTP/1.1 302 Found\r\nLocation: https://portal/\r\n\r\n"), stage: StageRefused, status: 302, says: []string{"302 Found"}},
		{name: "101", answer: stay("HTTP/1.1 101 Switching Protocols\r\n\r\n"), stage: StageRefused, status: 101, says: []string{"101 Switching"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			around := make(chan struct{}, 1)
			target := serve(t, "127.0.0.1:0", func(net.Conn) { around <- struct{}{} })
			at := fakeProxy(t, tt.answer)
			d := dialer(t, "http://"+at)
			d.Timeout = patience
			if tt.timeout > 0 {
				d.Timeout = tt.timeout
			}
			c, err := d.DialContext(t.Context(), "tcp", target)
			if err == nil {
				c.Close()
				t.Fatal("connected")
			}
			var failed *ProxyError
			if !errors.As(err, &failed) {
				t.Fatalf("%v is no ProxyError", err)
			}
			if failed.Stage != tt.stage || failed.Status != tt.status || failed.Proxy != at || failed.Target != target || failed.Timeout() != tt.slow {
				t.Errorf("got %+v", failed)
			}
			mentions(t, "error", err.Error(), at)
			mentions(t, "explanation", failed.Explain(), append(tt.says, at, target)...)
			if strings.ContainsAny(err.Error()+failed.Explain(), "\x1b\x07\x00\r\n") {
				t.Errorf("control characters get through: %q", err)
			}
			select {
			case <-around:
				t.Error("the target was dialed around the proxy")
			default:
			}
		})
	}
}

// TestBytesAfterHeader puts the target's first bytes into the same packet as the
// proxy's answer, with and without things that must be ignored.
func TestBytesAfterHeader(t *testing.T) {
	for name, head := range map[string]string{
		"plain":             "HTTP/1.1 200 Connection established\r\n\r\n",
		"HTTP/1.0":          "HTTP/1.0 200 OK\r\nProxy-agent: x\r\n\r\n",
		"interim":           "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
		"length":            "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"length of more":    "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n",
		"chunked":           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
		"other success":     "HTTP/1.1 204 No Content\r\n\r\n",
		"bare line feeds":   "HTTP/1.1 200 OK\nX: y\n\n",
		"no reason":         "HTTP/1.1 200\r\n\r\n",
		"just small enough": "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("y", maxAnswer-100) + "\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			// More than any buffer between, so that some of it comes with the header
			// and some later.
			data := strings.Repeat("0123456789abcdef", 1<<14)
			at := fakeProxy(t, func(c net.Conn, _ *http.Request) {
				io.WriteString(c, head+data)
				c.(*net.TCPConn).CloseWrite()
				untilGone(c)
			})
			c, err := dialer(t, "http://"+at).DialContext(t.Context(), "tcp", "198.51.100.1:443")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(patience))
			got, err := io.ReadAll(c)
			if err != nil || string(got) != data {
				t.Errorf("read %d bytes, %v; want %d", len(got), err, len(data))
			}
		})
	}
}

// TestRequest shows what the proxy is told.
func TestRequest(t *testing.T) {
	type told struct{ uri, host, auth, agent string }
	got := make(chan told, 1)
	at := fakeProxy(t, func(c net.Conn, req *http.Request) {
		got <- told{req.RequestURI, req.Host, req.Header.Get("Proxy-Authorization"), req.UserAgent()}
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
	})
	for _, tt := range []struct{ user, target, auth string }{
		{"", "hq.example.com:7443", ""},
		{"", "[2001:db8::1]:7443", ""},
		{"joe:p%40ss%3Aw%2Frd@", "192.0.2.1:443", "Basic am9lOnBAc3M6dy9yZA=="}, // joe:p@ss:w/rd
		{"joe@", "192.0.2.1:443", "Basic am9lOg=="},                             // joe:
	} {
		c, err := dialer(t, "http://"+tt.user+at).DialContext(t.Context(), "tcp", tt.target)
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		want := told{tt.target, tt.target, tt.auth, "Go-http-client/1.1"}
		if g := <-got; g != want {
			t.Errorf("the proxy was told %+v, want %+v", g, want)
		}
	}
}

func TestBadTargets(t *testing.T) {
	asked := make(chan string, 16)
	at := serve(t, "127.0.0.1:0", func(c net.Conn) { asked <- "connection" })
	for _, target := range []string{
		"hq", "hq:", ":443", "hq:0", "hq:65536", "hq:https", "[fe80::1%eth0]:443", "h q:443",
		"hq\r\nX-Evil: 1:443", "hq:443\r\nX-Evil: 1", "a@b:443", "hq/x:443", strings.Repeat("a", 300) + ":443", "h%71:443", "\u00e9:443",
	} {
		c, err := dialer(t, "http://"+at).DialContext(t.Context(), "tcp", target)
		if err == nil {
			c.Close()
			t.Errorf("%q: connected", target)
		}
	}
	select {
	case <-asked:
		t.Error("the proxy was asked for a bad target")
	default:
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	at := fakeProxy(t, func(c net.Conn, _ *http.Request) {
		cancel() // while the dialer waits for the answer
		untilGone(c)
	})
	_, err := dialer(t, "http://"+at).DialContext(ctx, "tcp", "192.0.2.1:443")
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v is not context.Canceled", err)
	}
	// A context that ends after the dialing does not end the connection.
	ctx, cancel = context.WithCancel(t.Context())
	at = fakeProxy(t, func(c net.Conn, _ *http.Request) {
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		greeter(c)
	})
	c, err := dialer(t, "http://"+at).DialContext(ctx, "tcp", "192.0.2.1:443")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	converse(t, c)
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	l.Close()
	around := serve(t, "127.0.0.1:0", func(net.Conn) { t.Error("dialed around the proxy") })
	_, err = dialer(t, "http://joe:secret@"+at).DialContext(t.Context(), "tcp", around)
	var failed *ProxyError
	if !errors.As(err, &failed) || failed.Stage != StageReach {
		t.Fatalf("got %v", err)
	}
	mentions(t, "explanation", failed.Explain(), "proxy "+at+" cannot be reached", "no other way out is tried")
	if strings.Contains(err.Error()+failed.Explain(), "secret") {
		t.Errorf("the password is in %q", err)
	}
}

// TestTLSProxy is about proxies that are themselves reached by TLS.
func TestTLSProxy(t *testing.T) {
	cert, roots := selfSigned(t)
	secure := &tls.Config{Certificates: []tls.Certificate{cert}}
	at := serve(t, "127.0.0.1:0", func(raw net.Conn) {
		c := tls.Server(raw, secure)
		if c.Handshake() != nil {
			return
		}
		defer c.Close()
		req, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil || req.RequestURI != "hq.example.com:7443" {
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		greeter(c)
	})
	d := dialer(t, "https://"+at)
	d.roots = roots
	c, err := d.DialContext(t.Context(), "tcp", "hq.example.com:7443")
	if err != nil {
		t.Fatal(err)
	}
	converse(t, c)

	_, err = dialer(t, "https://"+at).DialContext(t.Context(), "tcp", "hq.example.com:7443")
	explained(t, err, StageTLS, "system roots")
	plain := fakeProxy(t, func(net.Conn, *http.Request) {})
	_, err = dialer(t, "https://"+plain).DialContext(t.Context(), "tcp", "hq.example.com:7443")
	explained(t, err, StageTLS, "write http://")
	_, err = dialer(t, "http://"+at).DialContext(t.Context(), "tcp", "hq.example.com:7443")
	explained(t, err, StageAnswer, "write https://")
	silent := serve(t, "127.0.0.1:0", untilGone)
	d = dialer(t, "https://"+silent)
	d.Timeout = 200 * time.Millisecond
	_, err = d.DialContext(t.Context(), "tcp", "hq.example.com:7443")
	if explained(t, err, StageTLS, silent); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v is no timeout", err)
	}
}

func explained(t testing.TB, err error, stage Stage, says string) {
	t.Helper()
	var failed *ProxyError
	if !errors.As(err, &failed) || failed.Stage != stage {
		t.Errorf("got %v, want a ProxyError of stage %s", err, stage)
		return
	}
	mentions(t, "explanation", failed.Explain(), says)
}

// selfSigned makes a certificate for 127.0.0.1.
func selfSigned(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// FuzzAnswer feeds a proxy's answer: it must be read or refused within its limits,
// and nothing of the target's bytes may be lost.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "SSH-2.0-x\r\n", "\x15\x03\x01", "HTTP/9.9 999 ?\r\n\r\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		const tail = "the target's own bytes"
		source := strings.NewReader(s + tail)
		rest, a, err := readAnswer(source)
		if taken := len(s) + len(tail) - source.Len(); taken > maxAnswer {
			t.Fatalf("took %d bytes", taken)
		}
		if err != nil {
			if strings.ContainsAny(err.Error(), "\x1b\x07\x00") {
				t.Errorf("control characters in %q", err)
			}
			return
		}
		if a.code < 100 || a.code/100 == 1 && a.code != 101 {
			t.Errorf("status %d", a.code)
		}
		left, _ := io.ReadAll(source)
		if all := string(rest) + string(left); !strings.HasSuffix(s+tail, all) || len(s) > 0 && len(all) == len(s)+len(tail) {
			t.Errorf("bytes lost or made: %q of %q", all, s+tail)
		}
	})
}
