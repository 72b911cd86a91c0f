package controller

import (
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/pki"
	"decoynet/internal/registry"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"

	"connectrpc.com/connect"
)

func TestEnrol(t *testing.T) {
	s := newSite(t, options{ttl: time.Hour})
	res, err := s.admin(t).CreateJoinToken(within(t), connect.NewRequest(&decoynetv1.CreateJoinTokenRequest{Node: "crm-1"}))
	if err != nil {
		t.Fatal(err)
	}
	token := res.Msg.GetToken()
	if want := "decoynet join " + s.url + " --token " + token + " --pin " + s.Pin(); res.Msg.GetCommand() != want {
		t.Errorf("command %q, want %q", res.Msg.GetCommand(), want)
	}
	if left := time.Until(time.Unix(0, res.Msg.GetExpires())); left > defaultTokenTTL || left < defaultTokenTTL-time.Minute {
		t.Errorf("the token lasts %v", left)
	}
	id, err := s.show(t, token)
	if err != nil {
		t.Fatal(err)
	}
	if leaf, expires := id.Certificate(); id.Node() != "crm-1" || time.Until(expires) > time.Hour || leaf.URIs[0].String() != "decoynet://node/crm-1?generation=1" {
		t.Errorf("identity of %s with %v until %v", id.Node(), leaf.URIs, expires)
	}
	if got := id.Controllers(); len(got) != 1 || got[0] != s.url {
		t.Errorf("controllers %v", got)
	}
	entries := s.lastAudit(t, 2)
	if e := entries[0]; e.Actor != "local" || e.Role != "admin" || e.Method != "AdminService/CreateJoinToken" || e.Object != "crm-1" || e.Result != registry.ResultOK {
		t.Errorf("audit entry of the token: %v", e)
	}
	if e := entries[1]; e.Actor != "crm-1" || e.Role != "node" || e.Method != "EnrolmentService/Enrol" || e.Object != "crm-1" ||
		e.Result != registry.ResultOK || e.Detail != "linux/amd64 1.2" || !strings.HasPrefix(e.Peer, "127.0.0.1:") {
		t.Errorf("audit entry of the enrolment: %v", e)
	}
	if strings.Contains(entries[0].Detail+entries[1].Detail, token) {
		t.Error("the token is in the audit log")
	}
	if got := s.store.eventsOf(deception.EventNodeEnrolled, "crm-1"); len(got) != 1 || !got[0].Source.IsValid() {
		t.Errorf("events %+v", got)
	}
	if n := s.condition(t, "crm-1"); n.GetCondition() != conditionNeverSeen {
		t.Errorf("an enrolled node that never called is %s", n.GetCondition())
	}
}

func TestRefusedTokens(t *testing.T) {
	s := newSite(t, options{})
	used := s.token(t, "crm-1")
	if _, err := s.show(t, used); err != nil {
		t.Fatal(err)
	}
	expired := registry.NewSecret(registry.JoinSecret)
	if err := s.cfg.Registry.CreateToken(within(t), "crm-2", time.Now().Add(-time.Minute), expired, registry.Entry{}); err != nil {
		t.Fatal(err)
	}
	good := s.token(t, "crm-3")
	forged := good[:len(good)-32] + registry.NewSecret(registry.JoinSecret).Text[len(good)-32:]
	for what, c := range map[string]struct {
		token, node string
		words       []string
	}{
		"used":    {used, "crm-1", []string{"used before", "token create"}},
		"expired": {expired.Text, "crm-2", []string{"has expired", "token create"}},
		"forged":  {forged, "", []string{"no such join token", "token create"}},
		"unknown": {registry.NewSecret(registry.JoinSecret).Text, "", []string{"no such join token"}},
		"cut off": {good[:30], "", []string{"no join token", "whole command"}},
		"none":    {"", "", []string{"no join token"}},
		"a user":  {s.adminToken(t), "", []string{"no join token"}},
	} {
		before := len(s.store.eventsOf(deception.EventEnrolRefused, c.node))
		_, err := s.show(t, c.token)
		refusedWith(t, err, connect.CodePermissionDenied, c.words...)
		e := s.lastAudit(t, 1)[0]
		if e.Actor != "127.0.0.1" || e.Method != "EnrolmentService/Enrol" || e.Object != c.node || e.Result != registry.ResultDenied || !strings.Contains(e.Detail, c.words[0]) {
			t.Errorf("audit entry for a token that is %s: %v", what, e)
		}
		events := s.store.eventsOf(deception.EventEnrolRefused, c.node)
		if len(events) != before+1 || !strings.Contains(events[before].Message, "127.0.0.1") {
			t.Errorf("events for a token that is %s: %+v", what, events)
		}
	}
	if _, err := s.show(t, " "+good+"\n"); err != nil {
		t.Errorf("a good token after all that: %v", err)
	}
}

// A request that is no request costs its sender the attempt, not the token.
func TestABadRequestLeavesTheTokenGood(t *testing.T) {
	s := newSite(t, options{})
	token := s.token(t, "crm-1")
	c := decoynetv1connect.NewEnrolmentServiceClient(client(t, nil, s.Pin()), s.url)
	_, err := c.Enrol(within(t), connect.NewRequest(&decoynetv1.EnrolRequest{Token: token, Csr: []byte("nonsense")}))
	refusedWith(t, err, connect.CodeInvalidArgument, "request")
	if e := s.lastAudit(t, 1)[0]; e.Result != registry.ResultFailed || e.Object != "crm-1" {
		t.Errorf("audit entry: %v", e)
	}
	if _, err := s.show(t, token); err != nil {
		t.Errorf("the token afterwards: %v", err)
	}
}

// Replayed at the same time over several connections, a token makes one node.
func TestATokenTwiceAtOnce(t *testing.T) {
	s := newSite(t, options{})
	token := s.token(t, "crm-1")
	var mu sync.Mutex
	var refusals []error
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if _, err := s.show(t, token); err != nil {
				mu.Lock()
				defer mu.Unlock()
				refusals = append(refusals, err)
			}
		})
	}
	wg.Wait()
	if len(refusals) != 5 {
		t.Errorf("%d of 6 were refused", len(refusals))
	}
	for _, err := range refusals {
		refusedWith(t, err, connect.CodePermissionDenied, "used before")
	}
}

func TestGuessingTokens(t *testing.T) {
	s := newSite(t, options{})
	good := s.token(t, "crm-1")
	for range refusalBurst {
		_, err := s.show(t, registry.NewSecret(registry.JoinSecret).Text)
		refusedWith(t, err, connect.CodePermissionDenied)
	}
	_, err := s.show(t, good)
	refusedWith(t, err, connect.CodeResourceExhausted, "127.0.0.1")
	s.refusals.forget(time.Now().Add(time.Hour))
	if _, err := s.show(t, good); err != nil {
		t.Errorf("later: %v", err)
	}
}

// A machine without the pin does not learn whether the controller is one.
func TestAnotherPin(t *testing.T) {
	s := newSite(t, options{})
	_, csr, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	c := decoynetv1connect.NewEnrolmentServiceClient(client(t, nil, newSite(t, options{}).Pin()), s.url)
	token := s.token(t, "crm-1")
	if _, err := c.Enrol(within(t), connect.NewRequest(&decoynetv1.EnrolRequest{Token: token, Csr: csr})); err == nil || connect.IsWireError(err) {
		t.Errorf("enrolled with another controller's pin: %v", err)
	}
	if _, err := s.show(t, token); err != nil {
		t.Errorf("the token afterwards: %v", err)
	}
}

func TestTokenPolicy(t *testing.T) {
	s := newSite(t, options{})
	ask := func(node string, ttl time.Duration) error {
		_, err := s.admin(t).CreateJoinToken(within(t), connect.NewRequest(&decoynetv1.CreateJoinTokenRequest{Node: node, Ttl: int64(ttl)}))
		return err
	}
	if err := ask("anything", 0); err != nil {
		t.Errorf("before there is a document: %v", err)
	}
	for _, name := range []string{"", "a b", "-a", "a_b", "../x", strings.Repeat("a", 64), strings.Repeat("a.", 200) + "a"} {
		refusedWith(t, ask(name, 0), connect.CodeInvalidArgument, "bad node name")
	}
	refusedWith(t, ask("crm-1", maxTokenTTL+1), connect.CodeInvalidArgument, "7 days")
	refusedWith(t, ask("crm-1", -time.Second), connect.CodeInvalidArgument)
	s.apply(t, office)
	refusedWith(t, ask("crm-7", 0), connect.CodeFailedPrecondition, "no node crm-7", "crm-1")
	if e := s.lastAudit(t, 1)[0]; e.Method != "AdminService/CreateJoinToken" || e.Object != "crm-7" || e.Result != registry.ResultFailed {
		t.Errorf("audit entry: %v", e)
	}
	if err := ask("crm-1", maxTokenTTL); err != nil {
		t.Error(err)
	}
}

func TestLimiter(t *testing.T) {
	l := newLimiter(2, time.Second)
	now := time.Unix(1000, 0)
	a, b := addr("192.0.2.1"), addr("192.0.2.2")
	take := func(after time.Duration, peer string, wantSkipped int, want bool) {
		t.Helper()
		skipped, ok := l.take(now.Add(after), addr(peer))
		if ok != want || skipped != wantSkipped {
			t.Errorf("%s after %v: %v, %d skipped", peer, after, ok, skipped)
		}
	}
	take(0, "192.0.2.1", 0, true)
	take(0, "192.0.2.1", 0, true)
	take(0, "192.0.2.1", 0, false)
	take(0, "192.0.2.1", 0, false)
	if !l.exhausted(now, a) || l.exhausted(now, b) {
		t.Error("the wrong one is exhausted")
	}
	take(0, "192.0.2.2", 0, true)
	take(time.Second, "192.0.2.1", 2, true)
	take(1900*time.Millisecond, "192.0.2.1", 0, false)
	take(0, "2001:db8::1", 0, true)
	take(0, "2001:db8::2", 0, true)
	take(0, "2001:db8::3", 0, false) // one network
	take(0, "2001:db8:0:1::3", 0, true)
	l.forget(now.Add(time.Hour))
	if len(l.peers) != 0 {
		t.Errorf("%d peers kept", len(l.peers))
	}
	for i := range limitedPeers + 100 {
		l.take(now, deception.Nth(a, uint64(i)))
	}
	if len(l.peers) > limitedPeers+1 {
		t.Errorf("%d peers kept", len(l.peers))
	}
	if _, ok := l.take(now, addr("203.0.113.1")); ok {
		t.Error("one more than there is room for has an allowance of its own")
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
