package pki

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var identityFiles = []string{caFile, certFile, infoFile, keyFile}

// content reads a whole directory.
func content(t testing.TB, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(text)
	}
	return out
}

func saved(t testing.TB, i *Identity) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	if err := i.Save(dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestSaveAndLoad(t *testing.T) {
	ca := makeCA(t)
	key, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.SignNode(csr, "crm-1", 2, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	urls := []string{"https://hq.example.com:7443", "https://[2001:db8::1]:7443"}
	i, err := NewIdentity(IdentityConfig{
		Key: key, Certificate: der, CA: ca.Certificate().Raw, Controllers: urls, Proxy: "http://user:secret@proxy:3128",
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := saved(t, i)
	if fi, _ := os.Stat(dir); fi.Mode().Perm() != 0o700 {
		t.Errorf("data directory has mode %v", fi.Mode())
	}
	got := content(t, dir)
	var names []string
	for name := range got {
		names = append(names, name)
		if fi, _ := os.Stat(filepath.Join(dir, name)); fi.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, fi.Mode())
		}
	}
	slices.Sort(names)
	if diff := cmp.Diff(identityFiles, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	// openssl finds that key and certificate belong together.
	public, err := openssl(t, "", "pkey", "-in", filepath.Join(dir, keyFile), "-pubout")
	if err != nil {
		t.Fatal(public)
	}
	if of, _ := openssl(t, "", "x509", "-in", filepath.Join(dir, certFile), "-noout", "-pubkey"); of != public {
		t.Errorf("certificate of key\n%s, key\n%s", of, public)
	}

	j, err := LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	leaf, expires := j.Certificate()
	if j.Node() != "crm-1" || !slices.Equal(j.Controllers(), urls) || j.Proxy() != "http://user:secret@proxy:3128" ||
		j.Pin() != ca.Pin() || string(leaf.Raw) != string(der) || !expires.Equal(leaf.NotAfter) {
		t.Errorf("loaded node %s, controllers %v, proxy %s, pin %s", j.Node(), j.Controllers(), j.Proxy(), j.Pin())
	}
	if got := shake(t, ca.ControllerTLS(nil), j.ControllerTLS()); got.client != nil || got.server != nil {
		t.Errorf("handshake with the loaded identity: %v, %v", got.client, got.server)
	}
	if err := j.SetControllers(urls[1:]); err != nil {
		t.Fatal(err)
	}
	if err := j.SetControllers([]string{"http://plain"}); err == nil {
		t.Error("took a controller without TLS")
	}
	if k, err := LoadIdentity(dir); err != nil || !slices.Equal(k.Controllers(), urls[1:]) {
		t.Errorf("after SetControllers: %v, %v", k, err)
	}
}

func TestNoIdentity(t *testing.T) {
	for _, dir := range []string{t.TempDir(), filepath.Join(t.TempDir(), "missing")} {
		_, err := LoadIdentity(dir)
		if !errors.Is(err, ErrNoIdentity) {
			t.Errorf("%v is not ErrNoIdentity", err)
		}
		mentions(t, "error", fmt.Sprint(err), "not enrolled", "decoynet token create", dir)
	}
}

// TestDamaged breaks a saved identity in every way that comes to mind. Each must be
// told from "not enrolled", name the file, and change nothing on the disk.
func TestDamaged(t *testing.T) {
	ca := makeCA(t)
	hq, crm, stranger := enrol(t, ca, "hq", 1, time.Now()), enrol(t, ca, "crm-1", 1, time.Now()), enrol(t, makeCA(t), "hq", 1, time.Now())
	whole, crmFiles, strangerFiles := content(t, saved(t, hq)), content(t, saved(t, crm)), content(t, saved(t, stranger))
	type damage struct{ name, file, text, says string }
	tests := []damage{
		{"other node's key", keyFile, crmFiles[keyFile], "does not belong to the node's key"},
		{"other node's certificate", certFile, crmFiles[certFile], "does not belong to the node's key"},
		{"other CA", caFile, strangerFiles[caFile], "of another CA"},
		{"a node's certificate as CA", caFile, whole[certFile], "no CA's"},
		{"other node's name", infoFile, crmFiles[infoFile], "it is of node hq"},
		{"key and certificate exchanged", keyFile, whole[certFile], `not "PRIVATE KEY"`},
		{"no JSON", infoFile, "node: hq", "invalid character"},
		{"no controllers", infoFile, `{"node":"hq"}`, "no controller is named"},
		{"bad node", infoFile, `{"node":"../hq","controllers":["https://x"]}`, "bad node name"},
		{"huge", certFile, strings.Repeat("x", maxFile+1), "larger than"},
		{"huge", infoFile, strings.Repeat(" ", maxFile+1), "larger than"},
	}
	for _, f := range identityFiles {
		tests = append(tests,
			damage{"empty", f, "", f},
			damage{"cut in half", f, whole[f][:len(whole[f])/2], f},
			damage{"last line missing", f, whole[f][:len(whole[f])-3], f},
			damage{"zeros", f, strings.Repeat("\x00", len(whole[f])), f})
		if f != infoFile {
			tests = append(tests, damage{"removed", f, "-", "the file is missing"})
			flipped := []byte(whole[f])
			flipped[len(flipped)/3] ^= 3 // in a key the middle is its public half, which nobody reads
			tests = append(tests, damage{"a bit wrong", f, string(flipped), f})
		}
	}
	for _, tt := range tests {
		t.Run(tt.file+" "+tt.name, func(t *testing.T) {
			dir := saved(t, hq)
			path := filepath.Join(dir, tt.file)
			if tt.text == "-" {
				os.Remove(path)
			} else if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			before := content(t, dir)
			_, err := LoadIdentity(dir)
			if err == nil {
				t.Fatal("loaded")
			}
			if !errors.Is(err, ErrDamaged) || errors.Is(err, ErrNoIdentity) {
				t.Errorf("%v is not ErrDamaged", err)
			}
			mentions(t, "error", err.Error(), dir, tt.says, "enrol it again")
			if diff := cmp.Diff(before, content(t, dir)); diff != "" {
				t.Errorf("loading changed the directory:\n%s", diff)
			}
		})
	}
}

// TestOthersMayNot refuses keys that are no secret and directories in which others
// could exchange the CA.
func TestOthersMayNot(t *testing.T) {
	i := enrol(t, makeCA(t), "hq", 1, time.Now())
	for _, tt := range []struct {
		path string
		mode os.FileMode
		says string
	}{
		{keyFile, 0o640, "chmod 600"},
		{keyFile, 0o604, "chmod 600"},
		{"", 0o770, "chmod go-w"},
		{"", 0o777, "chmod go-w"},
		{"", 0o755, ""},
	} {
		dir := saved(t, i)
		path := filepath.Join(dir, tt.path)
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		_, err := LoadIdentity(dir)
		if (err == nil) != (tt.says == "") {
			t.Errorf("%s with mode %o: %v", tt.path, tt.mode, err)
		}
		mentions(t, "error", fmt.Sprint(err), tt.says)
	}
	dir := t.TempDir()
	os.Chmod(dir, 0o777)
	if err := i.Save(dir); err == nil {
		t.Error("saved where everybody may write")
	}
	if left := content(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestSaveOver enrols a machine again, into a directory with an old identity and
// with what a crash left.
func TestSaveOver(t *testing.T) {
	old := enrol(t, makeCA(t), "hq", 1, time.Now())
	dir := saved(t, old)
	write(t, dir, keyFile+asideEnd+"123", []byte("half a key"))
	write(t, dir, "controller.db", []byte("somebody else's"))
	ca := makeCA(t)
	if err := enrol(t, ca, "hq-2", 5, time.Now()).Save(dir); err != nil {
		t.Fatal(err)
	}
	i, err := LoadIdentity(dir)
	if err != nil || i.Node() != "hq-2" || i.Pin() != ca.Pin() {
		t.Errorf("loaded %v, %v", i, err)
	}
	var names []string
	for name := range content(t, dir) {
		names = append(names, name)
	}
	slices.Sort(names)
	if diff := cmp.Diff([]string{caFile, certFile, "controller.db", infoFile, keyFile}, names); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// TestUpdate renews a certificate under running configurations.
func TestUpdate(t *testing.T) {
	ca := makeCA(t)
	hq, crm := enrol(t, ca, "hq", 1, time.Now()), enrol(t, ca, "crm-1", 1, time.Now().Add(-2*NodeLifetime))
	dir := saved(t, crm)
	server := hq.IngressTLS(func(string, uint32) error { return nil })
	client := crm.GatewayTLS("hq")
	if got := shake(t, server, client); got.server == nil {
		t.Fatal("an expired certificate was let in")
	}
	csr, err := crm.Request()
	if err != nil {
		t.Fatal(err)
	}
	sign := func(ca *CA, csr []byte, node string) []byte {
		der, err := ca.SignNode(csr, node, 2, 0, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	_, otherCSR, _ := NewRequest()
	before := content(t, dir)
	for name, tt := range map[string]struct {
		der  []byte
		says string
	}{
		"other key":  {sign(ca, otherCSR, "crm-1"), "does not belong to the node's key"},
		"other node": {sign(ca, csr, "hq"), "node hq answered, not node crm-1"},
		"other CA":   {sign(makeCA(t), csr, "crm-1"), "another CA"},
		"garbage":    {[]byte("garbage"), "read renewed certificate"},
	} {
		err := crm.Update(tt.der)
		mentions(t, name, fmt.Sprint(err), tt.says)
	}
	if diff := cmp.Diff(before, content(t, dir)); diff != "" {
		t.Errorf("refused certificates changed the directory:\n%s", diff)
	}
	if err := crm.Update(sign(ca, csr, "crm-1")); err != nil {
		t.Fatal(err)
	}
	got := shake(t, server, client)
	if got.client != nil || got.server != nil {
		t.Fatalf("after the renewal: %v, %v", got.client, got.server)
	}
	if _, generation, _ := PeerNode(got.serverState); generation != 2 {
		t.Errorf("generation %d, want 2", generation)
	}
	again, err := LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := again.pair.Load().Leaf, crm.pair.Load().Leaf; !a.Equal(b) {
		t.Error("the disk holds another certificate than the process")
	}
}

// TestUpdateNotSaved takes the directory away: the node must go on with the new
// certificate, and say that it is not saved.
func TestUpdateNotSaved(t *testing.T) {
	ca := makeCA(t)
	i := enrol(t, ca, "hq", 1, time.Now())
	dir := saved(t, i)
	if err := os.Rename(dir, dir+".gone"); err != nil {
		t.Fatal(err)
	}
	csr, _ := i.Request()
	der, err := ca.SignNode(csr, "hq", 9, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	mentions(t, "Update", fmt.Sprint(i.Update(der)), "in use, but not saved", certFile)
	mentions(t, "SetControllers", fmt.Sprint(i.SetControllers([]string{"https://other"})), "in use, but not saved")
	if leaf, _ := i.Certificate(); string(leaf.Raw) != string(der) {
		t.Error("the new certificate is not in use")
	}
	if old, err := LoadIdentity(dir + ".gone"); err != nil {
		t.Errorf("the old files: %v", err)
	} else if _, generation, _ := NodeOf(old.pair.Load().Leaf); generation != 1 {
		t.Errorf("generation %d on the disk", generation)
	}
}

// TestConcurrentUpdate renews while handshakes run and others read the files: each
// sees one whole certificate.
func TestConcurrentUpdate(t *testing.T) {
	ca := makeCA(t)
	hq, crm := enrol(t, ca, "hq", 1, time.Now()), enrol(t, ca, "crm-1", 0, time.Now())
	dir := saved(t, crm)
	csr, err := crm.Request()
	if err != nil {
		t.Fatal(err)
	}
	server := hq.IngressTLS(func(string, uint32) error { return nil })
	client := crm.GatewayTLS("hq")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	each := func(f func() error) {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := f(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 2 {
		each(func() error {
			got := shake(t, server, client)
			return errors.Join(got.client, got.server)
		})
	}
	each(func() error { _, err := LoadIdentity(dir); return err })
	each(func() error {
		return crm.SetControllers([]string{fmt.Sprintf("https://c%d.example.com", time.Now().UnixNano())})
	})
	for n := range uint32(40) {
		der, err := ca.SignNode(csr, "crm-1", n+1, 0, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if err := crm.Update(der); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	i, err := LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, generation, _ := NodeOf(i.pair.Load().Leaf); generation != 40 {
		t.Errorf("generation %d on the disk, want the last, 40", generation)
	}
	if n := len(content(t, dir)); n != len(identityFiles) {
		t.Errorf("%d files left in the directory", n)
	}
}

// TestRenewAt looks at a thousand nodes that enrolled at one moment.
func TestRenewAt(t *testing.T) {
	ca := makeCA(t)
	now := time.Now().Truncate(time.Second)
	key, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	i := enrol(t, ca, "hq", 1, now)
	i.key = key
	const nodes = 1000
	buckets := make([]int, 10)
	from, to := now.Add(NodeLifetime*4/10), now.Add(NodeLifetime*6/10)
	for range nodes {
		der, err := ca.SignNode(csr, "hq", 1, 0, now)
		if err != nil {
			t.Fatal(err)
		}
		if err := i.Update(der); err != nil {
			t.Fatal(err)
		}
		at := i.RenewAt()
		if !at.Equal(i.RenewAt()) {
			t.Fatal("asked twice, two answers")
		}
		if at.Before(from) || at.After(to) {
			t.Fatalf("renewal at %v, want %v to %v", at, from, to)
		}
		buckets[min(9, int(at.Sub(from)*10/to.Sub(from)))]++
	}
	for n, count := range buckets {
		if count < nodes/10/2 || count > nodes/10*2 {
			t.Errorf("%d of %d nodes renew in tenth %d: %v", count, nodes, n, buckets)
		}
	}
}

func TestNewIdentityRefuses(t *testing.T) {
	ca := makeCA(t)
	key, csr, _ := NewRequest()
	der, err := ca.SignNode(csr, "hq", 1, 0, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	good := IdentityConfig{Key: key, Certificate: der, CA: ca.cert.Raw, Controllers: []string{"https://hq:7443"}}
	for name, change := range map[string]func(*IdentityConfig){
		"no key":         func(c *IdentityConfig) { c.Key = nil },
		"other key":      func(c *IdentityConfig) { c.Key, _ = newKey() },
		"no certificate": func(c *IdentityConfig) { c.Certificate = nil },
		"no CA":          func(c *IdentityConfig) { c.CA = nil },
		"other CA":       func(c *IdentityConfig) { c.CA = makeCA(t).cert.Raw },
		"leaf as CA":     func(c *IdentityConfig) { c.CA = der },
		"no controller":  func(c *IdentityConfig) { c.Controllers = nil },
		"no URL":         func(c *IdentityConfig) { c.Controllers = []string{"hq:7443"} },
	} {
		cfg := good
		change(&cfg)
		if _, err := NewIdentity(cfg); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := NewIdentity(good); err != nil {
		t.Error(err)
	}
}

// TestPasswordStays looks for the proxy's password where it has no place.
func TestPasswordStays(t *testing.T) {
	ca := makeCA(t)
	i := enrol(t, ca, "hq", 1, time.Now())
	i.proxy = "http://user:secret@proxy:3128"
	dir := saved(t, i)
	text := content(t, dir)[infoFile]
	var about info
	if err := json.Unmarshal([]byte(text), &about); err != nil || about.Proxy != i.proxy {
		t.Errorf("%s: %v", text, err)
	}
	write(t, dir, infoFile, []byte(text[:len(text)-4]))
	if _, err := LoadIdentity(dir); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v", err)
	}
}

// TestRolesNeedTheirs makes sure that the two configurations of an identity never
// talk to each other's servers.
func TestRolesNeedTheirs(t *testing.T) {
	w := makeWorld(t)
	ingress := w.hq.IngressTLS(func(string, uint32) error { return nil })
	for name, pair := range map[string][2]*tls.Config{
		"controller's client at a gateway": {ingress, w.crm.ControllerTLS()},
		"gateway's client at a controller": {w.ca.ControllerTLS(nil), w.crm.GatewayTLS("hq")},
		"enrolment at a gateway":           {ingress, PinnedTLS(w.ca.Pin())},
	} {
		if got := shake(t, pair[0], pair[1]); got.client == nil {
			t.Errorf("%s: connected", name)
		}
	}
}
