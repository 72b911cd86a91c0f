package controller

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/registry"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
)

func report(t testing.TB, c decoynetv1connect.NodeServiceClient, m *decoynetv1.ReportRequest) {
	t.Helper()
	if _, err := c.Report(within(t), connect.NewRequest(m)); err != nil {
		t.Fatal(err)
	}
}

// A node goes through all its conditions.
func TestConditions(t *testing.T) {
	s := newSite(t, options{})
	s.apply(t, office)
	is := func(want string) *decoynetv1.NodeInfo {
		t.Helper()
		n := s.condition(t, "crm-1")
		if n.GetCondition() != want {
			t.Errorf("the node is %s, want %s: %v", n.GetCondition(), want, n)
		}
		return n
	}
	is(conditionNeverSeen)
	id, c := s.join(t, "crm-1")
	is(conditionNeverSeen)
	wanted := watch(t, c, "").next(t).GetRevision()
	if n := is(conditionApplying); n.GetRevisionWanted() != wanted || n.GetRevisionHeld() != "" {
		t.Errorf("revisions %q and %q", n.GetRevisionWanted(), n.GetRevisionHeld())
	}
	full := &decoynetv1.ReportRequest{
		Version: "1.2", Platform: "linux/arm64", Revision: wanted, State: decoynetv1.ReportRequest_STATE_CONVERGED,
		Flows: 7, Time: time.Now().UnixNano(), Spool: &decoynetv1.Spool{Waiting: 3, WaitingBytes: 300, Dropped: 1},
		Gateways: []*decoynetv1.GatewayLink{
			{Name: "gw1", Error: "refused"}, {Name: "gw2", Connected: true, RoundTrip: 5000},
		},
	}
	report(t, c, full)
	n := is(conditionConverged)
	_, expires := id.Certificate()
	if n.GetVersion() != "1.2" || n.GetPlatform() != "linux/arm64" || n.GetRevisionHeld() != wanted || n.GetFlows() != 7 ||
		n.GetRoundTrip() != 5000 || len(n.GetGateways()) != 2 || n.GetSpool().GetDropped() != 1 || n.GetPeer() != "127.0.0.1" ||
		n.GetCertificateExpires() != expires.UnixNano() || time.Duration(n.GetClockOffset()).Abs() > time.Minute ||
		time.Since(time.Unix(0, n.GetLastSeen())) > time.Minute {
		t.Errorf("node %v", n)
	}
	report(t, c, &decoynetv1.ReportRequest{Revision: wanted, State: decoynetv1.ReportRequest_STATE_DRIFTED, Problems: []string{"a rule is gone"}})
	if n := is(conditionDrifted); len(n.GetProblems()) != 1 || n.GetProblems()[0] != "a rule is gone" {
		t.Errorf("problems %q", n.GetProblems())
	}
	report(t, c, &decoynetv1.ReportRequest{Revision: wanted, State: decoynetv1.ReportRequest_STATE_FAILED})
	is(conditionFailed)
	s.apply(t, strings.Replace(office, "ports: [445]", "ports: [3389]", 1))
	is(conditionApplying)
	report(t, c, &decoynetv1.ReportRequest{Revision: s.hub.node("crm-1").wanted(), State: decoynetv1.ReportRequest_STATE_CONVERGED})
	is(conditionConverged)
	later, err := s.nodes(within(t), time.Now().Add(s.timing.lostAfter+time.Second))
	if err != nil || later[0].GetName() != "crm-1" || later[0].GetCondition() != conditionLost {
		t.Errorf("after a long silence: %v, %v", later, err)
	}
	report(t, c, full)
	is(conditionApplying)
	s.revoke(t, "crm-1")
	is(conditionRevoked)
	s.join(t, "crm-1")
	if n := is(conditionNeverSeen); n.GetLastSeen() != 0 || n.GetVersion() != "" { // the former machine's word does not count
		t.Errorf("node %v", n)
	}
}

// Losing a node and hearing of it again are said once each, and the registry knows.
func TestLostAndBack(t *testing.T) {
	short := quick
	short.lostAfter = time.Second
	s := newSite(t, options{timing: &short})
	_, c := s.join(t, "crm-1")
	here := func() int { return len(s.store.eventsOf(deception.EventNodeConnected, "crm-1")) }
	lost := func() int { return len(s.store.eventsOf(deception.EventNodeLost, "crm-1")) }
	for round := 1; round <= 2; round++ {
		report(t, c, &decoynetv1.ReportRequest{Boot: "b1"})
		eventually(t, "connected", func() bool { return here() == round })
		eventually(t, "lost", func() bool { return lost() == round })
	}
	if e := s.store.eventsOf(deception.EventNodeConnected, "crm-1")[0]; !strings.Contains(e.Message, "127.0.0.1") {
		t.Errorf("event %+v", e)
	}
	nodes, err := s.cfg.Registry.Nodes(within(t))
	if err != nil || nodes[0].Lost.IsZero() || nodes[0].Boot != "b1" {
		t.Errorf("in the registry: %+v, %v", nodes, err)
	}
	time.Sleep(10 * short.sweep) // nothing is said twice
	if here() != 2 || lost() != 2 {
		t.Errorf("%d times connected, %d times lost", here(), lost())
	}
}

// A new run of a node's process ends what its last one left behind.
func TestANewBootEndsSessions(t *testing.T) {
	s := newSite(t, options{})
	_, c := s.join(t, "crm-1")
	at := time.UnixMilli(time.Now().Add(-time.Minute).UnixMilli())
	boot := bootAt(at)
	report(t, c, &decoynetv1.ReportRequest{Boot: boot})
	want := fmt.Sprint("crm-1 ", at.UnixMilli())
	eventually(t, "first boot", func() bool { return slices.Contains(s.store.lostNodes(), want) })
	report(t, c, &decoynetv1.ReportRequest{Boot: boot})

	// The store fails for a while; the errand is not forgotten.
	s.store.set(errors.New("disk full"))
	again := at.Add(30 * time.Second)
	report(t, c, &decoynetv1.ReportRequest{Boot: bootAt(again)})
	eventually(t, "the new boot noticed", func() bool {
		return len(s.store.eventsOf(deception.EventNodeConnected, "crm-1")) == 2
	})
	s.store.set(nil)
	eventually(t, "second boot", func() bool { return len(s.store.lostNodes()) == 2 })
	if got := s.store.lostNodes()[1]; got != fmt.Sprint("crm-1 ", again.UnixMilli()) {
		t.Errorf("ended %s", got)
	}
	if e := s.store.eventsOf(deception.EventNodeConnected, "crm-1")[1]; !strings.Contains(e.Message, "anew") {
		t.Errorf("event %+v", e)
	}
}

// bootAt is the identifier of a process that began then.
func bootAt(at time.Time) string {
	id := deception.NewSessionID(at)
	for i := range 6 {
		id[i] = byte(at.UnixMilli() >> (8 * (5 - i)))
	}
	return id.String()
}

func TestBootTime(t *testing.T) {
	heard := time.UnixMilli(5000)
	at := time.UnixMilli(1_700_000_000_123)
	for boot, want := range map[string]time.Time{
		bootAt(at):                             at,
		"":                                     heard,
		"some-word":                            heard,
		"01234567-89ab-4def-8123-456789abcdef": heard, // random, of version 4
	} {
		if got := bootTime(boot, heard); !got.Equal(want) {
			t.Errorf("bootTime(%q) = %v, want %v", boot, got, want)
		}
	}
}

func TestClockOff(t *testing.T) {
	s := newSite(t, options{})
	_, c := s.join(t, "crm-1")
	events := func() []deception.Event { return s.store.eventsOf(deception.EventClockOff, "crm-1") }
	ahead := func(d time.Duration) *decoynetv1.ReportRequest {
		return &decoynetv1.ReportRequest{Time: time.Now().Add(d).UnixNano()}
	}
	report(t, c, ahead(0))
	if len(events()) != 0 {
		t.Errorf("a good clock: %+v", events())
	}
	report(t, c, ahead(time.Hour))
	report(t, c, ahead(time.Hour))
	if got := events(); len(got) != 1 || !strings.Contains(got[0].Message, "ahead") || !strings.Contains(got[0].Message, "NTP") {
		t.Errorf("an hour ahead: %+v", got)
	}
	if n := s.condition(t, "crm-1"); time.Duration(n.GetClockOffset()).Round(time.Minute) != time.Hour {
		t.Errorf("offset %v", time.Duration(n.GetClockOffset()))
	}
	report(t, c, ahead(0))
	report(t, c, ahead(-time.Hour))
	if got := events(); len(got) != 2 || !strings.Contains(got[1].Message, "behind") {
		t.Errorf("an hour behind: %+v", got)
	}
	report(t, c, &decoynetv1.ReportRequest{}) // says nothing about its clock
	if n := s.condition(t, "crm-1"); n.GetClockOffset() != 0 {
		t.Errorf("offset of a node that does not say its time: %v", time.Duration(n.GetClockOffset()))
	}
}

// What a node says about itself is kept within bounds.
func TestReportIsBounded(t *testing.T) {
	m := &decoynetv1.ReportRequest{Version: strings.Repeat("ü", 1000)}
	for range 1000 {
		m.Problems = append(m.Problems, strings.Repeat("p", 10000))
		m.Gateways = append(m.Gateways, &decoynetv1.GatewayLink{Name: strings.Repeat("g", 1000)})
		m.Addresses = append(m.Addresses, fmt.Sprintf("192.0.2.%d", len(m.Addresses)%250))
	}
	r := reportOf(m, &caller{}, time.Now())
	if len(r.Version) > 100 || len(r.Problems) != maxProblems+1 || len(r.Problems[0]) > maxProblemText || len(r.Gateways) != maxLinks {
		t.Errorf("a report of %d problems, %d gateways", len(r.Problems), len(r.Gateways))
	}
	if strings.ContainsRune(r.Version, '\uFFFD') || r.Problems[maxProblems] != "... and 968 more" {
		t.Errorf("version %q, last problem %q", r.Version, r.Problems[maxProblems])
	}
	if n := len(addressesOf(m)); n > maxAddresses {
		t.Errorf("%d addresses", n)
	}
	got := addressesOf(&decoynetv1.ReportRequest{Addresses: []string{
		"192.0.2.2", "::ffff:192.0.2.1", "127.0.0.1", "fe80::1%eth0", "nonsense", "224.0.0.1", "2001:db8::1", "192.0.2.2", "0.0.0.0",
	}})
	if diff := cmp.Diff([]string{"192.0.2.1", "192.0.2.2", "2001:db8::1"}, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

// Where a gateway is, is learned from the node and told to the agents.
func TestGatewayAddressIsLearned(t *testing.T) {
	s := newSite(t, options{})
	s.apply(t, office)
	_, agent := s.join(t, "crm-1")
	_, gateway := s.join(t, "hq")
	w := watch(t, agent, "")
	if got := stateOf(t, w.next(t)).Gateways[0].Addresses; len(got) != 0 {
		t.Errorf("before the gateway's node called: %v", got)
	}
	report(t, gateway, &decoynetv1.ReportRequest{Addresses: []string{"192.0.2.7"}})
	for {
		if got := fmt.Sprint(stateOf(t, w.next(t)).Gateways[0].Addresses); got == "[192.0.2.7:7444]" {
			return
		} else if got != "[127.0.0.1:7444]" {
			t.Fatalf("the gateway is at %s", got)
		}
	}
}

// The registry is not written for every sign of life.
func TestSignsOfLifeAreGathered(t *testing.T) {
	p := newPresence()
	now := time.Unix(1000, 0)
	r := &registry.Report{Held: "1", State: conditionConverged}
	p.hear(&caller{node: "n", generation: 1}, "b", nil, now, time.Minute)
	p.take("n", r, nil)
	if out := p.collect(now, time.Second, false); len(out.hellos) != 1 || len(out.sightings) != 1 {
		t.Fatalf("first: %+v", out)
	} else {
		p.greeted(out.hellos[0])
	}
	p.hear(&caller{node: "n", generation: 1}, "b", nil, now.Add(100*time.Millisecond), time.Minute)
	p.take("n", &registry.Report{Held: "1", State: conditionConverged, Flows: 8}, nil)
	if out := p.collect(now.Add(200*time.Millisecond), time.Second, false); len(out.hellos)+len(out.sightings) != 0 {
		t.Errorf("a sign of life: %+v", out)
	}
	if out := p.collect(now.Add(1200*time.Millisecond), time.Second, false); len(out.sightings) != 1 || out.sightings[0].Report.Flows != 8 {
		t.Errorf("after a second: %+v", out)
	}
	p.take("n", &registry.Report{Held: "2", State: conditionConverged}, []string{"192.0.2.1"})
	out := p.collect(now.Add(1300*time.Millisecond), time.Second, false)
	if len(out.sightings) != 1 || out.sightings[0].Addresses == nil {
		t.Errorf("another revision: %+v", out)
	}
	p.restore(out.sightings) // the registry was not there
	out = p.collect(now.Add(1400*time.Millisecond), time.Second, false)
	if len(out.sightings) != 1 || out.sightings[0].Addresses == nil || out.sightings[0].Report.Held != "2" {
		t.Errorf("tried again: %+v", out)
	}
	p.hear(&caller{node: "n", generation: 1}, "b", nil, now.Add(5*time.Minute), time.Minute)
	if out := p.collect(now.Add(5*time.Minute), time.Second, false); len(out.hellos) != 1 {
		t.Errorf("after a long silence: %+v", out)
	}
}
