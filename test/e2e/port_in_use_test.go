//go:build linux

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"
)

// TestPortInUse has the branch's server run a web server of its own on ports
// that a decoy wants: it is not disturbed, people are told, and the decoy has
// the ports as soon as they are free.
func TestPortInUse(t *testing.T) {
	t.Parallel()
	b := newBranch(t)
	own, err := lab.Nginx(t.Context(), b.Server, lab.Listen{Ports: []uint16{80}, TLS: []uint16{443}})
	check(t, err)
	b.document(branchDocument)
	b.up()
	crm := b.newMember(b.Server, "crm-1") // root sees whose the port is
	url := fmt.Sprintf("http://%s/", lab.BranchServer.V4)
	page := func() string {
		out, err := b.Branch.Intruder.Run(t.Context(), "curl", "-sS", "--max-time", "10", url)
		check(t, err)
		return out
	}

	e := b.wantEvent("port-in-use", func(e event) bool { return e.Node == "crm-1" && strings.Contains(e.Message, "80/tcp") })
	if !strings.Contains(e.Message, "nginx") || e.Decoy != "crm" {
		t.Errorf("the event is %+v", e)
	}
	n := b.wantNode("crm-1", func(n nodeLine) bool { return n.Condition == "failed" })
	for _, word := range []string{"80/tcp", "443/tcp", "nginx", "crm"} {
		if !strings.Contains(strings.Join(n.Problems, "\n"), word) {
			t.Errorf("get nodes says %q, which lacks %q", n.Problems, word)
		}
	}
	st, err := crm.status()
	check(t, err)
	open := map[string]bool{}
	for _, p := range st.Listen.Ports {
		open[p.Port] = open[p.Port] || p.Open
		if p.Port == "80/tcp" && !strings.Contains(p.Problem, "nginx") {
			t.Errorf("status says of port 80 %q", p.Problem)
		}
	}
	if st.Ready || open["80/tcp"] || open["443/tcp"] || !open["2222/tcp"] || !open["161/udp"] {
		t.Errorf("ready %v, open ports %v", st.Ready, open)
	}
	if body := page(); !strings.HasPrefix(body, "machine crm\n") {
		t.Errorf("the server's own page is %q", body)
	}
	b.wantEcho(b.Branch.Intruder, netip.AddrPortFrom(lab.BranchServer.V4, 161)) // the other ports work

	check(t, own.Stop(t.Context()))
	began := time.Now()
	eventually(t, 15*time.Second, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		out, err := b.Branch.Intruder.Run(ctx, "curl", "-sS", "--max-time", "4", url)
		if err == nil && !strings.HasPrefix(out, "machine linux\n") {
			err = fmt.Errorf("the page is %q", out)
		}
		return err
	})
	t.Logf("the decoy has the port %v after its owner left", time.Since(began).Round(time.Millisecond))
	b.wantEvent("port-taken", func(e event) bool { return e.Node == "crm-1" && strings.Contains(e.Message, "80/tcp") })
	b.wantNode("crm-1", converged)
	crm.waitReady()
}
