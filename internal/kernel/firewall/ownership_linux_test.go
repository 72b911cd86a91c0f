package firewall

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestRepeatedApplySendsNothing(t *testing.T) {
	l := newPathLab(t)
	k, other := l.path(ReplyByMark), l.path(ReplyByAlias)
	other.Index, other.HostLink = 2, "dnv-2"
	seg2 := newNS(t, "seg2")
	all := func() (total Status) {
		total = mustApplyZones(t, l.gw, linuxZone, ZoneRules{Zone: "win", Link: "br-win"})
		total = total.plus(l.apply(t, k))
		s, err := ApplyKernelPath(context.Background(), l.gw, seg2, other)
		if err != nil {
			t.Fatal(err)
		}
		return total.plus(s)
	}
	if s := all(); !s.Changed || s.Added == 0 || s.Deleted != 0 {
		t.Errorf("first: %+v", s)
	}
	monitors := map[string]func() string{"gw": l.gw.monitor(), "seg": l.seg.monitor(), "seg2": seg2.monitor()}
	if s := all(); s.Changed {
		t.Errorf("second: %+v", s)
	}
	for name, stop := range monitors {
		if seen := stop(); seen != "" {
			t.Errorf("%s: the second Apply sent\n%s", name, seen)
		}
	}
	// What somebody else has broken is mended, and only that.
	l.gw.exec("nft flush chain inet decoynet zone-linux-in; nft delete element inet decoynet zone-inputs { br-win }")
	if s := mustApplyZones(t, l.gw, linuxZone, ZoneRules{Zone: "win", Link: "br-win"}); s.Deleted != 0 || s.Added < 10 {
		t.Errorf("mending: %+v", s)
	}
	if s := all(); s.Changed {
		t.Errorf("after mending: %+v", s)
	}
	// An edited rule lacks our fingerprint.
	l.gw.exec(`h=$(nft -a list chain inet decoynet zone-linux-forward | sed -n 's/.*within the zone.*handle //p'); nft replace rule inet decoynet zone-linux-forward handle $h accept`)
	if s := mustApplyZones(t, l.gw, linuxZone, ZoneRules{Zone: "win", Link: "br-win"}); !s.Changed {
		t.Error("an edited rule went unnoticed")
	}
	if rules := l.gw.exec("nft list chain inet decoynet zone-linux-forward"); !strings.Contains(rules, `oifname "br-linux" accept`) {
		t.Errorf("the edited rule was not mended: %s", rules)
	}
}

// monitor starts `nft monitor` and returns what it saw until it was called.
func (n *testNS) monitor() (stop func() string) {
	n.t.Helper()
	out, err := os.Create(n.t.TempDir() + "/monitor")
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", n.name, "nft", "monitor")
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	end := sync.OnceFunc(func() {
		_ = cmd.Process.Kill() // ip has become nft
		_ = cmd.Wait()
		_ = out.Close()
	})
	n.t.Cleanup(end)
	// sentinel makes a change of its own and waits until the monitor shows it.
	sentinel := func(name string) (seen string) {
		eventually(n.t, "nft monitor shows "+name, func() bool {
			n.exec("nft add table ip " + name + "; nft delete table ip " + name)
			time.Sleep(20 * time.Millisecond)
			b, err := os.ReadFile(out.Name())
			seen = string(b)
			return err == nil && strings.Contains(seen, "delete table ip "+name)
		})
		return seen
	}
	before := sentinel("beginning")
	return func() string {
		after := sentinel("ending")
		end()
		var seen []string
		for line := range strings.Lines(strings.TrimPrefix(after, before)) {
			if !strings.Contains(line, "table ip ") && !strings.HasPrefix(line, "#") && strings.TrimSpace(line) != "" {
				seen = append(seen, line)
			}
		}
		return strings.Join(seen, "")
	}
}

func TestForeignTablesAreLeft(t *testing.T) {
	l := newPathLab(t)
	foreign := `nft add table inet foreign; nft add chain inet foreign c '{ type filter hook input priority 0; }'; nft add rule inet foreign c tcp dport 1 counter drop
		nft add table ip decoynet; nft add chain ip decoynet c; nft add table inet decoy; iptables -A INPUT -p tcp --dport 7 -j DROP`
	for _, n := range []*testNS{l.gw, l.seg} {
		n.exec(foreign)
	}
	// Another part of decoynet in the same table.
	l.gw.exec("nft add table inet decoynet; nft add chain inet decoynet steer-x; nft add set inet decoynet steer-y '{ type ipv4_addr; }'")
	before := map[*testNS]string{l.gw: l.gw.exec("nft list ruleset"), l.seg: l.seg.exec("nft list ruleset")}
	k := l.path(ReplyByMark)
	for range 2 {
		mustApplyZones(t, l.gw, linuxZone)
		l.apply(t, k)
	}
	if got := l.gw.exec("nft list tables"); !strings.Contains(got, "table inet decoynet") {
		t.Fatalf("tables: %s", got)
	}
	mustApplyZones(t, l.gw)
	if _, err := RemoveKernelPath(context.Background(), l.gw, l.seg, k); err != nil {
		t.Fatal(err)
	}
	if got := l.gw.exec("nft list ruleset"); got != before[l.gw] {
		t.Errorf("the host's rules were\n%sand are\n%s", before[l.gw], got)
	}
	for _, n := range []*testNS{l.gw, l.seg} {
		owned, err := Owned(n)
		if err != nil || len(owned) != 1 || owned[0] != (Table{"inet", TableName}) {
			t.Errorf("Owned = %v, %v", owned, err)
		}
		if err := errors.Join(Remove(n), Remove(n)); err != nil {
			t.Error(err)
		}
		if owned, err := Owned(n); err != nil || len(owned) != 0 {
			t.Errorf("after Remove, Owned = %v, %v", owned, err)
		}
		if got := n.exec("nft list ruleset"); strings.Contains(got, "table inet decoynet") || !strings.Contains(got, "table ip decoynet") || !strings.Contains(got, "table inet decoy ") || !strings.Contains(got, "table inet foreign") {
			t.Errorf("after Remove: %s", got)
		}
	}
}
