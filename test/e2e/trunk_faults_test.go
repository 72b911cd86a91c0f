//go:build linux

package e2e

import (
	"fmt"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
)

// trunkDevices lists the VLAN devices of ours by index and name.
func (o *trunkOffice) trunkDevices() string {
	o.t.Helper()
	return o.sh(o.Gateway.InSegment("decoynet-_trunk"), "ip -o link show type vlan | cut -d: -f1,2")
}

// testKilled: the next run after kill -9 adopts the VLAN devices.
func (o *trunkOffice) testKilled() {
	before := o.trunkDevices()
	check(o.t, o.process.Kill())
	if at := o.lladdr("198.51.100.100"); len(at) != 17 {
		o.t.Errorf("without its process a decoy is at %q", at)
	}
	o.upInGuest()
	if diff := cmp.Diff(before, o.trunkDevices()); diff != "" {
		o.t.Errorf("VLAN devices were made anew (-before +after):\n%s", diff)
	}
	o.visit(o.Intruder, "198.51.100.104", "dmz", o.alpha)
	o.visit(o.plant, "198.51.100.104", "plant", o.beta)
}

// testCleanup: after kill -9 it leaves nothing, and decoynet can start anew.
func (o *trunkOffice) testCleanup() {
	check(o.t, o.process.Kill())
	out, err := o.decoynet("cleanup")
	check(o.t, err)
	if !strings.Contains(out, "removed network namespace decoynet-_trunk\n") {
		o.t.Errorf("cleanup says\n%s", out)
	}
	o.wantAsBefore()
	out, err = o.decoynet("cleanup")
	check(o.t, err)
	if strings.TrimSpace(out) != "0 objects removed" {
		o.t.Errorf("a second cleanup says\n%s", out)
	}
	o.upInGuest()
	o.visit(o.Intruder, "198.51.100.105", "dmz", o.alpha)
}

// wantAsBefore compares gw with how it was before decoynet ran.
func (o *trunkOffice) wantAsBefore() {
	o.t.Helper()
	eventually(o.t, 5*time.Second, func() error {
		if diff := cmp.Diff(o.before, o.snapshot()); diff != "" {
			return fmt.Errorf("gw differs from before (-before +after):\n%s", diff)
		}
		return nil
	})
}

// wantFailing waits until status says of exactly these segments that they fail, and
// why.
func (o *trunkOffice) wantFailing(why string, names ...string) {
	o.t.Helper()
	failing := map[string]bool{}
	for _, n := range names {
		failing[n] = true
	}
	// A node compares with the kernel every ten seconds where nothing fails.
	eventually(o.t, 15*time.Second, func() error {
		st, err := o.status()
		if err != nil {
			return err
		}
		for _, s := range st.Segments {
			if s.Ready == failing[s.Name] {
				return fmt.Errorf("segment %s: ready %v, problems %v", s.Name, s.Ready, s.Problems)
			}
			if said := strings.Join(s.Problems, "\n"); failing[s.Name] && !strings.Contains(said, why) {
				return fmt.Errorf("segment %s fails and says %q, not %q", s.Name, said, why)
			}
		}
		return nil
	})
}

// wantAll has a decoy of each segment visited.
func (o *trunkOffice) wantAll(host int) {
	o.t.Helper()
	o.visit(o.Intruder, fmt.Sprintf("198.51.100.%d", host), "dmz", o.alpha)
	o.visit(o.plant, fmt.Sprintf("198.51.100.%d", host), "plant", o.beta)
	o.visit(o.plant, "10.20.0.101", "plant", o.beta)
	o.visit(o.admin, "203.0.113.101", "admin", o.beta)
}

// testParentDown sets the trunk port down and up.
func (o *trunkOffice) testParentDown() {
	flow := o.stream(o.lab, "192.0.2.102:80")
	o.sh(o.Gateway, "ip link set eth1 down")
	o.wantFailing("parent eth1 is down; ip link set eth1 up", "dmz", "plant", "admin")
	o.sh(o.Gateway, "ip link set eth1 up")
	o.waitReady(15 * time.Second)
	o.wantAll(106)
	flow.wantUndisturbed(o.t, "a flow at another port")
}

// testParentMoved has the other port in another namespace for a while.
func (o *trunkOffice) testParentMoved() {
	flow := o.stream(o.Intruder, "198.51.100.107:80")
	o.sh(o.Gateway, fmt.Sprintf("ip link set eth2 netns %d", o.Linux.PID()))
	o.wantFailing("parent eth2 does not exist", "lab")
	o.sh(o.Linux, fmt.Sprintf("ip link set eth2 netns %d", o.Gateway.PID()))
	o.sh(o.Gateway, "ip link set eth2 up")
	o.waitReady(15 * time.Second)
	o.visit(o.lab, "192.0.2.103", "lab", o.beta)
	flow.wantUndisturbed(o.t, "a flow at another port")
}

// testParentGone deletes the trunk port and all that stands on it, gw's own VLAN
// interface too, and makes them again: as when a driver is loaded anew.
func (o *trunkOffice) testParentGone() {
	flow := o.stream(o.lab, "192.0.2.102:80")
	o.sh(o.Gateway, "ip link del eth1")
	o.wantFailing("parent eth1 does not exist", "dmz", "plant", "admin")
	o.visit(o.lab, "192.0.2.101", "lab", o.beta)
	o.trunk("eth1", 99, 110, 120)
	check(o.t, o.Gateway.Lab().Err())
	o.wantFailing("eth1.99", "admin") // and does not take the VLAN for itself
	o.manage()
	o.waitReady(15 * time.Second)
	o.wantAll(108)
	flow.wantUndisturbed(o.t, "a flow at another port")
}
