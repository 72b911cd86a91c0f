package feed

import (
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
)

// TestReadyPackets: packets of a mirrored flow are shown as they are, with the
// session in their MAC addresses and the tag of their network.
func TestReadyPackets(t *testing.T) {
	sensor, out := newSensor(t, httpRules), newPcapFile(t)
	f := New(Config{Lanes: 1})
	f.Add("file", out)
	var sessions []*deception.Session
	for _, pair := range [][2]string{{"192.0.2.7:40001", "198.51.100.4:80"}, {"[2001:db8::7]:40001", "[2001:db8:1::4]:80"}} {
		s := session(deception.TCP, pair[0], pair[1])
		sessions = append(sessions, s)
		f.Know(s)
		sides := [2]frame.Header{
			frame.NewHeader(deception.TCP, frame.MAC{}, frame.MAC{}, frame.Tags{}, s.Source, s.Destination),
			frame.NewHeader(deception.TCP, frame.MAC{}, frame.MAC{}, frame.Tags{}, s.Destination, s.Source),
		}
		const ethernet = 14
		at := s.Start
		for _, p := range []struct {
			side int
			frame.Segment
		}{
			{Client, frame.Segment{Flags: frame.SYN, Seq: 99}},
			{Server, frame.Segment{Flags: frame.SYN | frame.ACK, Seq: 999, Ack: 100}},
			{Client, frame.Segment{Flags: frame.ACK, Seq: 100, Ack: 1000}},
			{Client, frame.Segment{Flags: frame.ACK, Seq: 100, Ack: 1000, Data: []byte(request)}},
			{Server, frame.Segment{Flags: frame.ACK, Seq: 1000, Ack: 100 + uint32(len(request)), Data: []byte(response)}},
			{Client, frame.Segment{Flags: frame.ACK | frame.FIN, Seq: 100 + uint32(len(request)), Ack: 1000 + uint32(len(response))}},
			{Server, frame.Segment{Flags: frame.ACK | frame.FIN, Seq: 1000 + uint32(len(response)), Ack: 101 + uint32(len(request))}},
			{Client, frame.Segment{Flags: frame.ACK, Seq: 101 + uint32(len(request)), Ack: 1001 + uint32(len(response))}},
		} {
			at = at.Add(time.Millisecond)
			f.Frame(s, p.side, at.UnixNano(), sides[p.side].TCP(nil, &p.Segment)[ethernet:])
		}
	}
	f.Frame(sessions[0], Client, 0, []byte("this is no packet, though it is long enough"))
	if st := f.Stats(); st.Bad != 1 || st.Flows != 2 {
		t.Errorf("%+v", st)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	noComplaint(t, out.file.Name())
	noEvents(t, sensor.read(t, out.file.Name()))
	for _, s := range sessions {
		if _, partial, ok := f.Find(s.ID.Key()); partial || !ok {
			t.Errorf("the flow from %s is known %v, partial %v", s.Source, ok, partial)
		}
		if a, b := sensor.alerts(t, 1, s.ID), sensor.alerts(t, 2, s.ID); a != 1 || b != 1 {
			t.Errorf("%d and %d alerts of the flow from %s, want 1 and 1", a, b, s.Source)
		}
	}
	if n := len(tshark(t, out.file.Name(), "vlan.id == 1", "frame.number")); n != 16 {
		t.Errorf("%d frames have the tag, want 16", n)
	}
}

func TestMirroredFlowsAreForgotten(t *testing.T) {
	var r rawFlows
	at := time.Now().UnixNano()
	key := func(i int) deception.SessionKey { return deception.SessionKey{Hi: 1, Lo: uint64(i)} }
	for i := range 5 * rawFlowsMost {
		if r.find(key(i), at) != nil {
			t.Fatal("a flow is known before it was seen")
		}
		r.young[key(i)] = &Flow{}
		if r.find(key(0), at) == nil {
			t.Fatalf("a flow that goes on is forgotten after %d others", i)
		}
	}
	if n := len(r.young) + len(r.old); n > 2*rawFlowsMost {
		t.Errorf("%d flows are known", n)
	}
	for range 3 {
		at += int64(rawFlowsAge) + 1
		r.find(key(-1), at)
	}
	if r.find(key(0), at) != nil {
		t.Error("a flow is known after half an hour of silence")
	}
}
