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

// shown keeps the session that each packet was shown under.
type shown struct {
	told
	frames []deception.SessionID
}

func (s *shown) Frame(of *deception.Session, _ int, _ int64, _ []byte) {
	s.frames = append(s.frames, of.ID)
}

// mirrored is a segment with one decoy on the kernel path, and a function that has
// the intruder's packet arrive there.
func mirrored(transport deception.Transport, feed Feed) (m *Mirror, take func(at time.Time, flags uint8)) {
	intruder, decoy := netip.MustParseAddrPort("192.0.2.66:4711"), netip.MustParseAddrPort("192.0.2.100:80")
	ports := []deception.PortRange{deception.Port(transport, 80)}
	table := deception.NewTable(&deception.State{
		Node: "gw", Nodes: []deception.Node{{Name: "gw"}}, Segments: []deception.Segment{{Name: "office", Node: "gw"}},
		Services: []deception.Service{{Name: "web", Addr4: netip.MustParseAddr("10.1.0.2"), Ports: ports}},
		Decoys: []deception.Decoy{{
			Name: "d", Segment: "office", Node: "gw", Path: deception.PathKernel,
			Addresses: []deception.AddrRange{{From: decoy.Addr(), To: decoy.Addr()}}, Bind: []deception.Binding{{Ports: ports, Service: "web"}},
		}},
	})
	m = NewMirror(MirrorConfig{Node: "gw", Feed: feed})
	s := &segment{mirror: m, name: "office", table: table}
	s.stripper = strip.NewPlain(s, strip.Limits{IdleUDP: time.Hour}, s.bound)
	m.segments["office"] = s
	header := frame.NewHeader(transport, frame.MAC{}, frame.MAC{}, frame.Tags{}, intruder, decoy)
	return m, func(at time.Time, flags uint8) {
		b := header.UDP(nil, 0, []byte("question"))
		if transport == deception.TCP {
			b = header.TCP(nil, &frame.Segment{Flags: flags, Seq: uint32(at.UnixNano())})
		}
		s.takePacket(&wire.Captured{At: at.UnixNano(), IP: b[14:]})
	}
}

// A port that is used again at once has the end of the flow before told while its
// last packets wait in the ring: they are shown all the same, and as that flow's.
func TestEndBeforeItsPackets(t *testing.T) {
	feed := &shown{}
	m, take := mirrored(deception.TCP, feed)
	begin := time.Now().Add(-time.Second)
	take(begin, frame.SYN)
	first := feed.known[0]
	first.End, first.Reason = begin.Add(time.Millisecond), deception.EndClientReset
	m.Know(&first)
	take(begin.Add(time.Millisecond), frame.RST)
	take(begin.Add(2*time.Millisecond), frame.SYN)
	if len(feed.frames) != 3 || feed.frames[1] != first.ID || feed.frames[2] == first.ID {
		t.Errorf("packets of %s are shown as of %v", first.ID, feed.frames)
	}
	if st := m.Stats()[0]; st.Stray != 0 || st.Flows != 2 || st.Active != 1 {
		t.Errorf("stats %+v", st)
	}
}

// What comes after the end was told is another flow's, at once and however long
// later.
func TestPacketsAfterTheEnd(t *testing.T) {
	for _, pause := range []time.Duration{time.Millisecond, time.Hour} {
		feed := &shown{}
		m, take := mirrored(deception.UDP, feed)
		take(time.Now(), 0)
		first := feed.known[0]
		first.End, first.Reason = time.Now(), deception.EndIdle
		m.Know(&first)
		m.segments["office"].expire(time.Now())
		if st := m.Stats()[0]; st.Active != 1 {
			t.Errorf("its packets may still wait, and it is forgotten: %+v", st)
		}
		if pause > ringDelay {
			m.segments["office"].expire(time.Now().Add(2 * ringDelay))
			if st := m.Stats()[0]; st.Active != 0 {
				t.Errorf("it is not forgotten: %+v", st)
			}
		}
		take(time.Now().Add(pause), 0)
		if len(feed.frames) != 2 || feed.frames[1] == first.ID {
			t.Errorf("after %s, a packet is shown as of the session that has ended", pause)
		}
	}
}

// running is a feed that notes which sessions run.
type running map[deception.SessionKey]bool

func (r running) Frame(*deception.Session, int, int64, []byte) {}
func (r running) Know(s *deception.Session)                    { r[s.ID.Key()] = s.Running() }
func (r running) Done(k deception.SessionKey)                  { delete(r, k) }

// TestFlowsThatNobodyRecords: connection tracking takes a first packet with another
// number for the same flow, and knows nothing of many that a scanner sends. What the
// mirror made of them does not stay for ever.
func TestFlowsThatNobodyRecords(t *testing.T) {
	const packets = 5000
	r := running{}
	m, take := mirrored(deception.TCP, r)
	start := time.Now()
	for i := range packets {
		take(start.Add(time.Duration(i)*time.Microsecond), frame.SYN)
	}
	if n := m.Stats()[0].Flows; n != packets {
		t.Fatalf("%d flows, want %d", n, packets)
	}
	if len(r) != 1 {
		t.Errorf("%d sessions run, want the last one", len(r))
	}
	m.segments["office"].expire(start.Add(2 * time.Hour))
	if len(r) != 0 {
		t.Errorf("%d sessions run after two hours of silence", len(r))
	}
}
