package capture

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"decoynet/deception"
	"decoynet/internal/proxyheader"
	"decoynet/internal/strip"
)

// told is a feed and a recorder.
type told struct{ known, started, ended []deception.Session }

func (r *told) Frame(*deception.Session, int, int64, []byte) {}
func (r *told) Know(s *deception.Session)                    { r.known = append(r.known, *s) }
func (r *told) Done(deception.SessionKey)                    {}
func (r *told) Started(s *deception.Session)                 { r.started = append(r.started, *s) }
func (r *told) Ended(s *deception.Session)                   { r.ended = append(r.ended, *s) }

// A flow of our own gateways has its session: only those of others are recorded.
func TestSessions(t *testing.T) {
	gateway, server := netip.MustParseAddrPort("172.16.23.1:4000"), netip.MustParseAddrPort("172.16.23.2:80")
	own := deception.NewSessionID(time.Now())
	for name, id := range map[string]deception.SessionID{"own": own, "none": {}, "somebody's": deception.SessionID([]byte("0123456789abcdef"))} {
		var r told
		s := &sessions{
			node: "hq", feed: &r, recorder: &r,
			service: func(deception.Transport, netip.AddrPort) string { return "web" },
			fed:     func(k deception.SessionKey) bool { return false },
		}
		f := &strip.Flow{From: gateway, To: server, Start: 1_700_000_000_000_000_000, Header: proxyheader.Header{
			Transport: deception.TCP, Session: id, Segment: "office", Decoy: "d", Target: netip.MustParseAddrPort("10.1.0.2:80"),
			Source: netip.MustParseAddrPort("192.0.2.66:4711"), Destination: netip.MustParseAddrPort("192.0.2.10:80"),
		}}
		if !s.Begin(f) {
			t.Fatalf("%s: refused", name)
		}
		f.Bytes = [2]uint64{10, 20}
		s.End(f, f.Start+int64(time.Second), deception.EndClientReset)
		last := r.known[len(r.known)-1]
		want := deception.Session{
			ID: last.ID, Start: time.Unix(0, f.Start), End: time.Unix(0, f.Start).Add(time.Second), Segment: "office", Decoy: "d",
			Transport: deception.TCP, Path: deception.PathRelay, Source: f.Header.Source, Destination: f.Header.Destination,
			SourceBytes: 10, DestinationBytes: 20, Reason: deception.EndClientReset,
		}
		records := 1
		if name == "own" {
			want.ID, want.DestinationNAT, records = own, f.Header.Target, 0
		} else {
			want.Node, want.Service, want.SourceNAT, want.SourceMode, want.DestinationNAT = "hq", "web", gateway, deception.SourceMasquerade, server
		}
		if diff := cmp.Diff(want, last, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if len(r.started) != records || len(r.ended) != records || last.ID.IsZero() || name != "own" && !isOwn(last.ID) {
			t.Errorf("%s: recorded %d and %d times as %s", name, len(r.started), len(r.ended), last.ID)
		}
		s.fed = func(k deception.SessionKey) bool { return k == own.Key() }
		if s.Begin(f) != (name != "own") {
			t.Errorf("%s: fed by other means, and yet taken: %v", name, name == "own")
		}
	}
}
