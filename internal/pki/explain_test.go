package pki

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// fetch connects for real and returns what went wrong, as a client of HTTP gets it.
func fetch(t testing.TB, url string, cfg *tls.Config, timeout time.Duration) error {
	t.Helper()
	transport := &http.Transport{
		TLSClientConfig: cfg, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			var d net.Dialer
			conn, err := d.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return KeepAlert(conn), nil
		},
	}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err == nil {
		resp.Body.Close()
	}
	return err
}

// TestExplainTheNetwork makes each fault for real.
func TestExplainTheNetwork(t *testing.T) {
	ca := makeCA(t)
	cfg := enrol(t, ca, "hq", 1, time.Now()).ControllerTLS()

	gone := listen(t)
	free := gone.Addr().String()
	gone.Close()

	silent := listen(t) // accepts in the kernel and never answers

	plain := httptest.NewUnstartedServer(http.NotFoundHandler())
	plain.Config.ErrorLog = log.New(io.Discard, "", 0)
	plain.Start()
	defer plain.Close()

	mute := listen(t)
	muteDone := make(chan struct{})
	go func() {
		defer close(muteDone)
		for {
			c, err := mute.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 1<<16)) // all of the hello, so that closing is no reset
			c.Close()
		}
	}()
	defer func() { mute.Close(); <-muteDone }()

	rude := listen(t)
	rudeDone := make(chan struct{})
	go func() {
		defer close(rudeDone)
		for {
			c, err := rude.Accept()
			if err != nil {
				return
			}
			c.(*net.TCPConn).SetLinger(0)
			c.Read(make([]byte, 1))
			c.Close()
		}
	}()
	defer func() { rude.Close(); <-rudeDone }()

	for _, tt := range []struct {
		name, url string
		timeout   time.Duration
		says      []string
	}{
		{"refused", "https://" + free, patience, []string{"nothing listens at " + free}},
		{"no answer", "https://" + silent.Addr().String(), 200 * time.Millisecond, []string{"did not answer in time"}},
		{"plain HTTP", "https" + plain.URL[len("http"):], patience, []string{"no TLS is spoken"}},
		{"closed", "https://" + mute.Addr().String(), patience, []string{"without a word"}},
		{"reset", "https://" + rude.Addr().String(), patience, []string{"broke the connection off"}},
		// To TCP a broadcast address is unreachable on every machine, and nothing is sent.
		{"no route", "https://255.255.255.255:7443", patience, []string{"no route to 255.255.255.255:7443"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := fetch(t, tt.url, cfg, tt.timeout)
			if err == nil {
				t.Fatal("connected")
			}
			if got := Explain(err); got == err.Error() {
				t.Errorf("not explained: %v", err)
			} else {
				mentions(t, "Explain", got, tt.says...)
			}
		})
	}
}

// TestExplainHTTP is about what is left of an alert behind HTTP/2.
func TestExplainHTTP(t *testing.T) {
	w := makeWorld(t)
	l := listen(t)
	server := &http.Server{
		Handler: http.NotFoundHandler(), TLSConfig: w.ca.ControllerTLS(nil), ErrorLog: log.New(io.Discard, "", 0),
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(l, "", "") }()
	defer func() { server.Close(); <-served }()
	url := "https://" + l.Addr().String()
	if err := fetch(t, url, w.crm.ControllerTLS(), patience); err != nil {
		t.Fatalf("a node is not let in: %v", err)
	}
	// Often, since it is chance whether the alert, the client's first write or its
	// first request is faster. Where the alert comes before the request net/http
	// forgets it; that must be rare.
	vague := 0
	for range 100 {
		got := Explain(fetch(t, url, with(w.crm.ControllerTLS(), w.stranger.pair.Load()), patience))
		mentions(t, "another CA's node", got, "certificate", "revoked")
		if !strings.Contains(got, "does not let this machine in") {
			vague++
		}
	}
	if vague > 50 {
		t.Errorf("the alert was lost %d times of 100", vague)
	}
	err := fetch(t, url, PinnedTLS(w.other.Pin()), patience)
	mentions(t, "wrong pin", Explain(err), "nothing was sent to it", w.other.Pin())
}

func TestExplainTexts(t *testing.T) {
	for _, tt := range []struct {
		err  error
		says string
	}{
		{&net.OpError{Op: "remote error", Err: errors.New("tls: unknown certificate")}, "does not say why"},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: unknown certificate authority")}, "of another CA"},
		{fmt.Errorf("watch: %w", &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}), "was revoked"},
		{&net.OpError{Op: "remote error", Err: errors.New("tls: alert(200)")}, `the TLS alert "alert(200)"`},
		{&net.DNSError{Name: "hq.example.com", IsNotFound: true}, "hq.example.com has no address"},
		{&net.DNSError{Name: "hq.example.com", IsTimeout: true, Server: "192.0.2.53:53"}, "resolver 192.0.2.53:53 did not answer"},
		{&net.DNSError{Name: "hq.example.com", Err: "server misbehaving"}, "server misbehaving"},
		{context.Canceled, "given up"},
		{fmt.Errorf("read: %w", io.ErrUnexpectedEOF), "closed the connection"},
		{errors.New("something else"), "something else"},
		{fmt.Errorf("outer: %w", selfmade{}), "in my own words"},
		{ErrNoIdentity, "not enrolled"},
	} {
		mentions(t, tt.err.Error(), Explain(tt.err), tt.says)
	}
	if got := Explain(nil); got != "" {
		t.Errorf("nothing wrong, and yet %q", got)
	}
}

type selfmade struct{}

func (selfmade) Error() string   { return "selfmade" }
func (selfmade) Explain() string { return "in my own words" }
