package capture

import (
	"net/netip"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
	"decoynet/internal/kernel/wire"
	"decoynet/internal/strip"
)

// running is a feed that notes which sessions run.
type running map[deception.SessionKey]bool

func (r running) Frame(*deception.Session, int, int64, []byte) {}
func (r running) Know(s *deception.Session)                    { r[s.ID.Key()] = s.Running() }
func (r running) Done(k deception.SessionKey)                  { delete(r, k) }

// TestFlowsThatNobodyRecords: connection tracking takes a first packet with another
// number for the same flow, and knows nothing of many that a scanner sends. What the
// mirror made of them does not stay for ever.
func TestFlowsThatNobodyRecords(t *testing.T) {
	const segmentName, packets = "office", 5000
	from, to := netip.MustParseAddrPort("192.0.2.66:4711"), netip.MustParseAddrPort("192.0.2.100:80")
	r := running{}
	s := &segment{mirror: NewMirror(MirrorConfig{Node: "gw", Feed: r}), name: segmentName}
	bound := func(deception.Transport, netip.AddrPort) bool { return true }
	s.stripper, s.table = strip.NewPlain(s, strip.Limits{}, bound), deception.NewTable(&deception.State{})
	header := frame.NewHeader(deception.TCP, frame.MAC{2}, frame.MAC{6}, frame.Tags{}, from, to)
	const ethernet = 14
	start := time.Now()
	for i := range packets {
		ip := header.TCP(nil, &frame.Segment{Flags: frame.SYN, Seq: uint32(i * 1000)})[ethernet:]
		s.takePacket(&wire.Captured{At: start.UnixNano() + int64(i), IP: ip})
	}
	if n := s.stripper.Stats().Flows; n != packets {
		t.Fatalf("%d flows, want %d", n, packets)
	}
	if len(r) != 1 {
		t.Errorf("%d sessions run, want the last one", len(r))
	}
	s.expire(start.Add(2 * time.Hour))
	if len(r) != 0 {
		t.Errorf("%d sessions run after two hours of silence", len(r))
	}
}
