package controller

import (
	"encoding/base64"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/registry"
	"decoynet/internal/rpc/decoynetv1"

	"connectrpc.com/connect"
)

func TestApply(t *testing.T) {
	s := newSite(t, options{})
	c, name := s.user(t, "operator")
	apply := func(text, expect string) (*decoynetv1.ApplyResponse, error) {
		res, err := c.Apply(within(t), connect.NewRequest(&decoynetv1.ApplyRequest{Name: "office.yaml", Document: []byte(text), ExpectRevision: expect}))
		if err != nil {
			return nil, err
		}
		return res.Msg, nil
	}
	if err := adminCalls["GetDocument"](c, t); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("before there is a document: %v", err)
	}

	_, err := apply("segments:\n  - {name: office, perent: eth0}\nzones: 7\n", "")
	refusedWith(t, err, connect.CodeInvalidArgument, "office.yaml:2:", "office.yaml:3:8: ", "perent")
	if e := s.lastAudit(t, 1)[0]; e.Actor != name || e.Result != registry.ResultFailed || !strings.Contains(e.Detail, "perent") {
		t.Errorf("audit entry: %v", e)
	}

	first, err := apply(office, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(first.GetChanges()) == 0 || first.GetChanges()[0].GetText() != "+ node hq" {
		t.Errorf("changes %v", first.GetChanges())
	}
	if e := s.lastAudit(t, 1)[0]; e.Actor != name || e.Role != "operator" || e.Method != "AdminService/Apply" ||
		e.Object != first.GetRevision() || e.Result != registry.ResultOK || !strings.Contains(e.Detail, "4 nodes") {
		t.Errorf("audit entry: %v", e)
	}
	if got := s.store.eventsOf(deception.EventApplied, ""); len(got) != 1 || !strings.Contains(got[0].Message, name) {
		t.Errorf("events %+v", got)
	}

	again, err := apply(office, first.GetRevision())
	if err != nil || again.GetRevision() != first.GetRevision() || len(again.GetChanges()) != 0 {
		t.Errorf("the same again: %v, %v", again, err)
	}
	if got := s.store.eventsOf(deception.EventApplied, ""); len(got) != 1 {
		t.Errorf("events %+v", got)
	}

	changed := strings.Replace(office, "[8080]", "[8081]", 1)
	diff, err := c.Diff(within(t), connect.NewRequest(&decoynetv1.DiffRequest{Document: []byte(changed)}))
	if err != nil || diff.Msg.GetRevision() != first.GetRevision() || len(diff.Msg.GetChanges()) != 2 {
		t.Errorf("diff %v, %v", diff, err)
	}
	_, err = c.Diff(within(t), connect.NewRequest(&decoynetv1.DiffRequest{Document: []byte("x: 1"), Name: "f"}))
	refusedWith(t, err, connect.CodeInvalidArgument, "f:1:1:")
	second, err := apply(changed, first.GetRevision())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := second.GetChanges(), diff.Msg.GetChanges(); len(got) != 2 || got[1].GetText() != want[1].GetText() || got[1].GetNode() != "crm-2" {
		t.Errorf("changes %v, said before %v", got, want)
	}
	_, err = apply(office, first.GetRevision())
	refusedWith(t, err, connect.CodeAborted, second.GetRevision(), "diff")

	res, err := c.GetDocument(within(t), connect.NewRequest(&decoynetv1.GetDocumentRequest{}))
	if err != nil || string(res.Msg.GetDocument()) != changed || res.Msg.GetRevision() != second.GetRevision() || res.Msg.GetAppliedBy() != name ||
		time.Since(time.Unix(0, res.Msg.GetAppliedAt())) > time.Minute {
		t.Errorf("document %v, %v", res, err)
	}
}

func TestUserPolicy(t *testing.T) {
	s := newSite(t, options{})
	c := s.admin(t)
	create := func(name, role string) error {
		_, err := c.CreateUser(within(t), connect.NewRequest(&decoynetv1.CreateUserRequest{Name: name, Role: role}))
		return err
	}
	remove := func(name string) error {
		_, err := c.DeleteUser(within(t), connect.NewRequest(&decoynetv1.DeleteUserRequest{Name: name}))
		return err
	}
	for _, name := range []string{"", "a b", ".a", strings.Repeat("a", 65), "a\n"} {
		refusedWith(t, create(name, "viewer"), connect.CodeInvalidArgument, "bad user name")
	}
	for _, role := range []string{"", "nobody", "root", "Admin"} {
		refusedWith(t, create("a", role), connect.CodeInvalidArgument, "viewer, operator or admin")
	}
	if err := create("ada@example.com", "operator"); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, create("ada@example.com", "admin"), connect.CodeAlreadyExists)
	refusedWith(t, remove("local"), connect.CodeFailedPrecondition, "last admin")
	refusedWith(t, remove("nobody"), connect.CodeNotFound)
	if e := s.lastAudit(t, 1)[0]; e.Method != "AdminService/DeleteUser" || e.Object != "nobody" || e.Result != registry.ResultFailed {
		t.Errorf("audit entry: %v", e)
	}
	res, err := c.ListUsers(within(t), connect.NewRequest(&decoynetv1.ListUsersRequest{}))
	if err != nil || len(res.Msg.GetUsers()) != 2 {
		t.Fatalf("users %v, %v", res, err)
	}
	if u := res.Msg.GetUsers()[0]; u.GetName() != "ada@example.com" || u.GetRole() != "operator" || u.GetCreated() == 0 || u.GetLastUsed() != 0 {
		t.Errorf("user %v", u)
	}
	if u := res.Msg.GetUsers()[1]; u.GetName() != "local" || u.GetLastUsed() == 0 {
		t.Errorf("user %v", u)
	}
	if err := remove("ada@example.com"); err != nil {
		t.Error(err)
	}
}

// A second witness of the API: curl, as the guide shows it.
func TestCurl(t *testing.T) {
	s := newSite(t, options{})
	s.apply(t, office)
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	if out, err := exec.CommandContext(within(t), "curl", "-sSk", "-o", ca, s.url+"/ca.pem").CombinedOutput(); err != nil {
		t.Fatalf("fetch the CA's certificate: %v\n%s", err, out)
	}
	out, err := exec.CommandContext(within(t), "openssl", "x509", "-in", ca, "-noout", "-fingerprint", "-sha256").CombinedOutput()
	_, print, _ := strings.Cut(strings.TrimSpace(string(out)), "=")
	if pin := "sha256:" + strings.ToLower(strings.ReplaceAll(print, ":", "")); err != nil || pin != s.Pin() {
		t.Errorf("openssl: %v, %s; the pin is %s", err, out, s.Pin())
	}
	curl := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(within(t), "curl", append([]string{"-sS", "--cacert", ca, "-w", "\n%{http_version} %{http_code}"}, args...)...).CombinedOutput()
		if err != nil {
			t.Fatalf("curl %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	call := func(method, body string, more ...string) string {
		t.Helper()
		return curl(append([]string{"-H", "Content-Type: application/json", "-d", body, s.url + "/decoynet.v1.AdminService/" + method}, more...)...)
	}
	token := "Authorization: Bearer " + s.adminToken(t)
	if out := call("ListNodes", "{}", "-H", token); !strings.Contains(out, `"name":"crm-1"`) || !strings.HasSuffix(out, "\n2 200") {
		t.Errorf("ListNodes: %s", out)
	}
	if out := call("ListNodes", "{}", "-H", token, "--http1.1"); !strings.Contains(out, `"condition":"never-seen"`) || !strings.HasSuffix(out, "\n1.1 200") {
		t.Errorf("ListNodes over HTTP/1.1: %s", out)
	}
	if out := call("ListNodes", "{}"); !strings.Contains(out, `"code":"unauthenticated"`) || !strings.HasSuffix(out, " 401") {
		t.Errorf("ListNodes without a token: %s", out)
	}
	if out := call("CreateUser", `{"name":"vera","role":"viewer"}`, "-H", token); !strings.Contains(out, `"token":"dcu_`) {
		t.Errorf("CreateUser: %s", out)
	}
	if out := call("CreateUser", `{"nome":"vera"}`, "-H", token); !strings.Contains(out, `"code":"invalid_argument"`) || !strings.Contains(out, "nome") {
		t.Errorf("CreateUser with a typing error: %s", out)
	}
	// A document, and then a stream of events.
	body := `{"name":"office.yaml","document":"` + base64.StdEncoding.EncodeToString([]byte(office)) + `"}`
	if out := call("Diff", body, "-H", token); !strings.HasPrefix(out, `{"revision":"1-`) || !strings.HasSuffix(out, " 200") {
		t.Errorf("Diff: %s", out)
	}
	request := filepath.Join(dir, "request")
	if err := os.WriteFile(request, []byte("\x00\x00\x00\x00\x0c{\"limit\":10}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out := curl("-H", "Content-Type: application/connect+json", "-H", token, "--data-binary", "@"+request,
		s.url+"/decoynet.v1.AdminService/ListSessions"); !strings.Contains(out, `"code":"unimplemented"`) || !strings.HasSuffix(out, " 200") {
		t.Errorf("ListSessions without a record: %q", out)
	}
	if out := curl(s.url + "/openapi.json"); !strings.Contains(out, `"openapi": "3.1.0"`) || !strings.HasSuffix(out, " 200") {
		t.Errorf("openapi.json: %.200s", out)
	}
	if out := curl(s.url + "/healthz"); !strings.HasPrefix(out, `{"status":"ok"}`) || !strings.HasSuffix(out, " 200") {
		t.Errorf("healthz: %s", out)
	}
	if out := curl(s.url + "/"); !strings.HasSuffix(out, " 404") {
		t.Errorf("the root: %s", out)
	}
}
