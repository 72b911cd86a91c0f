package rpc

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/pki"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"

	"connectrpc.com/connect"
)

// authority is the CA of a test's controllers.
type authority struct{ *pki.CA }

func newAuthority(t testing.TB) *authority {
	t.Helper()
	ca, err := pki.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	return &authority{ca}
}

// identity makes a node's identity without a controller. A negative lifetime
// makes one that expired so long ago.
func (a *authority) identity(t testing.TB, name string, ttl time.Duration, urls ...string) *pki.Identity {
	t.Helper()
	key, csr, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	issued := time.Now()
	if ttl < 0 {
		issued, ttl = issued.Add(ttl-time.Hour), time.Hour
	}
	der, err := a.SignNode(csr, name, 1, ttl, issued)
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.NewIdentity(pki.IdentityConfig{Key: key, Certificate: der, CA: a.Certificate().Raw, Controllers: urls})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// store is what controllers share: the records that are committed.
type store struct {
	mu      sync.Mutex
	times   map[deception.SessionID]int // how often each was delivered
	batches [][]deception.SessionID
	unsure  map[deception.SessionID]bool // delivered, and the answer did not get through
}

func newStore() *store {
	return &store{times: map[deception.SessionID]int{}, unsure: map[deception.SessionID]bool{}}
}

// commit takes the records of a batch; the error is of one that cannot be read.
func (s *store) commit(records [][]byte) ([]deception.SessionID, error) {
	var ids []deception.SessionID
	for _, b := range records {
		r, err := DecodeRecord(b)
		switch {
		case err != nil:
			return nil, connect.NewError(connect.CodeInvalidArgument, err)
		case r.Session != nil:
			ids = append(ids, r.Session.ID)
		case r.SourceSeen != nil:
			ids = append(ids, r.SourceSeen.Session)
		case r.Event != nil:
			ids = append(ids, r.Event.ID)
		case r.Probe != nil:
			ids = append(ids, r.Probe.ID)
		case r.Finding != nil:
			ids = append(ids, r.Finding.ID)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range ids {
		s.times[id]++
	}
	s.batches = append(s.batches, ids)
	return ids, nil
}

func (s *store) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.times)
}

// controller is a controller in this process: real TLS, real HTTP/2, one part of
// one document.
type controller struct {
	*authority
	store *store
	url   string
	srv   *http.Server

	mu        sync.Mutex // guards everything below
	snapshot  *decoynetv1.Snapshot
	changed   chan struct{} // closed when snapshot is another, and replaced
	watches   []*decoynetv1.WatchRequest
	reports   []*decoynetv1.ReportRequest
	renewals  int
	mute      bool          // says nothing any more
	beat      time.Duration // between heartbeats
	ahead     time.Duration // of its clock
	deny      error
	onUpload  func(number int) fate
	uploads   int
	uploading atomic.Int32      // calls of Upload that run
	tokens    map[string]string // to node; used ones lead nowhere
}

// fate is what happens to an upload.
type fate int

const (
	commit    fate = iota
	loseAck        // committed, then the connection breaks
	hang           // nothing is committed, no answer comes
	slow           // committed, after a while
	breakdown      // an answer that something is wrong
)

func startController(t testing.TB, a *authority, s *store) *controller {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &controller{authority: a, store: s, changed: make(chan struct{}), beat: 100 * time.Millisecond, tokens: map[string]string{}}
	c.url = "https://" + ln.Addr().String()
	c.serve(t, ln)
	return c
}

type peerKey struct{}

func (c *controller) serve(t testing.TB, ln net.Listener) {
	mux := http.NewServeMux()
	mux.Handle(decoynetv1connect.NewNodeServiceHandler(c))
	mux.Handle(decoynetv1connect.NewEnrolmentServiceHandler(c))
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if len(r.TLS.PeerCertificates) > 0 {
				r = r.WithContext(context.WithValue(r.Context(), peerKey{}, r.TLS.PeerCertificates[0]))
			}
			mux.ServeHTTP(w, r)
		}),
		TLSConfig: c.ControllerTLS([]string{c.url}),
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	c.mu.Lock()
	c.srv = srv
	c.mu.Unlock()
	done := make(chan struct{})
	go func() {
		srv.ServeTLS(ln, "", "")
		close(done)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
}

// stop ends the controller at once; restart brings it back at the same address.
func (c *controller) stop() { c.srv.Close() }

func (c *controller) restart(t testing.TB) {
	t.Helper()
	// A client that dials a loopback port where nobody listens may be given that
	// very port as its own, and meet itself; it lets go when that makes no sense.
	var ln net.Listener
	eventually(t, "listening again", func() bool {
		var err error
		ln, err = net.Listen("tcp", c.url[len("https://"):])
		return err == nil
	}, func() string { return c.url })
	c.serve(t, ln)
}

// set changes something.
func (c *controller) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

// publish makes the snapshot the node's present one.
func (c *controller) publish(s *decoynetv1.Snapshot) {
	c.set(func() {
		c.snapshot = s
		close(c.changed)
		c.changed = make(chan struct{})
	})
}

// admit returns the node that calls, or why it may not.
func (c *controller) admit(ctx context.Context, renewal bool) (string, error) {
	cert, _ := ctx.Value(peerKey{}).(*x509.Certificate)
	name, _, err := pki.NodeOf(cert)
	if err != nil {
		return "", connect.NewError(connect.CodeUnauthenticated, err)
	}
	if !renewal && pki.Expired(cert, time.Now()) {
		return "", connect.NewError(connect.CodeUnauthenticated, errors.New("the certificate expired"))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return name, c.deny
}

func (c *controller) Watch(ctx context.Context, req *connect.Request[decoynetv1.WatchRequest], stream *connect.ServerStream[decoynetv1.WatchResponse]) error {
	if _, err := c.admit(ctx, false); err != nil {
		return err
	}
	c.set(func() { c.watches = append(c.watches, req.Msg) })
	for {
		c.mu.Lock()
		m := &decoynetv1.WatchResponse{Snapshot: c.snapshot, ControllerTime: time.Now().Add(c.ahead).UnixNano()}
		changed, mute, beat, deny := c.changed, c.mute, c.beat, c.deny
		c.mu.Unlock()
		if deny != nil {
			return deny
		}
		for again := true; again; {
			if !mute {
				if err := stream.Send(m); err != nil {
					return err
				}
			}
			select {
			case <-changed:
				again = false
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(beat):
				c.mu.Lock()
				m = &decoynetv1.WatchResponse{ControllerTime: time.Now().Add(c.ahead).UnixNano()}
				mute, deny = c.mute, c.deny
				c.mu.Unlock()
				if deny != nil {
					return deny
				}
			}
		}
	}
}

func (c *controller) Report(ctx context.Context, req *connect.Request[decoynetv1.ReportRequest]) (*connect.Response[decoynetv1.ReportResponse], error) {
	if _, err := c.admit(ctx, false); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reports = append(c.reports, req.Msg)
	return connect.NewResponse(&decoynetv1.ReportResponse{ControllerTime: time.Now().Add(c.ahead).UnixNano()}), nil
}

func (c *controller) lastReport() *decoynetv1.ReportRequest {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.reports) == 0 {
		return nil
	}
	return c.reports[len(c.reports)-1]
}

func (c *controller) Upload(ctx context.Context, req *connect.Request[decoynetv1.UploadRequest]) (*connect.Response[decoynetv1.UploadResponse], error) {
	if _, err := c.admit(ctx, false); err != nil {
		return nil, err
	}
	c.uploading.Add(1)
	defer c.uploading.Add(-1)
	c.mu.Lock()
	c.uploads++
	what := commit
	if c.onUpload != nil {
		what = c.onUpload(c.uploads)
	}
	c.mu.Unlock()
	switch what {
	case hang:
		<-ctx.Done()
		return nil, ctx.Err()
	case breakdown:
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("the database is away"))
	case slow:
		time.Sleep(20 * time.Millisecond)
	}
	ids, err := c.store.commit(req.Msg.GetRecords())
	if err != nil {
		return nil, err
	}
	if what == loseAck {
		c.store.mu.Lock()
		for _, id := range ids {
			c.store.unsure[id] = true
		}
		c.store.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
	return connect.NewResponse(&decoynetv1.UploadResponse{}), nil
}

func (c *controller) Renew(ctx context.Context, req *connect.Request[decoynetv1.RenewRequest]) (*connect.Response[decoynetv1.RenewResponse], error) {
	name, err := c.admit(ctx, true)
	if err != nil {
		return nil, err
	}
	c.set(func() { c.renewals++ })
	der, err := c.SignNode(req.Msg.GetCsr(), name, 1, time.Hour, time.Now())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	return connect.NewResponse(&decoynetv1.RenewResponse{Certificate: der, Ca: c.Certificate().Raw}), nil
}

func (c *controller) Enrol(_ context.Context, req *connect.Request[decoynetv1.EnrolRequest]) (*connect.Response[decoynetv1.EnrolResponse], error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	name := c.tokens[req.Msg.GetToken()]
	if name == "" {
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("the token was used on 2026-01-02; make another"))
	}
	c.tokens[req.Msg.GetToken()] = ""
	der, err := c.SignNode(req.Msg.GetCsr(), name, 1, time.Hour, time.Now())
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	return connect.NewResponse(&decoynetv1.EnrolResponse{
		Node: name, Certificate: der, Ca: c.Certificate().Raw, Controllers: []string{c.url, "https://other.example:7443"},
	}), nil
}

// SendPackets is proved with a real controller, in package controller.
func (c *controller) SendPackets(context.Context, *connect.ClientStream[decoynetv1.SendPacketsRequest]) (*connect.Response[decoynetv1.SendPacketsResponse], error) {
	return nil, connect.NewError(connect.CodeUnimplemented, errors.New("not here"))
}
