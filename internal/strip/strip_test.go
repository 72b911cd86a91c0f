package strip

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"decoynet/deception"
	"decoynet/internal/proxyheader"
)

// talk writes the packets of a connection between gateways.
type talk struct {
	from, to [2]netip.AddrPort // by side: source, destination
	isn      [2]uint32
	stream   [2][]byte // what each side says, the header included
	packets  []Packet
	known    [2][]bool // which bytes were captured, by side
	fin      [2]bool
	options  []byte
}

func newTalk(gateway, server netip.AddrPort, isn [2]uint32, client, service []byte) *talk {
	return &talk{
		from: [2]netip.AddrPort{gateway, server}, to: [2]netip.AddrPort{server, gateway}, isn: isn,
		stream: [2][]byte{client, service}, known: [2][]bool{make([]bool, len(client)), make([]bool, len(service))},
	}
}

// acked is what a side can acknowledge by what was captured of the other.
func (c *talk) acked(side int) uint32 {
	n := slices.Index(c.known[1-side], false)
	if n < 0 {
		n = len(c.known[1-side])
		if c.fin[1-side] {
			n++
		}
	}
	return c.isn[1-side] + 1 + uint32(n)
}

func (c *talk) send(side int, w wireTCP, super int) {
	w.source, w.destination = c.from[side], c.to[side]
	if w.options == nil {
		w.options = c.options
	}
	c.packets = append(c.packets, Packet{At: int64(len(c.packets)), Data: w.bytes(), Size: super})
}

func (c *talk) handshake() {
	c.send(Client, wireTCP{seq: c.isn[Client], flags: FlagSYN, options: []byte{2, 4, 5, 0xb4}}, 0)
	c.send(Server, wireTCP{seq: c.isn[Server], ack: c.isn[Client] + 1, flags: FlagSYN | FlagACK, options: []byte{2, 4, 5, 0xb4}}, 0)
	c.send(Client, wireTCP{seq: c.isn[Client] + 1, ack: c.isn[Server] + 1, flags: FlagACK}, 0)
}

// say sends a part of a side's stream.
func (c *talk) say(side, from, to, super int) {
	w := wireTCP{seq: c.isn[side] + 1 + uint32(from), ack: c.acked(side), flags: FlagACK | FlagPSH, payload: c.stream[side][from:to]}
	c.send(side, w, super)
	for i := from; i < to; i++ {
		c.known[side][i] = true
	}
}

func (c *talk) ack(side int) {
	seq := c.isn[side] + 1 + uint32(len(c.stream[side]))
	if c.fin[side] {
		seq++
	}
	c.send(side, wireTCP{seq: seq, ack: c.acked(side), flags: FlagACK}, 0)
}

func (c *talk) close(side int) {
	c.send(side, wireTCP{seq: c.isn[side] + 1 + uint32(len(c.stream[side])), ack: c.acked(side), flags: FlagACK | FlagFIN}, 0)
	c.fin[side] = true
}

// reassembled is a side's stream by what the sink was given.
func reassembled(packets []taken, side int) ([]byte, error) {
	start := slices.IndexFunc(packets, func(p taken) bool { return p.side == side && p.flags&FlagSYN != 0 })
	if start < 0 {
		return nil, fmt.Errorf("side %d has no SYN", side)
	}
	first := packets[start].seq + 1
	out := map[uint32]byte{}
	var end uint32
	for _, p := range packets {
		if p.side != side || p.flags&FlagSYN != 0 {
			continue
		}
		for i, b := range p.payload {
			at := p.seq + uint32(i) - first
			if old, ok := out[at]; ok && old != b {
				return nil, fmt.Errorf("side %d says two things at %d", side, at)
			}
			out[at] = b
		}
		if p.flags&FlagFIN != 0 {
			end = p.seq + uint32(len(p.payload)) - first + 1
		}
	}
	b := make([]byte, len(out))
	for i := range b {
		v, ok := out[uint32(i)]
		if !ok {
			return nil, fmt.Errorf("side %d has a hole at %d of %d bytes", side, i, len(out))
		}
		b[i] = v
	}
	if end != 0 && int(end) != len(b)+1 {
		return nil, fmt.Errorf("side %d has its FIN at %d, behind %d bytes", side, end, len(b))
	}
	return b, nil
}

func (s *sink) check(t interface{ Fatalf(string, ...any) }, source, destination netip.AddrPort, client, service []byte) {
	if s.err != nil {
		t.Fatalf("%v", s.err)
	}
	for side, want := range [2][]byte{client, service} {
		got, err := reassembled(s.packets, side)
		if err != nil {
			t.Fatalf("%v", err)
		}
		if !bytes.Equal(got, want) {
			t.Fatalf("side %d said %d bytes, %.60q, want %d, %.60q", side, len(got), got, len(want), want)
		}
	}
	for _, p := range s.packets {
		if p.side == Client && (p.source != source || p.destination != destination) || p.side == Server && (p.source != destination || p.destination != source) {
			t.Fatalf("a packet of side %d from %s to %s", p.side, p.source, p.destination)
		}
	}
	s.checkNumbers(t)
}

// checkNumbers: nobody acknowledges what was not said.
func (s *sink) checkNumbers(t interface{ Fatalf(string, ...any) }) {
	var end [2]uint32
	var known [2]bool
	for i, p := range s.packets {
		if p.flags&FlagACK != 0 && known[1-p.side] && int32(p.ack-end[1-p.side]) > 0 {
			t.Fatalf("packet %d of side %d acknowledges %d bytes beyond what was said", i, p.side, p.ack-end[1-p.side])
		}
		e := p.seq + uint32(len(p.payload))
		if p.flags&(FlagSYN|FlagFIN) != 0 {
			e++
		}
		if !known[p.side] || int32(e-end[p.side]) > 0 {
			end[p.side], known[p.side] = e, true
		}
	}
}

func feed(s *Stripper, packets []Packet) {
	for i := range packets {
		s.Take(&packets[i])
	}
}

func TestOneFlow(t *testing.T) {
	request, answer := []byte("GET / HTTP/1.1\r\n\r\n"), []byte("HTTP/1.1 200 OK\r\n\r\n")
	header := headerOf(intruder, decoy)
	c := newTalk(gateway4, server4, [2]uint32{1<<32 - 20, 77}, slices.Concat(header, request), answer)
	c.handshake()
	c.say(Client, 0, len(header), 0)
	c.ack(Server)
	c.say(Client, len(header), len(header)+len(request), 0)
	c.say(Server, 0, len(answer), 0)
	c.ack(Client)
	c.close(Server)
	c.close(Client)
	c.ack(Server)
	var got sink
	s := New(&got, Limits{})
	feed(s, c.packets)
	got.check(t, intruder, decoy, request, answer)
	if len(got.begun) != 1 || !slices.Equal(got.ended, []deception.EndReason{deception.EndServiceClosed}) {
		t.Errorf("began %d, ended %v", len(got.begun), got.ended)
	}
	if f := got.begun[0]; f.Bytes != [2]uint64{uint64(len(request)), uint64(len(answer))} || f.From != gateway4 || f.To != server4 {
		t.Errorf("the flow is %+v", f)
	}
	if st := s.Stats(); st.Gaps != 0 || st.Held != 0 || st.Flows != 1 || st.Emitted != uint64(len(got.packets)) {
		t.Errorf("counted %+v", st)
	}
	// The acknowledgement of the header alone and the segment of the header alone go.
	if want := len(c.packets) - 2; len(got.packets) != want {
		t.Errorf("%d packets, want %d", len(got.packets), want)
	}
}

// Whatever is said, however it is cut, repeated and mixed up, the packets that
// come out say it without the header.
func TestAnyStreams(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		source, destination := intruder, decoy
		if rapid.Bool().Draw(t, "intruder of IPv6") {
			source, destination = intruder6, decoy6
		}
		gateway, server := gateway4, server4
		if rapid.Bool().Draw(t, "gateway of IPv6") {
			gateway, server = gateway6, server6
		}
		header := drawHeader(t, source, destination)
		said := [2][]byte{drawBytes(t, "client"), drawBytes(t, "service")}
		c := newTalk(gateway, server, [2]uint32{rapid.Uint32().Draw(t, "isn"), rapid.Uint32().Draw(t, "service's isn")}, slices.Concat(header, said[0]), said[1])
		if rapid.Bool().Draw(t, "timestamps") {
			c.options = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}
		}
		c.handshake()
		for _, p := range drawPieces(t, c, len(header)) {
			c.say(p.side, p.from, p.to, p.super)
			if rapid.Bool().Draw(t, "acknowledged") {
				c.ack(1 - p.side)
			}
		}
		ender := rapid.IntRange(0, 1).Draw(t, "who ends")
		c.close(ender)
		c.close(1 - ender)
		c.ack(ender)
		// An answer may be captured before what it answers.
		for i := 3; i < len(c.packets)-1; i++ {
			if rapid.IntRange(0, 3).Draw(t, "swapped") == 0 {
				c.packets[i], c.packets[i+1] = c.packets[i+1], c.packets[i]
				i++
			}
		}
		var got sink
		s := New(&got, Limits{})
		feed(s, c.packets)
		got.check(t, source, destination, said[0], said[1])
		st := s.Stats()
		if st.Gaps != 0 || st.Held != 0 || st.Flows != 1 || len(got.ended) != 1 {
			t.Fatalf("counted %+v, ended %v", st, got.ended)
		}
		if f := got.begun[0]; f.Bytes != [2]uint64{uint64(len(said[0])), uint64(len(said[1]))} {
			t.Fatalf("bytes %v, said %d and %d", f.Bytes, len(said[0]), len(said[1]))
		}
	})
}

func drawHeader(t *rapid.T, source, destination netip.AddrPort) []byte {
	if rapid.Bool().Draw(t, "text") {
		kind := "TCP4"
		if source.Addr().Is6() {
			kind = "TCP6"
		}
		return fmt.Appendf(nil, "PROXY %s %s %s %d %d\r\n", kind, source.Addr(), destination.Addr(), source.Port(), destination.Port())
	}
	h := proxyheader.Header{
		Transport: deception.TCP, Source: source, Destination: destination,
		Node: rapid.StringMatching(`[a-z]{0,200}`).Draw(t, "node"), Session: deception.NewSessionID(time.Now()),
	}
	b, err := h.Append(nil)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return b
}

func drawBytes(t *rapid.T, name string) []byte {
	size := rapid.OneOf(rapid.IntRange(0, 50), rapid.IntRange(0, 80_000)).Draw(t, name+" bytes")
	seed := rapid.Byte().Draw(t, name+" begins with")
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i*31) ^ byte(i>>8) ^ seed
	}
	return b
}

type piece struct{ side, from, to, super, order int }

// drawPieces cuts both streams, repeats some pieces, and mixes up neighbours.
func drawPieces(t *rapid.T, c *talk, header int) []piece {
	var out []piece
	for side := range 2 {
		at, order := 0, 0
		if side == Server {
			order = rapid.IntRange(0, 30).Draw(t, "service waits")
		}
		for at < len(c.stream[side]) {
			most := 60_000
			if side == Client && at < header {
				most = rapid.SampledFrom([]int{1, 20, 300, 60_000}).Draw(t, "pieces of the header")
			}
			p := piece{side: side, from: at, to: min(len(c.stream[side]), at+rapid.IntRange(1, most).Draw(t, "piece")), order: order * 10}
			if p.to-p.from > 1460 {
				p.super = rapid.SampledFrom([]int{0, 1448, 536}).Draw(t, "super-segment of")
			}
			at = p.to
			p.order += rapid.IntRange(0, 25).Draw(t, "delay")
			out = append(out, p)
			if rapid.IntRange(0, 4).Draw(t, "again") == 0 {
				p.from = rapid.IntRange(0, p.from).Draw(t, "again from")
				p.from = max(p.from, p.to-65_000)
				p.order += rapid.IntRange(0, 60).Draw(t, "later")
				out = append(out, p)
			}
			order++
		}
	}
	slices.SortStableFunc(out, func(a, b piece) int { return cmp.Compare(a.order, b.order) })
	return out
}

func TestPassedOver(t *testing.T) {
	header := headerOf(intruder, decoy)
	lies := func(change func(b []byte)) []byte {
		b := bytes.Clone(header)
		change(b)
		return b
	}
	local, _ := (&proxyheader.Header{Local: true}).Append(nil)
	for name, c := range map[string]struct {
		say  []byte
		want func(Stats) uint64
	}{
		"another protocol":      {[]byte("SSH-2.0-x\r\n"), func(s Stats) uint64 { return s.NoHeader }},
		"nearly a text":         {[]byte("POST / HTTP/1.1\r\n"), func(s Stats) uint64 { return s.NoHeader }},
		"the sender's own":      {local, func(s Stats) uint64 { return s.Local }},
		"unknown":               {[]byte("PROXY UNKNOWN\r\n"), func(s Stats) uint64 { return s.Local }},
		"another version":       {lies(func(b []byte) { b[12] = 0x31 }), func(s Stats) uint64 { return s.BadHeader }},
		"unix sockets":          {lies(func(b []byte) { b[13] = 0x31 }), func(s Stats) uint64 { return s.BadHeader }},
		"unspecified":           {lies(func(b []byte) { b[13] = 0 }), func(s Stats) uint64 { return s.BadHeader }},
		"datagrams":             {lies(func(b []byte) { b[13] = 0x12 }), func(s Stats) uint64 { return s.BadHeader }},
		"too short for its own": {lies(func(b []byte) { b[15] = 4 }), func(s Stats) uint64 { return s.BadHeader }},
		"too long":              {lies(func(b []byte) { b[14] = 0xff }), func(s Stats) uint64 { return s.BadHeader }},
		"from a group":          {lies(func(b []byte) { b[16] = 224 }), func(s Stats) uint64 { return s.BadHeader }},
		"to nobody":             {lies(func(b []byte) { clear(b[20:24]) }), func(s Stats) uint64 { return s.BadHeader }},
		"text that lies":        {[]byte("PROXY TCP4 1 2 3\r\n"), func(s Stats) uint64 { return s.BadHeader }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newTalk(gateway4, server4, [2]uint32{1, 2}, append(bytes.Clone(c.say), "data"...), nil)
			w.handshake()
			w.say(Client, 0, len(w.stream[Client]), 0)
			w.ack(Server)
			var got sink
			s := New(&got, Limits{})
			feed(s, w.packets)
			if st := s.Stats(); c.want(st) != 1 || st.Flows != 0 || st.Waiting != 0 || st.Held != 0 || st.Stray != 1 || len(got.packets) != 0 {
				t.Errorf("counted %+v, emitted %d packets", st, len(got.packets))
			}
		})
	}
}

// What is missing is counted: of the header it makes a flow useless, of the data
// it does not.
func TestHoles(t *testing.T) {
	header := headerOf(intruder, decoy)
	client := slices.Concat(header, bytes.Repeat([]byte("x"), 3000))
	lost := newTalk(gateway4, server4, [2]uint32{1, 2}, client, nil)
	lost.handshake()
	lost.say(Client, 0, 10, 0)
	lost.packets = lost.packets[:len(lost.packets)-1] // not captured
	lost.say(Client, 10, 100, 0)
	lost.ack(Server)
	var got sink
	s := New(&got, Limits{})
	feed(s, lost.packets)
	s.Expire(int64(time.Minute))
	if st := s.Stats(); st.Holes != 1 || st.Waiting != 0 || len(got.packets) != 0 {
		t.Errorf("without a part of the header: %+v", st)
	}

	c := newTalk(gateway4, server4, [2]uint32{1, 2}, client, nil)
	c.handshake()
	c.say(Client, 0, len(header), 0)
	c.say(Client, len(header), len(header)+1000, 0)
	c.packets = c.packets[:len(c.packets)-1]
	c.say(Client, len(header)+1000, len(client), 0)
	c.ack(Server)
	got = sink{}
	s = New(&got, Limits{})
	feed(s, c.packets)
	s.Expire(int64(time.Second))
	if st := s.Stats(); st.Gaps != 1 || st.GapBytes != 1000 || st.Flows != 1 {
		t.Errorf("without a part of the data: %+v", st)
	}
}

// One side may end, and acknowledge what the other goes on to say: its FIN's number
// is no byte of its stream.
func TestHalfClosed(t *testing.T) {
	for _, first := range []int{Client, Server} {
		header := headerOf(intruder, decoy)
		c := newTalk(gateway4, server4, [2]uint32{0xfffffff0, 900}, append(header, "askaskask"...), []byte("answersanswers"))
		c.handshake()
		c.say(Client, 0, len(header), 0)
		other := 1 - first
		begin := [2]int{Client: len(header)}
		c.say(first, begin[first], len(c.stream[first]), 0)
		c.close(first)
		half := begin[other] + 4
		c.say(other, begin[other], half, 0)
		c.ack(first)
		c.say(other, half, len(c.stream[other]), 0)
		c.ack(first)
		c.close(other)
		c.ack(first)
		var s sink
		st := New(&s, Limits{})
		feed(st, c.packets)
		s.check(t, intruder, decoy, []byte("askaskask"), []byte("answersanswers"))
		if stats := st.Stats(); stats.Gaps != 0 || stats.GapBytes != 0 {
			t.Errorf("side %d first: counted %+v", first, stats)
		}
		if f := s.begun[0]; f.Bytes != [2]uint64{9, 14} {
			t.Errorf("side %d first: %d bytes", first, f.Bytes)
		}
	}
}

func TestLimits(t *testing.T) {
	var got sink
	s := New(&got, Limits{Waiting: 10, Held: 2000})
	for i := range 1000 {
		c := newTalk(netip.AddrPortFrom(gateway4.Addr(), uint16(1000+i)), server4, [2]uint32{1, 2}, nil, nil)
		c.handshake()
		feed(s, c.packets)
		if st := s.Stats(); st.Waiting > 10 || st.Held > 2000 {
			t.Fatalf("after %d flows: %+v", i, st)
		}
	}
	s.Expire(int64(time.Minute))
	if st := s.Stats(); st.Waiting != 0 || st.Held != 0 || st.Overflow+st.Early != 1000 || len(s.flows) != 0 {
		t.Errorf("at the end: %+v", st)
	}
}

func TestDatagrams(t *testing.T) {
	h := proxyheader.Header{Transport: deception.UDP, Source: intruder6, Destination: decoy6, Service: "snmp"}
	header, err := h.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	var got sink
	s := New(&got, Limits{})
	for i, p := range [][]byte{
		writeUDP(gateway4, server4, append(bytes.Clone(header), "one"...)),
		writeUDP(server4, gateway4, []byte("two")),
		writeUDP(gateway4, server4, append(bytes.Clone(header), "three"...)),
		writeUDP(gateway4, server4, []byte("no header")),
		writeUDP(server4, netip.MustParseAddrPort("172.16.23.1:9"), []byte("stray")),
	} {
		s.Take(&Packet{At: int64(i), Data: p})
	}
	var said []string
	for _, p := range got.packets {
		said = append(said, fmt.Sprintf("%d %s %s %s", p.side, p.source, p.destination, p.payload))
	}
	want := []string{
		"0 [2001:db8::66]:4711 [2001:db8::10]:80 one", "1 [2001:db8::10]:80 [2001:db8::66]:4711 two", "0 [2001:db8::66]:4711 [2001:db8::10]:80 three",
	}
	if got.err != nil || !slices.Equal(said, want) {
		t.Errorf("%v\n%q, want\n%q", got.err, said, want)
	}
	s.Expire(int64(time.Hour))
	if st := s.Stats(); st.NoHeaders != 2 || st.Flows != 1 || len(s.flows) != 0 || !slices.Equal(got.ended, []deception.EndReason{deception.EndIdle}) {
		t.Errorf("%+v, ended %v", st, got.ended)
	}
}

// Blocks of selective acknowledgements move with the numbers; what lies within
// the header goes. Options that no longer hold go, too.
func TestOptions(t *testing.T) {
	header := headerOf(intruder, decoy)
	n := uint32(len(header))
	c := newTalk(gateway4, server4, [2]uint32{1000, 2000}, slices.Concat(header, bytes.Repeat([]byte("x"), 500)), nil)
	c.handshake()
	c.say(Client, 0, int(n)+100, 0)
	sack := func(blocks ...uint32) []byte {
		b := []byte{optionNOP, optionNOP, optionSACK, byte(2 + 4*len(blocks))}
		for _, v := range blocks {
			b = binary.BigEndian.AppendUint32(b, v)
		}
		return b
	}
	signed := append([]byte{19, 18}, bytes.Repeat([]byte{7}, 18)...) // RFC 2385
	for _, options := range [][]byte{
		sack(1001+n+200, 1001+n+300, 1001, 1011), sack(1005, 1001+n+50), sack(1002, 1003), signed,
	} {
		c.send(Server, wireTCP{seq: 2001, ack: 1001 + n + 100, flags: FlagACK, options: options}, 0)
	}
	var got sink
	s := New(&got, Limits{})
	feed(s, c.packets)
	nops := func(n int) []byte { return bytes.Repeat([]byte{optionNOP}, n) }
	for i, want := range [][]byte{
		append(sack(1201, 1301), nops(8)...), sack(1001, 1051), nops(12), nops(20),
	} {
		if p := got.packets[len(got.packets)-4+i]; !bytes.Equal(p.options, want) || p.ack != 1101 {
			t.Errorf("options %d: %v, want %v; acknowledged %d", i, p.options, want, p.ack)
		}
	}
}

// A super-segment is cut as its sender's card would have done.
func TestSuperSegment(t *testing.T) {
	header := headerOf(intruder, decoy)
	c := newTalk(gateway4, server4, [2]uint32{1000, 2000}, slices.Concat(header, bytes.Repeat([]byte("x"), 3000)), nil)
	c.handshake()
	c.send(Client, wireTCP{seq: 1001, ack: 2001, flags: FlagACK | FlagPSH | FlagFIN | FlagCWR, payload: c.stream[Client]}, 1448)
	// With checksums that are left to the card.
	p := &c.packets[len(c.packets)-1]
	p.Data[20+16] ^= 0xff
	p.Unsummed = true
	var got sink
	s := New(&got, Limits{})
	feed(s, c.packets)
	got.check(t, intruder, decoy, c.stream[Client][len(header):], nil)
	for i, want := range []struct {
		flags byte
		size  int
	}{{FlagACK | FlagCWR, 1448}, {FlagACK, 1448}, {FlagACK | FlagPSH | FlagFIN, 104}} {
		if p := got.packets[3+i]; p.flags != want.flags || len(p.payload) != want.size {
			t.Errorf("piece %d: flags %#x, %d bytes; want %+v", i, p.flags, len(p.payload), want)
		}
	}
	// The same without that excuse is damaged.
	s = New(&got, Limits{})
	p.Unsummed = false
	feed(s, c.packets)
	if st := s.Stats(); st.Corrupt != 1 || st.Flows != 0 {
		t.Errorf("with a wrong checksum: %+v", st)
	}
}
