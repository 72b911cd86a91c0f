package controller

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/config"
	"decoynet/deception"
	"decoynet/internal/pki"
	"decoynet/internal/registry"
	"decoynet/internal/rpc/decoynetv1"

	"connectrpc.com/connect"
)

// The commands on the controller's machine have a token from its first start on.
func TestAdminToken(t *testing.T) {
	dir := t.TempDir()
	location := filepath.Join(dir, registry.FileName)
	begin := func(data string) (token string) {
		t.Helper()
		r, err := registry.Open(within(t), location)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		c, err := start(Config{Registry: r, Store: &fakeStore{}, Data: data, URLs: []string{"https://hq:7443"}}, quick)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		token, err = readPrivate(filepath.Join(data, adminTokenFile))
		if err != nil {
			t.Fatal(err)
		}
		secret, err := registry.ParseSecret(registry.UserSecret, strings.TrimSpace(token))
		if err != nil {
			t.Fatal(err)
		}
		if u, err := r.UserOf(within(t), secret); err != nil || u.Role != registry.RoleAdmin || !strings.HasPrefix(u.Name, firstUserName) {
			t.Errorf("the token is of %+v, %v", u, err)
		}
		return token
	}
	first := begin(dir)
	if again := begin(dir); again != first {
		t.Error("a second start makes another token")
	}
	// Another machine on the same database has its own, and leaves the first alone.
	if other := begin(t.TempDir()); other == first {
		t.Error("two machines have one token")
	}
	if again := begin(dir); again != first {
		t.Error("another machine's start took the token away")
	}
	if err := os.WriteFile(filepath.Join(dir, adminTokenFile), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if mended := begin(dir); mended == first {
		t.Error("a broken file gave the old token")
	}
}

func TestBadURLs(t *testing.T) {
	for _, urls := range [][]string{nil, {"hq:7443"}, {"http://hq:7443"}, {"https://"}, {"https://hq/x"}, {"https://hq:7443", "::"}} {
		if _, err := New(Config{URLs: urls}); err == nil || !strings.Contains(err.Error(), "https://hq.example.com:7443") {
			t.Errorf("New with %q: %v", urls, err)
		}
	}
}

func TestIssueIdentity(t *testing.T) {
	s := newSite(t, options{ttl: time.Hour})
	dir := t.TempDir()
	issue := func() *pki.Identity {
		t.Helper()
		id, err := s.IssueIdentity(within(t), "hq", dir)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	name := func(id *pki.Identity) string {
		leaf, _ := id.Certificate()
		return leaf.URIs[0].String()
	}
	first := issue()
	if name(first) != "decoynet://node/hq?generation=1" || first.Controllers()[0] != s.url {
		t.Errorf("identity %s of %v", name(first), first.Controllers())
	}
	if again := issue(); name(again) != name(first) {
		t.Errorf("a second start makes %s", name(again))
	}
	// It is a node as any other.
	if err := nodeCalls["Report"](s.node(t, first), t); err != nil {
		t.Error(err)
	}
	s.revoke(t, "hq")
	if again := issue(); name(again) != "decoynet://node/hq?generation=3" {
		t.Errorf("after a revocation %s", name(again))
	}
	if loaded, err := pki.LoadIdentity(dir); err != nil || name(loaded) != "decoynet://node/hq?generation=3" {
		t.Errorf("on the disk: %v", err)
	}
}

// The node of this process needs no one else to renew its certificate.
func TestLocalRenewal(t *testing.T) {
	often := quick
	often.announce = 20 * time.Millisecond
	s := newSite(t, options{ttl: 2 * time.Second, timing: &often})
	id, err := s.IssueIdentity(within(t), "hq", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := id.Certificate()
	eventually(t, "renewed", func() bool {
		now, _ := id.Certificate()
		return now.SerialNumber.Cmp(leaf.SerialNumber) != 0
	})
}

func TestInProcess(t *testing.T) {
	s := newSite(t, options{})
	if _, err := s.IssueIdentity(within(t), "hq", t.TempDir()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	snapshots, ended := make(chan *decoynetv1.Snapshot, 100), make(chan error, 1)
	go func() { ended <- s.Watch(ctx, "hq", func(m *decoynetv1.Snapshot) { snapshots <- m }) }()
	next := func() *deception.State {
		t.Helper()
		select {
		case m := <-snapshots:
			return stateOf(t, m)
		case <-time.After(30 * time.Second):
			t.Fatal("no snapshot for 30 s")
		}
		return nil
	}
	next()
	revision, err := s.ApplyDocument(within(t), "ada", "office.yaml", []byte(office))
	if err != nil {
		t.Fatal(err)
	}
	if st := next(); len(st.Gateways) != 1 {
		t.Errorf("part %+v", st)
	}
	s.Report("hq", &decoynetv1.ReportRequest{
		Revision: s.hub.node("hq").wanted(), State: decoynetv1.ReportRequest_STATE_CONVERGED,
		Addresses: []string{"192.0.2.7"}, Boot: "b1",
	})
	if n := s.condition(t, "hq"); n.GetCondition() != conditionConverged || n.GetCertificateExpires() == 0 {
		t.Errorf("node %v", n)
	}
	// Agents reach its gateway as they reach the controller.
	eventually(t, "address known", func() bool {
		p := s.hub.node("crm-1")
		return p != nil && fmt.Sprint(stateOf(t, p.snapshot).Gateways[0].Addresses) == "[192.0.2.7:7444]"
	})
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("watch ended with %v", err)
	}
	res, err := s.admin(t).GetDocument(within(t), connect.NewRequest(&decoynetv1.GetDocumentRequest{}))
	if err != nil || res.Msg.GetRevision() != revision || res.Msg.GetAppliedBy() != "ada" {
		t.Errorf("document %v, %v", res, err)
	}
	var faults config.Errors
	if _, err := s.ApplyDocument(within(t), "ada", "office.yaml", []byte("x: 1")); !errors.As(err, &faults) {
		t.Errorf("a bad document: %v", err)
	}
}

// A file that is read at each start does not undo what was applied meanwhile.
func TestOfferDocument(t *testing.T) {
	s := newSite(t, options{})
	offer := func(text string) string {
		t.Helper()
		revision, err := s.OfferDocument(within(t), "up", "/etc/decoynet.yaml", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		return revision
	}
	first := offer(office)
	if again := offer(office); again != first {
		t.Errorf("revision %s after %s", again, first)
	}
	changed := strings.Replace(office, "[8080]", "[8081]", 1)
	byHand := s.apply(t, changed)
	if after := offer(office); after != byHand {
		t.Errorf("a restart brought %s back over %s", after, byHand)
	}
	if edited := offer(office + "\n# edited\n"); edited == byHand {
		t.Error("an edited file is not applied")
	}
}
