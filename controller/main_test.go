package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/pgtest"
	"decoynet/internal/pki"
	"decoynet/internal/registry"
	"decoynet/internal/rpc"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"
	"decoynet/internal/store"

	"connectrpc.com/connect"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Main(m)) }

// office is a document of several machines: an ingress gateway at hq, which also has
// a zone, an egress at vm1, and agents on two servers.
const office = `
nodes: [{name: hq}, {name: crm-1}, {name: crm-2}, {name: vm1}]
gateways:
  - {name: gw1, node: hq, listen: 0.0.0.0:7444}
zones:
  - {name: linux, node: hq, subnet: 10.1.0.0/24, link: br-linux}
  - {name: far, subnet: 10.2.0.0/24, link: br-far, egress: {node: vm1, listen: 172.16.23.2:7445}}
services:
  - {name: web, zone: linux, address: 10.1.0.2, ports: [80]}
  - {name: win, zone: far, address: 10.2.0.2, ports: [445, 3389]}
decoys:
  - {name: crm, segment: host, node: crm-1, addresses: [any], bind: [{ports: [445], service: win}]}
  - {name: crm2, segment: host, node: crm-2, addresses: [any], bind: [{ports: [8080], service: web, target: 80}]}
`

// quick is the timing of tests: nothing in it is waited for, only what follows.
var quick = timing{
	heartbeat: 200 * time.Millisecond, lostAfter: time.Hour, grace: 10 * time.Millisecond,
	flush: 10 * time.Millisecond, seenFlush: 50 * time.Millisecond, sweep: 20 * time.Millisecond,
	recheck: 50 * time.Millisecond, announce: time.Hour, settle: time.Millisecond, packets: 20 * time.Second,
	ping: 10 * time.Second, pong: 10 * time.Second,
}

// site is a controller on a port.
type site struct {
	*Controller
	url      string
	location string // of the registry
	data     string
	store    *fakeStore
	stop     context.CancelFunc // of the port
	stopped  chan struct{}
}

type options struct {
	location string // of the registry; empty for a new file
	timing   *timing
	ttl      time.Duration // of certificates
	store    Store         // nil for the site's own
	reader   Reader
	packets  rpc.Packets
	closes   bool // the test closes the registry itself
}

func newSite(t testing.TB, o options) *site {
	t.Helper()
	s := &site{location: o.location, data: t.TempDir(), store: &fakeStore{}, stopped: make(chan struct{})}
	if s.location == "" {
		s.location = filepath.Join(s.data, registry.FileName)
	}
	if o.timing == nil {
		o.timing = &quick
	}
	if o.store == nil {
		o.store = s.store
	}
	r, err := registry.Open(within(t), s.location)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.url = "https://" + ln.Addr().String()
	s.Controller, err = start(Config{
		Registry: r, Store: o.store, Reader: o.reader, Packets: o.packets, Data: s.data, Version: "test", URLs: []string{s.url},
		CertificateTTL: o.ttl, Log: slog.New(slog.NewTextHandler(testLog{t}, nil)),
	}, *o.timing)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	go func() {
		defer close(s.stopped)
		if err := s.Serve(ctx, ln); err != nil {
			t.Errorf("serve: %v", err)
		}
	}()
	t.Cleanup(func() {
		stop()
		<-s.stopped
		if err := s.Close(); err != nil && !o.closes {
			t.Errorf("close: %v", err)
		}
		if err := r.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

type testLog struct{ t testing.TB }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// eventually waits until ok is true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("after a minute still not: %s", what)
		}
	}
}

// client is an HTTP client of its own connection.
func client(t testing.TB, id *pki.Identity, pin string) *http.Client {
	transport := &http.Transport{TLSClientConfig: pki.PinnedTLS(pin), ForceAttemptHTTP2: true}
	if id != nil {
		transport.TLSClientConfig = id.ControllerTLS()
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// bearer shows an API token.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

// as returns a client of the AdminService with the token, "" for none.
func (s *site) as(t testing.TB, token string) decoynetv1connect.AdminServiceClient {
	h := client(t, nil, s.Pin())
	if token != "" {
		h.Transport = bearer{token, h.Transport}
	}
	return decoynetv1connect.NewAdminServiceClient(h, s.url)
}

// admin returns a client with the token that the controller left on the machine.
func (s *site) admin(t testing.TB) decoynetv1connect.AdminServiceClient {
	return s.as(t, s.adminToken(t))
}

func (s *site) adminToken(t testing.TB) string {
	t.Helper()
	b, err := readPrivate(filepath.Join(s.data, adminTokenFile))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(b)
}

// user makes a user of the role and returns a client with its token.
func (s *site) user(t testing.TB, role string) (decoynetv1connect.AdminServiceClient, string) {
	t.Helper()
	name := role + "-1"
	res, err := s.admin(t).CreateUser(within(t), connect.NewRequest(&decoynetv1.CreateUserRequest{Name: name, Role: role}))
	if err != nil {
		t.Fatal(err)
	}
	return s.as(t, res.Msg.GetToken()), name
}

func (s *site) apply(t testing.TB, document string) string {
	t.Helper()
	res, err := s.admin(t).Apply(within(t), connect.NewRequest(&decoynetv1.ApplyRequest{Document: []byte(document), Name: "office.yaml"}))
	if err != nil {
		t.Fatal(err)
	}
	return res.Msg.GetRevision()
}

func (s *site) token(t testing.TB, node string) string {
	t.Helper()
	res, err := s.admin(t).CreateJoinToken(within(t), connect.NewRequest(&decoynetv1.CreateJoinTokenRequest{Node: node}))
	if err != nil {
		t.Fatal(err)
	}
	return res.Msg.GetToken()
}

// show shows a join token as a machine without an identity does.
func (s *site) show(t testing.TB, token string) (*pki.Identity, error) {
	t.Helper()
	key, csr, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	res, err := decoynetv1connect.NewEnrolmentServiceClient(client(t, nil, s.Pin()), s.url).Enrol(within(t),
		connect.NewRequest(&decoynetv1.EnrolRequest{Token: token, Csr: csr, Version: "1.2", Platform: "linux/amd64"}))
	if err != nil {
		return nil, err
	}
	id, err := pki.NewIdentity(pki.IdentityConfig{
		Key: key, Certificate: res.Msg.GetCertificate(), CA: res.Msg.GetCa(), Controllers: res.Msg.GetControllers(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return id, nil
}

// join makes a node and returns a client with its certificate.
func (s *site) join(t testing.TB, node string) (*pki.Identity, decoynetv1connect.NodeServiceClient) {
	t.Helper()
	id, err := s.show(t, s.token(t, node))
	if err != nil {
		t.Fatal(err)
	}
	return id, s.node(t, id)
}

// node returns a client with the identity, on a connection of its own.
func (s *site) node(t testing.TB, id *pki.Identity) decoynetv1connect.NodeServiceClient {
	return decoynetv1connect.NewNodeServiceClient(client(t, id, s.Pin()), s.url)
}

// watching is a Watch that runs.
type watching struct {
	snapshots chan *decoynetv1.Snapshot
	beats     chan struct{} // tokens
	ended     chan error    // takes why it ended, once
}

func watch(t testing.TB, c decoynetv1connect.NodeServiceClient, boot string) *watching {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &watching{snapshots: make(chan *decoynetv1.Snapshot, 1000), beats: make(chan struct{}, 1), ended: make(chan error, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		stream, err := c.Watch(ctx, connect.NewRequest(&decoynetv1.WatchRequest{Boot: boot}))
		if err != nil {
			w.ended <- err
			return
		}
		for stream.Receive() {
			if s := stream.Msg().GetSnapshot(); s != nil {
				w.snapshots <- s
				continue
			}
			select {
			case w.beats <- struct{}{}:
			default:
			}
		}
		w.ended <- stream.Err()
		stream.Close()
	}()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

// next waits for the next snapshot.
func (w *watching) next(t testing.TB) *decoynetv1.Snapshot {
	t.Helper()
	select {
	case s := <-w.snapshots:
		return s
	case err := <-w.ended:
		t.Fatalf("the stream ended: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("no snapshot for 30 s")
	}
	return nil
}

// end waits until the stream ends, and says why and how long that took.
func (w *watching) end(t testing.TB) (took time.Duration, why error) {
	t.Helper()
	begun := time.Now()
	select {
	case err := <-w.ended:
		return time.Since(begun), err
	case <-time.After(30 * time.Second):
		t.Fatal("the stream goes on for 30 s")
	}
	return 0, nil
}

// condition asks the API how the node is.
func (s *site) condition(t testing.TB, node string) *decoynetv1.NodeInfo {
	t.Helper()
	res, err := s.admin(t).ListNodes(within(t), connect.NewRequest(&decoynetv1.ListNodesRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range res.Msg.GetNodes() {
		if n.GetName() == node {
			return n
		}
	}
	t.Fatalf("no node %s", node)
	return nil
}

// lastAudit returns the newest audit entries, oldest first.
func (s *site) lastAudit(t testing.TB, n uint32) []*decoynetv1.AuditEntry {
	t.Helper()
	res, err := s.admin(t).ListAudit(within(t), connect.NewRequest(&decoynetv1.ListAuditRequest{Limit: n}))
	if err != nil {
		t.Fatal(err)
	}
	return res.Msg.GetEntries()
}

// refusedWith checks the code and the words of a refusal.
func refusedWith(t testing.TB, err error, code connect.Code, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("not refused; want %v", code)
		return
	}
	if got := connect.CodeOf(err); got != code {
		t.Errorf("refused with %v: %v; want %v", got, err, code)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("refused with %q, which does not say %q", err, w)
		}
	}
}

// fakeStore is a store in memory: committed records by identifier, events in order.
type fakeStore struct {
	mu       sync.Mutex // guards the rest
	sessions map[deception.SessionID]deception.Session
	seen     []deception.SourceSeen
	events   []deception.Event
	lost     []string // "node before"
	batches  []store.Batch
	broken   error           // what Commit and Lost return
	poison   map[string]bool // decoys whose sessions are refused
}

func (s *fakeStore) Commit(ctx context.Context, b store.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	for _, v := range b.Sessions {
		if s.poison[v.Decoy] {
			return fmt.Errorf("decoy %s: %w", v.Decoy, store.ErrRecord)
		}
	}
	if s.sessions == nil {
		s.sessions = make(map[deception.SessionID]deception.Session)
	}
	for _, v := range b.Sessions {
		s.sessions[v.ID] = v
	}
	s.seen = append(s.seen, b.Seen...)
	s.events = append(s.events, b.Events...)
	s.batches = append(s.batches, b)
	return ctx.Err()
}

func (s *fakeStore) Event(e *deception.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.ID.IsZero() || e.Time.IsZero() || e.Kind == "" || e.Message == "" {
		panic(fmt.Sprintf("half an event: %+v", e))
	}
	s.events = append(s.events, *e)
}

func (s *fakeStore) Lost(_ context.Context, node string, before time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken != nil {
		return s.broken
	}
	s.lost = append(s.lost, fmt.Sprint(node, " ", before.UnixMilli()))
	return nil
}

func (s *fakeStore) set(broken error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = broken
}

// eventsOf returns the events of a kind about a node.
func (s *fakeStore) eventsOf(kind deception.EventKind, node string) (out []deception.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if e.Kind == kind && e.Node == node {
			out = append(out, e)
		}
	}
	return out
}

func (s *fakeStore) lostNodes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lost)
}

// get fetches a page without the API.
func get(t testing.TB, h *http.Client, url string) (int, string) {
	t.Helper()
	res, err := h.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}
