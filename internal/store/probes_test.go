package store

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
)

var sameProbe = append(cmp.Options{cmp.Comparer(func(a, b netip.Addr) bool { return a == b })}, same...)

// probe makes the n-th probe after base, one second apart, as told for the
// times-th time: each time one more SYN.
func probe(base time.Time, n, times int) *deception.Probe {
	p := &deception.Probe{
		Start: base.Add(time.Duration(n) * time.Second),
		Node:  "hq", Segment: "office", Source: netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), SourceMAC: "02:00:00:00:00:01",
		Sources: 1, Kind: deception.ScanPort, Addresses: 1, Ports: uint64(times),
		First:  netip.MustParseAddrPort("198.51.100.7:1"),
		Latest: netip.AddrPortFrom(netip.MustParseAddr("198.51.100.7"), uint16(times)),
	}
	p.Contacts[deception.ContactSYN] = uint64(times)
	p.Last = p.Start.Add(time.Duration(times) * time.Millisecond)
	p.ID = idAt(p.Start)
	p.ID[6] = 0x70
	binary.BigEndian.PutUint64(p.ID[8:], 1<<63|uint64(n))
	return p
}

// over is the probe as told when it is over.
func over(p *deception.Probe) *deception.Probe {
	out := *p
	out.End = out.Last
	return &out
}

func probes(t testing.TB, r *Reader, f ProbeFilter) (out []deception.Probe) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for p, err := range r.Probes(ctx, f) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

func compareProbes(t testing.TB, got []deception.Probe, want ...*deception.Probe) {
	t.Helper()
	plain := make([]deception.Probe, len(want))
	for i, p := range want {
		plain[i] = *p
	}
	if diff := cmp.Diff(plain, got, sameProbe); diff != "" {
		t.Errorf("probes (-want +got):\n%s", diff)
	}
}

func TestProbesComeBackAsTheyWere(t *testing.T) { eachBackend(t, testProbesComeBackAsTheyWere) }

func testProbesComeBackAsTheyWere(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	plain, sweep, many := over(probe(base, 0, 3)), probe(base, 1, 1), probe(base, 2, 1)
	plain.Scanner = "audit"
	sweep.Kind, sweep.Source, sweep.SourceMAC = deception.ScanPingSweep, netip.MustParseAddr("2001:db8::1"), ""
	sweep.Contacts = [deception.ContactKinds]uint64{7, 8, 0, 1 << 60}
	sweep.Addresses, sweep.Ports, sweep.Approximate = 1<<33, 0, true
	sweep.First, sweep.Latest = netip.MustParseAddrPort("[2001:db8::2]:0"), netip.MustParseAddrPort("[2001:db8::3]:65535")
	many.Source, many.Sources, many.First, many.Latest = netip.Addr{}, 70000, netip.AddrPort{}, netip.AddrPort{}
	r.Probe(sweep)
	settled(t, r)
	commit(t, r, Batch{Node: "hq", Probes: []deception.Probe{*many, *plain, *sweep}})
	r.Probe(&deception.Probe{Source: many.First.Addr()}) // without an identifier: none
	settled(t, r)
	compareProbes(t, probes(t, openReader(t, at.path), ProbeFilter{}), plain, sweep, many)
	if got, want := at.tool(t, `SELECT "event.id", "event.action", "source.ip", "source.mac", "destination.ip", "destination.port",
		"decoynet.probe.kind", "decoynet.probe.contacts.syn", "decoynet.probe.count", "decoynet.probe.latest.port", "decoynet.scanner"
		FROM probes WHERE "event.end" IS NOT NULL`),
		plain.ID.String()+" probe 192.0.2.0 02:00:00:00:00:01 198.51.100.7 1 port_scan 3 3 3 audit"; got != want {
		t.Errorf("the view says %q, want %q", got, want)
	}
	if got, want := at.tool(t, `SELECT "source.ip", "destination.ip", "decoynet.probe.contacts.arp", "decoynet.probe.contacts.ping",
		"decoynet.probe.count", "decoynet.probe.addresses", "decoynet.probe.approximate" FROM probes WHERE "decoynet.probe.kind" = 'ping_sweep'`),
		"2001:db8::1 2001:db8::2 7 8 1152921504606846991 8589934592 1"; got != want {
		t.Errorf("the view says %q, want %q", got, want)
	}
	if got := at.tool(t, `SELECT count(*) FROM probes WHERE "source.ip" IS NULL AND "destination.ip" IS NULL AND "event.end" IS NULL`); got != "1" {
		t.Errorf("the view has %s probes of many sources", got)
	}
}

// Whatever comes first, twice, late or not at all: what was told last is what
// stands, once.
func TestProbesMerge(t *testing.T) { eachBackend(t, testProbesMerge) }

func testProbesMerge(t *testing.T, at place) {
	const n, times = 20, 6
	r := open(t, RecorderConfig{Path: at.path})
	var want, told []*deception.Probe
	for i := range n {
		for k := 1; k <= times; k++ {
			told = append(told, probe(base, i, k))
		}
		want = append(want, over(probe(base, i, times)))
	}
	told = append(told, want...)
	told = append(told, told...)
	rand.Shuffle(len(told), func(i, j int) { told[i], told[j] = told[j], told[i] })
	for i, p := range told {
		switch {
		case i%3 == 0:
			r.Probe(p)
		case i%7 == 0:
			commit(t, r, Batch{Probes: []deception.Probe{*p, *told[i/2]}})
		default:
			commit(t, r, Batch{Probes: []deception.Probe{*p}})
		}
	}
	settled(t, r)
	compareProbes(t, probes(t, openReader(t, at.path), ProbeFilter{}), want...)
	// A repetition is not even news to who watches.
	before := at.tool(t, "SELECT max(seq) FROM probe")
	commit(t, r, Batch{Probes: []deception.Probe{*want[3], *probe(base, 4, 2)}})
	if after := at.tool(t, "SELECT max(seq) FROM probe"); after != before {
		t.Errorf("a repetition was written: seq %s, then %s", before, after)
	}
}

func TestProbeFilters(t *testing.T) { eachBackend(t, testProbeFilters) }

func testProbeFilters(t *testing.T, at place) {
	const n = 2*pageRows + 10
	r := open(t, RecorderConfig{Path: at.path})
	var b Batch
	for i := range n {
		p := probe(base, i, 1)
		p.Source = netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		if i%100 == 7 {
			p.Node, p.Segment, p.Scanner = "branch", "lab", "audit"
		}
		b.Probes = append(b.Probes, *p)
	}
	commit(t, r, b)
	reader := openReader(t, at.path)
	prefix := netip.MustParsePrefix
	for name, c := range map[string]struct {
		f           ProbeFilter
		count       int
		first, last int
	}{
		"all":               {ProbeFilter{}, n, 0, n - 1},
		"since":             {ProbeFilter{Since: b.Probes[20].Last}, n - 20, 20, n - 1},
		"node":              {ProbeFilter{Node: "branch"}, 11, 7, 1007},
		"segment":           {ProbeFilter{Segment: "lab", Since: b.Probes[8].Last}, 10, 107, 1007},
		"scanner":           {ProbeFilter{Scanner: "audit"}, 11, 7, 1007},
		"unknown":           {ProbeFilter{Unknown: true}, n - 11, 0, n - 1},
		"source":            {ProbeFilter{Source: prefix("10.0.1.5/32")}, 1, 261, 261},
		"network":           {ProbeFilter{Source: prefix("10.0.1.0/24")}, 256, 256, 511},
		"newest of network": {ProbeFilter{Source: prefix("10.0.0.0/24"), Limit: 3}, 3, 253, 255},
		"other network":     {ProbeFilter{Source: prefix("192.0.2.0/24"), Limit: 3}, 0, 0, 0},
		"newest":            {ProbeFilter{Limit: 3}, 3, n - 3, n - 1},
		"newest, pages":     {ProbeFilter{Limit: pageRows + 5}, pageRows + 5, n - pageRows - 5, n - 1},
		"after":             {ProbeFilter{After: b.Probes[9].ID, Limit: 2}, 2, 10, 11},
		"after in network":  {ProbeFilter{After: b.Probes[9].ID, Source: prefix("10.0.3.0/24"), Limit: 2}, 2, 768, 769},
	} {
		got := probes(t, reader, c.f)
		if len(got) != c.count {
			t.Errorf("%s: %d probes, want %d", name, len(got), c.count)
			continue
		}
		if c.count > 0 && (got[0].ID != b.Probes[c.first].ID || got[c.count-1].ID != b.Probes[c.last].ID) {
			t.Errorf("%s: from %s to %s", name, got[0].Start, got[c.count-1].Start)
		}
	}
}

// A watch tells of a probe when it comes, grows and ends.
func TestWatchProbes(t *testing.T) { eachBackend(t, testWatchProbes) }

func testWatchProbes(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	commit(t, r, Batch{Probes: []deception.Probe{*probe(base, 1, 1), *probe(base, 2, 1), *probe(base, 3, 1)}})
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var got []deception.Probe
	for p, err := range openReader(t, at.path).WatchProbes(ctx, ProbeFilter{Limit: 2, Node: "hq"}) {
		if err != nil {
			t.Fatal(err)
		}
		switch got = append(got, p); len(got) {
		case 2:
			other := probe(base, 4, 1)
			other.Node = "branch"
			commit(t, r, Batch{Probes: []deception.Probe{*other, *probe(base, 1, 2)}})
		case 3:
			r.Probe(probe(base, 5, 9))
		case 4:
			commit(t, r, Batch{Probes: []deception.Probe{*probe(base, 1, 1)}}) // late
			commit(t, r, Batch{Probes: []deception.Probe{*over(probe(base, 1, 2))}})
		}
		if len(got) == 5 {
			break
		}
	}
	compareProbes(t, got, probe(base, 2, 1), probe(base, 3, 1), probe(base, 1, 2), probe(base, 5, 9), over(probe(base, 1, 2)))
}

func TestOldProbesAreDeleted(t *testing.T) { eachBackend(t, testOldProbesAreDeleted) }

func testOldProbesAreDeleted(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path, Retain: 24 * time.Hour})
	var b Batch
	ago := time.Now().Add(-48 * time.Hour)
	for i := range deleteSlice + 10 {
		b.Probes = append(b.Probes, *over(probe(ago, i, 1)))
	}
	long, young := probe(ago, 0, 7), probe(time.Now(), 1, 1)
	long.ID[15]++
	long.Last = time.Now() // began before all, and goes on
	b.Probes = append(b.Probes, *long, *young)
	commit(t, r, b)
	reader := openReader(t, at.path)
	eventually(t, "old probes deleted", func() bool { return len(probes(t, reader, ProbeFilter{})) == 2 })
	compareProbes(t, probes(t, reader, ProbeFilter{}), long, young)
}

// The oldest probes go where the file is too large, also where there is nothing else.
func TestProbesAreBounded(t *testing.T) {
	path := newPath(t)
	r := open(t, RecorderConfig{Path: path, MaxBytes: 1 << 20})
	base := base.Add(-24 * time.Hour)
	for i := range 20 {
		var b Batch
		for k := range 1000 {
			b.Probes = append(b.Probes, *probe(base, 1000*i+k, 1))
		}
		commit(t, r, b)
	}
	reader := openReader(t, path)
	eventually(t, "oldest probes deleted", func() bool {
		n := len(probes(t, reader, ProbeFilter{}))
		return n > 0 && n < 10000
	})
	left := probes(t, reader, ProbeFilter{})
	if newest := left[len(left)-1]; newest.ID != probe(base, 19999, 1).ID {
		t.Errorf("the newest that is left began at %s", newest.Start)
	}
}

// What a process left open when it died is over once nobody has told of it for
// long; what is told of it later, after all, counts.
func TestProbesOfADeadNodeEnd(t *testing.T) { eachBackend(t, testProbesOfADeadNodeEnd) }

func testProbesOfADeadNodeEnd(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	now := time.Now().Truncate(time.Microsecond)
	dead, alive := probe(now.Add(-2*silentProbe), 1, 3), probe(now.Add(-2*silentProbe), 2, 3)
	alive.Last = now
	commit(t, r, Batch{Probes: []deception.Probe{*dead, *alive}})
	if err := r.ask(t.Context(), func() error { return r.w.endSilentProbes(now) }); err != nil {
		t.Fatal(err)
	}
	reader := openReader(t, at.path)
	compareProbes(t, probes(t, reader, ProbeFilter{}), over(dead), alive)
	dead.Contacts[deception.ContactSYN]++
	dead.Last = now
	commit(t, r, Batch{Probes: []deception.Probe{*dead}})
	compareProbes(t, probes(t, reader, ProbeFilter{}), dead, alive)
}

// While nothing can be written, the newest telling of each probe waits: no more
// memory, however often they are told.
func TestWaitingProbesAreTakenTogether(t *testing.T) {
	q := newQueue(64 << 10)
	for k := range 1000 {
		for i := range 50 {
			q.putProbe(probe(base, i, 1+k))
		}
	}
	count, bytes, lost := q.usage()
	if count != 50 || bytes > 50*512 || lost != (losses{}) {
		t.Errorf("%d probes in %d bytes, lost %+v", count, bytes, lost)
	}
	for i := range 1000 {
		q.putProbe(probe(base, 50+i, 1))
	}
	if _, bytes, lost = q.usage(); bytes > 64<<10 || lost.probes == 0 {
		t.Errorf("%d bytes, lost %+v", bytes, lost)
	}
	if b := q.take(true); b.probes[probe(base, 7, 1).ID].Ports != 1000 {
		t.Errorf("not the newest: %+v", b.probes[probe(base, 7, 1).ID])
	}
	if q.done(); !q.idle() {
		t.Error("something is left")
	}
}

// Sessions of known scanners are found as such, and count to the same totals.
func TestScannersOfSessions(t *testing.T) { eachBackend(t, testScannersOfSessions) }

func testScannersOfSessions(t *testing.T, at place) {
	r := open(t, RecorderConfig{Path: at.path})
	var want []*deception.Session
	for i := range 40 {
		s := session(base, i)
		if i%4 == 1 {
			s.Scanner = "audit"
		}
		if i%4 == 3 {
			s.Scanner = "nessus"
		}
		want = append(want, s)
		if i%2 == 0 {
			r.Started(running(s))
			r.Ended(s)
		} else {
			commit(t, r, Batch{Node: "hq", Sessions: []deception.Session{*running(s), *s}})
		}
	}
	settled(t, r)
	reader := openReader(t, at.path)
	compare(t, want, all(t, reader, Filter{}))
	chosen := func(f func(s *deception.Session) bool) []*deception.Session {
		return slices.DeleteFunc(slices.Clone(want), func(s *deception.Session) bool { return !f(s) })
	}
	compare(t, chosen(func(s *deception.Session) bool { return s.Scanner == "audit" }), all(t, reader, Filter{Scanner: "audit"}))
	compare(t, chosen(func(s *deception.Session) bool { return s.Scanner == "" }), all(t, reader, Filter{Unknown: true, Segment: "office"}))
	if got := all(t, reader, Filter{Scanner: "nobody"}); len(got) != 0 {
		t.Errorf("sessions of a scanner that nobody knows: %v", got)
	}
	totals, err := reader.Totals(t.Context())
	if err != nil || len(totals) != 1 || totals[0].Ended != 40 || totals[0].SourceBytes != 39*40/2 || !totals[0].Last.Equal(want[39].Start) {
		t.Errorf("totals %+v, %v", totals, err)
	}
	if got := at.tool(t, `SELECT "decoynet.scanner", count(*) FROM sessions WHERE "decoynet.scanner" IS NOT NULL GROUP BY 1 ORDER BY 1`); got != "audit 10\nnessus 10" {
		t.Errorf("the view says %q", got)
	}
}
