//go:build linux

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"decoynet/internal/lab"
)

// maxFailover is what an intruder may notice of a dead gateway; under three
// seconds are promised, the rest is for a loaded machine.
const maxFailover = 5 * time.Second

// failover is a branch whose agent has two ingress gateways to choose from.
type failover struct {
	*branch
	gw2 *member
}

// twoGateways is chainDocument with a second gateway on a machine of its own.
func twoGateways() string {
	return strings.NewReplacer(
		"{name: vm1}]", "{name: vm1}, {name: hq-2}]",
		"segments:", "  - {name: gw2, node: hq-2, listen: 192.0.2.6:7444}\nsegments:",
		"from: 172.16.23.1}", "from: [172.16.23.1, 172.16.23.3]}",
	).Replace(chainDocument)
}

// TestFailover stops and cuts off the first of two gateways: new flows leave by
// the other, and by the first again when it is back.
func TestFailover(t *testing.T) {
	t.Parallel()
	b := newBranch(t)
	n := b.addInner()
	second := b.Gateway.Lab().Machine("gw2")
	second.Plug(b.office.LAN, "eth0", "192.0.2.6/24")
	second.Plug(n.Switch, "eth1", "172.16.23.3/24")
	second.Forward()
	check(t, b.Gateway.Lab().Err())
	b.document(twoGateways())
	b.start()
	eventually(t, 20*time.Second, func() error { _, err := b.nodes(); return err })
	vm1 := b.newMember(n.vm1, "vm1")
	f := &failover{branch: b, gw2: b.newMember(second, "hq-2")}
	vm1.waitReady()
	f.gw2.waitReady()
	b.join()
	b.startAgent()
	b.waitAgent()
	b.waitMet(b.places()[0])
	f.prefersFirst("at the start")

	f.failsOver("gw1 stopped", func() error { return b.process.Signal(syscall.SIGSTOP) })
	check(t, b.process.Signal(syscall.SIGCONT))
	f.goesBack("gw1 goes on")

	const dropped = "add table inet away; add chain inet away in { type filter hook input priority -10; }; add rule inet away in tcp dport 7444 drop"
	f.failsOver("packets to gw1 dropped", func() error {
		_, err := b.Gateway.Run(t.Context(), "nft", dropped)
		return err
	})
	_, err := b.Gateway.Run(t.Context(), "nft", "delete table inet away")
	check(t, err)
	f.goesBack("packets get through")
}

// fetch asks the branch's decoy for a page, as a client who does not wait long.
func (f *failover) fetch() error {
	_, err := f.Branch.Intruder.Run(f.t.Context(), "curl", "-sS", "--max-time", "1", "-o", "/dev/null",
		fmt.Sprintf("http://%s/", netip.AddrPortFrom(lab.BranchServer.V4, 80)))
	return err
}

// failsOver measures how long after a fault of the first gateway a client who
// tries again and again gets its page, and where it came through.
func (f *failover) failsOver(what string, fault func() error) {
	f.t.Helper()
	before := f.through2()
	check(f.t, fault())
	began, attempts := time.Now(), 1
	for ; f.fetch() != nil; attempts++ {
		if time.Since(began) > 20*time.Second {
			f.t.Fatalf("%s: no flow got through for 20 s", what)
		}
	}
	took := time.Since(began)
	f.t.Logf("%s: new flows got through after %v, by attempt %d", what, took.Round(time.Millisecond), attempts)
	if took > maxFailover {
		f.t.Errorf("%s: new flows got through only after %v", what, took)
	}
	for range 5 { // and go on to
		check(f.t, f.fetch())
	}
	if now := f.through2(); now < before+6 {
		f.t.Errorf("%s: the second gateway took %d flows, want 6", what, now-before)
	}
}

// through2 counts the flows that the second gateway has taken.
func (f *failover) through2() int {
	f.t.Helper()
	st, err := f.gw2.status()
	check(f.t, err)
	return st.Ingress.Accepted
}

// goesBack waits until flows leave by the first gateway again.
func (f *failover) goesBack(what string) {
	f.t.Helper()
	began := time.Now()
	eventually(f.t, 20*time.Second, func() error {
		before := f.through2()
		if err := f.fetch(); err != nil {
			return err
		}
		if f.through2() > before {
			return fmt.Errorf("%s: flows still leave by the second", what)
		}
		return nil
	})
	f.t.Logf("%s: flows leave by it after %v", what, time.Since(began).Round(time.Millisecond))
	f.prefersFirst(what)
}

// prefersFirst checks that flows leave by the first gateway.
func (f *failover) prefersFirst(when string) {
	f.t.Helper()
	before := f.through2()
	for range 10 {
		check(f.t, f.fetch())
	}
	if now := f.through2(); now != before {
		f.t.Errorf("%s: %d of 10 flows left by the second gateway", when, now-before)
	}
}
