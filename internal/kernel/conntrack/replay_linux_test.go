package conntrack_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"decoynet/deception"
	"decoynet/internal/kernel/conntrack"
)

// recorded reads the datagrams of a recording, made with
// go test -run TestEveryEnd -record.
func recorded(t *testing.T, name string) [][]byte {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", name+".hex"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out [][]byte
	for lines := bufio.NewScanner(f); lines.Scan(); {
		b, err := hex.DecodeString(lines.Text())
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b)
	}
	return out
}

func parse(t *testing.T, datagrams [][]byte) []conntrack.Event {
	t.Helper()
	var out []conntrack.Event
	for _, d := range datagrams {
		if bad := conntrack.Messages(d, time.Unix(1, 0), func(e conntrack.Event) { out = append(out, e) }); bad != 0 {
			t.Errorf("%d messages of %x are malformed", bad, d)
		}
	}
	return out
}

func TestRecordedEnds(t *testing.T) {
	for _, name := range []string{"marked", "plain"} {
		t.Run(name, func(t *testing.T) {
			events := parse(t, recorded(t, name))
			all := newEnds()
			for _, e := range events {
				all.observe(e)
			}
			for _, s := range scenarios {
				all.check(t, s, name == "marked")
			}
			if n := all.tracker.Live(); n != 0 {
				t.Errorf("%d flows never ended", n)
			}
			if name == "plain" {
				return
			}
			// With the mark the last event is enough.
			last := newEnds()
			for _, e := range events {
				if e.Type == conntrack.EventDestroy {
					last.observe(e)
				}
			}
			for _, s := range scenarios {
				last.check(t, s, true)
			}
		})
	}
}

// Every event of a real recording that breaks off anywhere is refused or read
// as far as it goes, and never read beyond.
func TestTruncatedMessages(t *testing.T) {
	for _, d := range recorded(t, "plain") {
		for n := range d {
			short := slices.Clone(d[:n:n])
			conntrack.Messages(short, time.Time{}, func(conntrack.Event) {
				t.Errorf("%d of %d bytes made an event", n, len(d))
			})
			if n < 20 {
				continue
			}
			// The same with a header that claims no more than there is.
			short[0], short[1], short[2], short[3] = byte(n), byte(n>>8), 0, 0
			conntrack.Messages(short, time.Time{}, func(conntrack.Event) {})
		}
	}
}

func FuzzMessages(f *testing.F) {
	for _, name := range []string{"marked", "plain"} {
		b, err := os.ReadFile(filepath.Join("testdata", name+".hex"))
		if err != nil {
			f.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			d, err := hex.DecodeString(string(bytes.TrimSpace(line)))
			if err != nil {
				f.Fatal(err)
			}
			f.Add(d)
		}
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		tracker := conntrack.NewTracker()
		conntrack.Messages(b, time.Unix(1, 0), func(e conntrack.Event) { tracker.Observe(nil, e) })
	})
}

// flow is a TCP flow's event of the given kind, t seconds after the epoch.
func flow(kind conntrack.EventType, id uint32, sec int64, edit ...func(*conntrack.Event)) conntrack.Event {
	src := netip.MustParseAddrPort("[2001:db8::9]:40000")
	e := conntrack.Event{
		Type: kind, At: time.Unix(sec, 0), ID: id, Transport: deception.TCP,
		Orig:   conntrack.Tuple{Src: src, Dst: netip.MustParseAddrPort("[2001:db8::100]:80")},
		Reply:  conntrack.Tuple{Src: netip.MustParseAddrPort("[fd01::2]:8080"), Dst: src},
		Status: conntrack.StatusConfirmed | conntrack.StatusDstNAT | conntrack.StatusSeenReply | conntrack.StatusAssured,
		HasTCP: true, TCPState: conntrack.TCPEstablished,
	}
	for _, f := range edit {
		f(&e)
	}
	return e
}

// told writes facts down shortly.
func told(facts []conntrack.Fact) []string {
	var out []string
	for _, f := range facts {
		if f.Started() {
			out = append(out, "start "+f.Flow.Start.UTC().Format("05"))
			continue
		}
		out = append(out, "end "+f.Flow.End.UTC().Format("05")+" "+f.Flow.Reason.String())
	}
	return out
}

func TestTrackerSequences(t *testing.T) {
	mark := func(m uint32) func(*conntrack.Event) { return func(e *conntrack.Event) { e.Mark = m } }
	state := func(s conntrack.TCPState) func(*conntrack.Event) {
		return func(e *conntrack.Event) { e.TCPState = s }
	}
	stop := func(sec int64) func(*conntrack.Event) {
		return func(e *conntrack.Event) { e.Stop = time.Unix(sec, 0) }
	}
	notRedirected := func(e *conntrack.Event) { e.Status &^= conntrack.StatusDstNAT }
	const n, u, d = conntrack.EventNew, conntrack.EventUpdate, conntrack.EventDestroy
	for _, tc := range []struct {
		name   string
		events []conntrack.Event
		want   []string
	}{
		{
			"the time of the kernel's patience is taken off",
			[]conntrack.Event{flow(n, 1, 1), flow(d, 1, 60, mark(conntrack.MarkClientClosed), state(conntrack.TCPTimeWait), stop(9))},
			[]string{"start 01", "end 08 client_closed"},
		},
		{
			"the first sign decides, whatever the last state is",
			[]conntrack.Event{
				flow(n, 1, 1), flow(u, 1, 2, state(conntrack.TCPFinWait), func(e *conntrack.Event) { e.ReplyFlags = conntrack.TCPFlagCloseInit }),
				flow(u, 1, 3, state(conntrack.TCPClose)), flow(d, 1, 4, state(conntrack.TCPClose)),
			},
			[]string{"start 01", "end 04 service_closed"},
		},
		{"a flow that began before anybody listened", []conntrack.Event{flow(u, 1, 3), flow(d, 1, 5)}, []string{"start 03", "end 05 idle"}},
		{"an end without a beginning", []conntrack.Event{flow(d, 1, 5, mark(conntrack.MarkServiceReset))}, []string{"start 05", "end 05 service_reset"}},
		{
			"the next flow of a tuple whose end was lost",
			[]conntrack.Event{flow(n, 1, 1), flow(n, 1, 7), flow(d, 1, 8, mark(conntrack.MarkClientReset))},
			[]string{"start 01", "end 07 lost", "start 07", "end 08 client_reset"},
		},
		{
			"two flows of a tuple that overlap in the books",
			[]conntrack.Event{flow(n, 1, 1), flow(n, 2, 2), flow(d, 1, 3), flow(d, 2, 4)},
			[]string{"start 01", "start 02", "end 03 idle", "end 04 idle"},
		},
		{"connections that were not redirected", []conntrack.Event{flow(n, 1, 1, notRedirected), flow(d, 1, 2, notRedirected)}, nil},
		{
			"a service that answers with a reset refuses",
			[]conntrack.Event{flow(n, 1, 1), flow(d, 1, 2, mark(conntrack.MarkServiceReset), func(e *conntrack.Event) { e.Status &^= conntrack.StatusAssured })},
			[]string{"start 01", "end 02 service_reset"}, // NEW said that the handshake was complete
		},
		{
			"a reset after the answer and before the handshake's end",
			[]conntrack.Event{flow(d, 1, 2, mark(conntrack.MarkServiceReset), func(e *conntrack.Event) { e.Status &^= conntrack.StatusAssured })},
			[]string{"start 02", "end 02 refused"},
		},
		{
			"a reset by the client before any answer",
			[]conntrack.Event{flow(d, 1, 2, state(conntrack.TCPClose), func(e *conntrack.Event) {
				e.Status &^= conntrack.StatusAssured | conntrack.StatusSeenReply
				e.OrigCount.Packets = 2
			})},
			[]string{"start 02", "end 02 client_reset"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tracker := conntrack.NewTracker()
			var facts []conntrack.Fact
			for _, e := range tc.events {
				facts = tracker.Observe(facts, e)
			}
			if d := cmp.Diff(tc.want, told(facts)); d != "" {
				t.Error(d)
			}
			if tracker.Live() != 0 {
				t.Errorf("%d flows live on", tracker.Live())
			}
		})
	}
}

// A dump may be ahead of the events: the NEW event of a flow that it brought is
// no second flow, the next one is.
func TestTrackerSyncAheadOfEvents(t *testing.T) {
	tracker := conntrack.NewTracker()
	var got []string
	got = append(got, told(tracker.Sync(nil, []conntrack.Event{flow(conntrack.EventUpdate, 1, 1)}, time.Unix(1, 0)))...)
	for _, kind := range []conntrack.EventType{conntrack.EventNew, conntrack.EventDestroy, conntrack.EventNew, conntrack.EventNew} {
		got = append(got, told(tracker.Observe(nil, flow(kind, 1, 2)))...)
	}
	want := []string{"start 01", "end 02 idle", "start 02", "end 02 lost", "start 02"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestTrackerSync(t *testing.T) {
	tracker := conntrack.NewTracker()
	sync := func(sec int64, dump ...conntrack.Event) []string {
		return told(tracker.Sync(nil, dump, time.Unix(sec, 0)))
	}
	count := func(e *conntrack.Event) { e.OrigCount = conntrack.Counters{Packets: 3, Bytes: 300} }
	for i, step := range []struct{ got, want []string }{
		{sync(1, flow(conntrack.EventUpdate, 1, 1, count), flow(conntrack.EventUpdate, 2, 1)), []string{"start 01", "start 01"}},
		{sync(2, flow(conntrack.EventUpdate, 1, 2), flow(conntrack.EventUpdate, 2, 2)), nil},
		{sync(3, flow(conntrack.EventUpdate, 2, 3)), nil}, // 1 may be about to end by itself
		{sync(4, flow(conntrack.EventUpdate, 2, 4)), []string{"end 04 lost"}},
		{sync(5), nil},
		{told(tracker.Observe(nil, flow(conntrack.EventUpdate, 2, 6))), nil}, // it lives after all
		{sync(7), nil},
		{told(tracker.Observe(nil, flow(conntrack.EventDestroy, 2, 8))), []string{"end 08 idle"}},
		{sync(9), nil},
	} {
		if d := cmp.Diff(step.want, step.got, cmpopts.EquateEmpty()); d != "" {
			t.Errorf("step %d: %s", i, d)
		}
	}
}

func TestPayload(t *testing.T) {
	for _, tc := range []struct {
		flow       conntrack.Flow
		want, back uint64
	}{
		{conntrack.Flow{Transport: deception.UDP, Source: netip.MustParseAddrPort("192.0.2.9:1"), FromSource: conntrack.Counters{Packets: 2, Bytes: 76}}, 20, 0},
		{conntrack.Flow{Transport: deception.UDP, Source: netip.MustParseAddrPort("[::1]:1"), FromDestination: conntrack.Counters{Packets: 1, Bytes: 148}}, 0, 100},
		{conntrack.Flow{Transport: deception.TCP, Source: netip.MustParseAddrPort("192.0.2.9:1"), FromSource: conntrack.Counters{Packets: 3, Bytes: 120}}, 0, 0},
		{conntrack.Flow{Transport: deception.TCP, Source: netip.MustParseAddrPort("192.0.2.9:1"), FromSource: conntrack.Counters{Packets: 1, Bytes: 1052}}, 1000, 0},
	} {
		if a, b := tc.flow.Payload(); a != tc.want || b != tc.back {
			t.Errorf("%+v: payload %d and %d, want %d and %d", tc.flow, a, b, tc.want, tc.back)
		}
	}
}
