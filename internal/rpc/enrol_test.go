package rpc

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/internal/pki"
)

func TestEnrol(t *testing.T) {
	a := newAuthority(t)
	c := startController(t, a, newStore())
	c.publish(snapshot(t, "r1"))
	c.tokens["good"] = "crm-1"
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cfg := EnrolConfig{URL: c.url + "/", Token: "good", Pin: strings.ToUpper(a.Pin()[7:]), Dir: filepath.Join(t.TempDir(), "data"), Version: "1.0"}

	refuse := func(what, want string, change func(*EnrolConfig)) {
		t.Helper()
		bad := cfg
		change(&bad)
		_, err := Enrol(ctx, bad)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", what, err, want)
		}
		if c.tokens["good"] != "crm-1" {
			t.Fatalf("%s: the token is used", what)
		}
	}
	refuse("pin without its name", "bad pin", func(*EnrolConfig) {})
	cfg.Pin = "sha256:" + cfg.Pin
	refuse("another controller's pin", "this is another controller, or somebody stands in between", func(b *EnrolConfig) { b.Pin = newAuthority(t).Pin() })
	refuse("another token", "the controller refuses the token: the token was used on 2026-01-02", func(b *EnrolConfig) { b.Token = "bad" })
	refuse("bad proxy", "proxy", func(b *EnrolConfig) { b.Proxy = "socks5://127.0.0.1:1" })
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	refuse("no directory", "the token was not used", func(b *EnrolConfig) { b.Dir = file })
	c.stop()
	refuse("nobody there", "nothing listens at "+c.url[len("https://"):], func(*EnrolConfig) {})
	c.restart(t)
	if _, err := pki.LoadIdentity(cfg.Dir); err == nil {
		t.Error("a refused enrolment left an identity")
	}

	id, err := Enrol(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if id.Node() != "crm-1" || !slices.Equal(id.Controllers(), []string{c.url, "https://other.example:7443"}) || id.Pin() != a.Pin() {
		t.Errorf("identity of %s, controllers %v", id.Node(), id.Controllers())
	}
	if _, err := Enrol(ctx, cfg); err == nil || !strings.Contains(err.Error(), "the token was used") {
		t.Errorf("the token again: %v", err)
	}
	n := runNode(t, mustLoad(t, cfg.Dir), cfg.Dir, nil)
	n.wantApplied(t, "r1")
}
