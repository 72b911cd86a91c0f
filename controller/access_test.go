package controller

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/controller/openapi"
	"decoynet/internal/pki"
	"decoynet/internal/registry"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
)

// readPrivate reads a file that must be its owner's only.
func readPrivate(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.Mode().Perm() != 0o600 {
		return "", fmt.Errorf("%s: %w: mode %v", path, fs.ErrPermission, info.Mode())
	}
	b, err := os.ReadFile(path)
	return string(b), err
}

// Every method of the protocol has a rule, and no rule is for nothing: a method that
// is added without one is refused, and this test fails.
func TestEveryMethodHasARule(t *testing.T) {
	var methods []string
	services := decoynetv1.File_decoynet_proto.Services()
	for i := range services.Len() {
		s := services.Get(i)
		for j := range s.Methods().Len() {
			methods = append(methods, "/"+string(s.FullName())+"/"+string(s.Methods().Get(j).Name()))
		}
	}
	slices.Sort(methods)
	if diff := cmp.Diff(methods, slices.Sorted(maps.Keys(rules))); diff != "" {
		t.Errorf("methods of the protocol and rules (-methods +rules):\n%s", diff)
	}
	for path, r := range rules {
		ways := 0
		for _, way := range []bool{r.open, r.node, r.role != nobody} {
			if way {
				ways++
			}
		}
		if ways != 1 {
			t.Errorf("%s may be called by %+v", path, r)
		}
		admin := strings.HasPrefix(path, "/"+decoynetv1connect.AdminServiceName+"/")
		if admin != (r.role != nobody) || r.expired && path != decoynetv1connect.NodeServiceRenewProcedure {
			t.Errorf("%s may be called by %+v", path, r)
		}
	}
}

// The roles that people read about are those that hold.
func TestDocumentedRoles(t *testing.T) {
	var document struct {
		Paths map[string]struct {
			Post struct {
				Role string `json:"x-decoynet-role"`
			} `json:"post"`
		} `json:"paths"`
	}
	if err := json.Unmarshal(openapi.Document, &document); err != nil {
		t.Fatal(err)
	}
	for path, r := range rules {
		want := ""
		if r.role != nobody {
			want = r.role.String()
		}
		if got := document.Paths[path].Post.Role; got != want {
			t.Errorf("%s takes the role %q, its description says %q", path, want, got)
		}
	}
}

// adminCalls calls each method of the AdminService.
var adminCalls = map[string]func(c decoynetv1connect.AdminServiceClient, t *testing.T) error{
	"Diff": func(c decoynetv1connect.AdminServiceClient, t *testing.T) error {
		_, err := c.Diff(within(t), connect.NewRequest(&decoynetv1.DiffRequest{Document: []byte(office)}))
		return err
	},
	"Apply": func(c decoynetv1connect.AdminServiceClient, t *testing.T) error {
		_, err := c.Apply(within(t), connect.NewRequest(&decoynetv1.ApplyRequest{Document: []byte(office)}))
		return err
	},
	"GetDocument": func(c decoynetv1connect.AdminServiceClient, t *testing.T) error {
		_, err := c.GetDocument(within(t), connect.NewRequest(&decoynetv1.GetDocumentRequest{}))
		return err
	},
	"ListNodes": func(c decoynetv1connect.AdminServiceClient, t *testing.T) error {
		_, err := c.ListNodes(within(t), connect.NewRequest(&decoynetv1.ListNodesRequest{}))
		return err
	},
	"CreateJoinToken": func(c decoynetv1connect.AdminServiceClient, t *testing.T) error {
		_, err := c.CreateJoinToken(within(t), connect.NewRequest(&decoynetv1.CreateJoinTokenRequest{Node: "crm-1"}))
		return err
	},
	"RevokeNode": func(c decoynetv1connect.AdminServiceClient, t *testing.T) error {
		_, err := c.RevokeNode(within(t), connect.NewRequest(&decoynetv1.RevokeNodeRequest{Node: "crm-2"}))
		return err
	},
	"CreateUser": func(c decoynetv1connect.AdminServiceClient, t *testing.T) error {
		_, err := c.CreateUser(within(t), connect.NewRequest(&decoynetv1.CreateUserRequest{Name: "x", Role: "viewer"}))
		return err
	},
	"DeleteUser": func(c decoynetv1connect.AdminServiceClient, t *testing.T) error {
		_, err := c.DeleteUser(within(t), connect.NewRequest(&decoynetv1.DeleteUserRequest{Name: "x"}))
		return err
	},
	"ListUsers": func(c decoynetv1connect.AdminServiceClient, t *testing.T) error {
		_, err := c.ListUsers(within(t), connect.NewRequest(&decoynetv1.ListUsersRequest{}))
		return err
	},
	"ListAudit": func(c decoynetv1connect.AdminServiceClient, t *testing.T) error {
		_, err := c.ListAudit(within(t), connect.NewRequest(&decoynetv1.ListAuditRequest{}))
		return err
	},
	"ListSessions": func(c decoynetv1connect.AdminServiceClient, t *testing.T) error {
		s, err := c.ListSessions(within(t), connect.NewRequest(&decoynetv1.ListSessionsRequest{}))
		if err != nil {
			return err
		}
		defer s.Close()
		for s.Receive() {
		}
		return s.Err()
	},
	"ListFindings": func(c decoynetv1connect.AdminServiceClient, t *testing.T) error {
		s, err := c.ListFindings(within(t), connect.NewRequest(&decoynetv1.ListFindingsRequest{}))
		if err != nil {
			return err
		}
		defer s.Close()
		s.Receive()
		return s.Err()
	},
	"ListProbes": func(c decoynetv1connect.AdminServiceClient, t *testing.T) error {
		s, err := c.ListProbes(within(t), connect.NewRequest(&decoynetv1.ListProbesRequest{}))
		if err != nil {
			return err
		}
		defer s.Close()
		for s.Receive() {
		}
		return s.Err()
	},
	"GetPackets": func(c decoynetv1connect.AdminServiceClient, t *testing.T) error {
		s, err := c.GetPackets(within(t), connect.NewRequest(&decoynetv1.GetPacketsRequest{}))
		if err != nil {
			return err
		}
		defer s.Close()
		for s.Receive() {
		}
		return s.Err()
	},
	"ListEvents": func(c decoynetv1connect.AdminServiceClient, t *testing.T) error {
		s, err := c.ListEvents(within(t), connect.NewRequest(&decoynetv1.ListEventsRequest{}))
		if err != nil {
			return err
		}
		defer s.Close()
		for s.Receive() {
		}
		return s.Err()
	},
}

// Each role may call what it may, and not one method more, over the wire.
func TestRoles(t *testing.T) {
	s := newSite(t, options{})
	s.apply(t, office)
	_, _ = s.join(t, "crm-2")
	for _, who := range []role{viewer, operator, admin} {
		c, name := s.user(t, who.String())
		for method, call := range adminCalls {
			path := "/" + decoynetv1connect.AdminServiceName + "/" + method
			err := call(c, t)
			if rules[path].role <= who {
				if code := connect.CodeOf(err); err != nil && (code == connect.CodePermissionDenied || code == connect.CodeUnauthenticated) {
					t.Errorf("%s as %s: %v", method, who, err)
				}
				continue
			}
			refusedWith(t, err, connect.CodePermissionDenied, name, rules[path].role.String())
			e := s.lastAudit(t, 1)[0]
			if e.Actor != name || e.Role != who.String() || e.Method != "AdminService/"+method || e.Result != registry.ResultDenied || e.Peer == "" {
				t.Errorf("audit entry of the refusal of %s: %v", method, e)
			}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(rules)) {
		if rules[path].role != nobody && adminCalls[strings.TrimPrefix(path, "/"+decoynetv1connect.AdminServiceName+"/")] == nil {
			t.Errorf("%s is not tried", path)
		}
	}
}

// Who has no valid token gets nothing, whatever else it has.
func TestAdminNeedsAToken(t *testing.T) {
	s := newSite(t, options{})
	id, _ := s.join(t, "crm-1")
	viewerClient, name := s.user(t, "viewer")
	if err := adminCalls["ListNodes"](viewerClient, t); err != nil {
		t.Fatal(err)
	}
	if _, err := s.admin(t).DeleteUser(within(t), connect.NewRequest(&decoynetv1.DeleteUserRequest{Name: name})); err != nil {
		t.Fatal(err)
	}
	forged := registry.NewSecret(registry.UserSecret).Text
	agent := decoynetv1connect.NewAdminServiceClient(client(t, id, s.Pin()), s.url)
	for what, c := range map[string]struct {
		client decoynetv1connect.AdminServiceClient
		code   connect.Code
		words  string
		actor  string
	}{
		"no token":       {s.as(t, ""), connect.CodeUnauthenticated, "Bearer TOKEN", "127.0.0.1"},
		"a forged token": {s.as(t, forged), connect.CodeUnauthenticated, "not valid", "127.0.0.1"},
		"a join token":   {s.as(t, s.token(t, "crm-9")), connect.CodeUnauthenticated, "not valid", "127.0.0.1"},
		"half a token":   {s.as(t, forged[:20]), connect.CodeUnauthenticated, "not valid", "127.0.0.1"},
		"a deleted user": {viewerClient, connect.CodeUnauthenticated, "not valid", "127.0.0.1"},
		"an agent":       {agent, connect.CodePermissionDenied, "node crm-1 may not call this", "crm-1"},
	} {
		for _, method := range []string{"ListNodes", "Apply"} {
			refusedWith(t, adminCalls[method](c.client, t), c.code, c.words)
			e := s.lastAudit(t, 1)[0]
			if e.Actor != c.actor || e.Method != "AdminService/"+method || e.Result != registry.ResultDenied {
				t.Errorf("audit entry for %s with %s: %v", method, what, e)
			}
		}
	}
}

// A method that is no method is refused, not looked for.
func TestUnknownMethod(t *testing.T) {
	s := newSite(t, options{})
	h := client(t, nil, s.Pin())
	for path, want := range map[string]int{
		"/decoynet.v1.AdminService/Nothing": http.StatusForbidden,
		"/decoynet.v2.AdminService/Apply":   http.StatusNotFound,
	} {
		req, err := http.NewRequestWithContext(within(t), http.MethodPost, s.url+path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Authorization", "Bearer "+s.adminToken(t))
		res, err := h.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: status %d", path, res.StatusCode)
		}
	}
}

// nodeCalls calls each method of the NodeService.
var nodeCalls = map[string]func(c decoynetv1connect.NodeServiceClient, t *testing.T) error{
	"Watch": func(c decoynetv1connect.NodeServiceClient, t *testing.T) error {
		s, err := c.Watch(within(t), connect.NewRequest(&decoynetv1.WatchRequest{}))
		if err != nil {
			return err
		}
		defer s.Close()
		if s.Receive() {
			return nil
		}
		return s.Err()
	},
	"Report": func(c decoynetv1connect.NodeServiceClient, t *testing.T) error {
		_, err := c.Report(within(t), connect.NewRequest(&decoynetv1.ReportRequest{}))
		return err
	},
	"Upload": func(c decoynetv1connect.NodeServiceClient, t *testing.T) error {
		_, err := c.Upload(within(t), connect.NewRequest(&decoynetv1.UploadRequest{}))
		return err
	},
	"Renew": func(c decoynetv1connect.NodeServiceClient, t *testing.T) error {
		_, csr, err := pki.NewRequest()
		if err != nil {
			return err
		}
		_, err = c.Renew(within(t), connect.NewRequest(&decoynetv1.RenewRequest{Csr: csr}))
		return err
	},
}

func TestNodesNeedTheirCertificate(t *testing.T) {
	s := newSite(t, options{})
	other := newSite(t, options{})
	good, goodClient := s.join(t, "crm-1")
	for method, call := range nodeCalls {
		if err := call(goodClient, t); err != nil {
			t.Errorf("%s of a node: %v", method, err)
		}
	}
	// A machine that was enrolled before under the same name.
	_, again := s.join(t, "crm-1")
	revoked, _ := s.join(t, "crm-2")
	if _, err := s.admin(t).RevokeNode(within(t), connect.NewRequest(&decoynetv1.RevokeNodeRequest{Node: "crm-2"})); err != nil {
		t.Fatal(err)
	}
	// One of our authority that was never enrolled, or whose enrolment is to come.
	stranger, future := identity(t, s, "stranger", 1), identity(t, s, "crm-1", 9)
	for what, c := range map[string]struct {
		id    *pki.Identity
		code  connect.Code
		words []string
		actor string
	}{
		"no certificate":      {nil, connect.CodeUnauthenticated, []string{"certificate"}, "127.0.0.1"},
		"an older enrolment":  {good, connect.CodePermissionDenied, []string{"crm-1", "void", "token create"}, "crm-1"},
		"a revoked node":      {revoked, connect.CodePermissionDenied, []string{"crm-2", "revoked", "token create"}, "crm-2"},
		"an unknown node":     {stranger, connect.CodePermissionDenied, []string{"knows no node stranger"}, "stranger"},
		"a future generation": {future, connect.CodePermissionDenied, []string{"generation"}, "crm-1"},
	} {
		for method, call := range nodeCalls {
			refusedWith(t, call(s.node(t, c.id), t), c.code, c.words...)
			e := s.lastAudit(t, 1)[0]
			if e.Actor != c.actor || e.Method != "NodeService/"+method || e.Result != registry.ResultDenied {
				t.Errorf("audit entry for %s of %s: %v", method, what, e)
			}
		}
		s.refusals.forget(time.Now().Add(time.Hour)) // every refusal here is to be logged
	}
	if err := nodeCalls["Report"](again, t); err != nil {
		t.Errorf("the newest enrolment: %v", err)
	}
	// Another authority's certificate does not get past the handshake.
	foreign, _ := other.join(t, "crm-1")
	if err := nodeCalls["Report"](s.node(t, foreign), t); err == nil {
		t.Error("a certificate of another authority was taken")
	} else if code := connect.CodeOf(err); connect.IsWireError(err) {
		t.Errorf("a certificate of another authority got an answer: %v %v", code, err)
	}
}

// identity makes a certificate of the site's authority behind the registry's back.
func identity(t testing.TB, s *site, node string, generation uint32) *pki.Identity {
	t.Helper()
	key, csr, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := s.ca.SignNode(csr, node, generation, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	id, err := pki.NewIdentity(pki.IdentityConfig{
		Key: key, Certificate: certificate, CA: s.ca.Certificate().Raw, Controllers: []string{s.url},
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// An expired certificate can be renewed for a while, and do nothing else.
func TestExpiredCertificate(t *testing.T) {
	s := newSite(t, options{})
	good, _ := s.join(t, "crm-1")
	leaf, _ := good.Certificate()
	_, generation, err := pki.NodeOf(leaf)
	if err != nil {
		t.Fatal(err)
	}
	key, csr, err := pki.NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	expired := func(ago time.Duration) *pki.Identity {
		certificate, err := s.ca.SignNode(csr, "crm-1", generation, time.Second, time.Now().Add(-ago-time.Second))
		if err != nil {
			t.Fatal(err)
		}
		id, err := pki.NewIdentity(pki.IdentityConfig{
			Key: key, Certificate: certificate, CA: s.ca.Certificate().Raw, Controllers: []string{s.url},
		})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	holiday := expired(10 * time.Hour) // the authority itself is valid for a day in the past
	for _, method := range []string{"Watch", "Report", "Upload"} {
		refusedWith(t, nodeCalls[method](s.node(t, holiday), t), connect.CodePermissionDenied, "expired", "renew")
	}
	next, err := holiday.Request()
	if err != nil {
		t.Fatal(err)
	}
	res, err := s.node(t, holiday).Renew(within(t), connect.NewRequest(&decoynetv1.RenewRequest{Csr: next}))
	if err != nil {
		t.Fatalf("renew after ten hours: %v", err)
	}
	if err := holiday.Update(res.Msg.GetCertificate()); err != nil {
		t.Fatal(err)
	}
	if err := nodeCalls["Report"](s.node(t, holiday), t); err != nil {
		t.Errorf("with the renewed certificate: %v", err)
	}
	if e := s.lastAudit(t, 1)[0]; e.Method != "NodeService/Renew" || e.Actor != "crm-1" || e.Result != registry.ResultOK {
		t.Errorf("audit entry of the renewal: %v", e)
	}
	if _, err := s.node(t, good).Renew(within(t), connect.NewRequest(&decoynetv1.RenewRequest{Csr: []byte("nonsense")})); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("renew with nonsense: %v", err)
	}
}

// Very many refusals of one address leave few entries, which say how many there were.
func TestRefusalsDoNotFillTheLog(t *testing.T) {
	s := newSite(t, options{})
	before := len(s.lastAudit(t, 0))
	c := s.as(t, "")
	for range 3 * refusalBurst {
		refusedWith(t, adminCalls["ListNodes"](c, t), connect.CodeUnauthenticated)
	}
	if n := len(s.lastAudit(t, 0)) - before; n < refusalBurst || n > 2*refusalBurst {
		t.Errorf("%d entries for %d refusals", n, 3*refusalBurst)
	}
	s.refusals.mu.Lock()
	for _, b := range s.refusals.peers {
		b.at = b.at.Add(-time.Hour)
	}
	s.refusals.mu.Unlock()
	refusedWith(t, adminCalls["ListNodes"](c, t), connect.CodeUnauthenticated)
	if e := s.lastAudit(t, 1)[0]; !strings.Contains(e.Detail, "more refusals") {
		t.Errorf("the entry after many that were not written: %v", e)
	}
	// Who has a token is not held up by who has none.
	if err := adminCalls["ListNodes"](s.admin(t), t); err != nil {
		t.Error(err)
	}
}

func TestTheDatabaseIsDown(t *testing.T) {
	s := newSite(t, options{closes: true})
	_, node := s.join(t, "crm-1")
	c := s.admin(t)
	if err := s.cfg.Registry.Close(); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, adminCalls["ListNodes"](c, t), connect.CodeUnavailable)
	// Nodes that are known are told what they are to be all the same.
	if w := watch(t, node, ""); w.next(t).GetRevision() == "" {
		t.Error("no snapshot without the database")
	}
	if status, body := get(t, client(t, nil, s.Pin()), s.url+"/healthz"); status != http.StatusServiceUnavailable || !strings.Contains(body, "registry") {
		t.Errorf("health: %d %s", status, body)
	}
	var e *connect.Error
	if err := adminCalls["ListNodes"](c, t); !errors.As(err, &e) {
		t.Error(err)
	}
}
