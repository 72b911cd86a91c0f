package strip

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"decoynet/deception"
)

// rawSink keeps packets as they come.
type rawSink struct {
	sink
	raw [][]byte
}

func (s *rawSink) Packet(f *Flow, side int, at int64, ip []byte) {
	s.raw = append(s.raw, bytes.Clone(ip))
	s.sink.Packet(f, side, at, ip)
}

// Flows without a header come out as they are, whatever is odd about them; only
// super-segments are cut, and checksums that are missing made.
func TestPlain(t *testing.T) {
	client, service := bytes.Repeat([]byte("request"), 20), bytes.Repeat([]byte("answer"), 1000)
	c := newTalk(intruder, decoy, [2]uint32{1<<32 - 50, 7}, client, service)
	c.options = append([]byte{19, 18}, bytes.Repeat([]byte{7}, 18)...)
	c.handshake()
	c.say(Client, 0, len(client), 0)
	c.say(Client, 0, len(client), 0)                                                               // again
	c.send(Client, wireTCP{seq: c.isn[Client], ack: c.acked(Client), flags: FlagACK}, 0)           // a keepalive
	c.send(Client, wireTCP{seq: 5, flags: FlagACK | FlagURG, payload: []byte("out of window")}, 0) // evasion
	c.say(Server, 0, 1000, 0)
	untouched := len(c.packets)
	c.say(Server, 1000, len(service), 1400)
	super := &c.packets[untouched]
	super.Data[20+16] ^= 0xff
	super.Unsummed = true
	c.close(Client)
	c.close(Server)
	other := newTalk(intruder, netip.MustParseAddrPort("192.0.2.11:80"), [2]uint32{1, 2}, client, nil)
	other.handshake()
	var got rawSink
	s := NewPlain(&got, Limits{}, func(tr deception.Transport, to netip.AddrPort) bool { return to == decoy })
	feed(s, c.packets)
	feed(s, other.packets)
	for i := range untouched {
		if !bytes.Equal(got.raw[i], c.packets[i].Data) {
			t.Errorf("packet %d came out as\n%x, not\n%x", i, got.raw[i], c.packets[i].Data)
		}
	}
	if data, err := reassembled(got.packets, Server); got.err != nil || err != nil || !bytes.Equal(data, service) {
		t.Errorf("the service said %d bytes, %v, %v", len(data), err, got.err)
	}
	if st := s.Stats(); st.Flows != 1 || st.Stray != 3 || st.Gaps != 0 || !slices.Equal(got.ended, []deception.EndReason{deception.EndClientClosed}) {
		t.Errorf("counted %+v, ended %v", st, got.ended)
	}
}

func TestPlainDatagrams(t *testing.T) {
	var got rawSink
	s := NewPlain(&got, Limits{}, func(tr deception.Transport, to netip.AddrPort) bool { return tr == deception.UDP && to == decoy6 })
	question, answer := writeUDP(intruder6, decoy6, []byte("who is there")), writeUDP(decoy6, intruder6, []byte("nobody"))
	stray := writeUDP(decoy6, netip.MustParseAddrPort("[2001:db8::67]:1"), []byte("nobody"))
	unsummed := bytes.Clone(answer)
	unsummed[40+6] ^= 0xff
	for _, p := range []Packet{{Data: question}, {Data: answer}, {Data: stray}, {Data: unsummed, Unsummed: true}, {Data: unsummed}} {
		s.Take(&p)
	}
	if want := [][]byte{question, answer, answer}; got.err != nil || !slices.EqualFunc(got.raw, want, bytes.Equal) {
		t.Errorf("%v\n%x, want\n%x", got.err, got.raw, want)
	}
	if f := got.begun[0]; len(got.begun) != 1 || f.Bytes != [2]uint64{12, 12} {
		t.Errorf("flow %+v", f)
	}
	no := func(*Flow) bool { return false }
	s.Finish(deception.UDP, intruder6, decoy6, 1, deception.EndIdle, no)
	if len(got.ended) != 0 {
		t.Error("another flow's end ends it")
	}
	s.Finish(deception.UDP, intruder6, decoy6, 1, deception.EndIdle, func(f *Flow) bool { return f == got.begun[0] })
	s.Take(&Packet{Data: question})
	if len(got.ended) != 1 || len(got.begun) != 2 {
		t.Errorf("began %d, ended %v", len(got.begun), got.ended)
	}
}
