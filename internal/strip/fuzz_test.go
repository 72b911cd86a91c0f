package strip

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"decoynet/deception"
)

// witness checks what comes out against what went in.
type witness struct {
	t     *testing.T
	now   []byte   // the packet that is taken
	taken [][]byte // all of them
	begun map[*Flow]bool
	ended map[*Flow]bool
}

func (w *witness) Begin(f *Flow) bool { w.begun[f] = true; return true }

func (w *witness) Packet(f *Flow, side int, _ int64, ip []byte) {
	p, transport, err := readPacket(ip)
	if err != nil {
		w.t.Fatal(err)
	}
	source, destination := f.Header.Source, f.Header.Destination
	if side == Server {
		source, destination = destination, source
	}
	if !w.begun[f] || p.source != source || p.destination != destination || transport != f.Header.Transport {
		w.t.Fatalf("a packet from %s to %s for a flow with the header %+v, begun: %v", p.source, p.destination, f.Header, w.begun[f])
	}
	within := func(b []byte) bool { return bytes.Contains(b, p.payload) }
	if !within(w.now) && !slices.ContainsFunc(w.taken, within) {
		w.t.Fatalf("%d bytes were never said: %x", len(p.payload), p.payload)
	}
}

func (w *witness) End(f *Flow, _ int64, _ deception.EndReason) {
	if !w.begun[f] || w.ended[f] {
		w.t.Fatal("a flow ends that has not begun, or twice")
	}
	w.ended[f] = true
}

// script makes packets of any bytes: some as they are, most of them as segments of
// a few flows, with numbers near each other.
type script struct{ b []byte }

func (s *script) next() byte {
	if len(s.b) == 0 {
		return 0
	}
	v := s.b[0]
	s.b = s.b[1:]
	return v
}

func (s *script) take(n int) []byte {
	n = min(n, len(s.b))
	v := s.b[:n]
	s.b = s.b[n:]
	return v
}

func (s *script) packet() ([]byte, bool) {
	how := s.next()
	source, destination := gateway4, server4
	if how&1 != 0 {
		source, destination = gateway6, server6
	}
	if how&2 != 0 {
		source, destination = destination, source
	}
	if how&4 != 0 {
		return bytes.Clone(s.take(int(s.next()))), how&8 != 0
	}
	seq, ack, flags, size := s.next(), s.next(), s.next(), int(s.next())
	var payload []byte
	switch how >> 4 & 3 {
	case 0:
		payload = s.take(size)
	case 1:
		payload = append(headerOf(intruder, decoy), s.take(size%32)...)
	case 2:
		h := headerOf(intruder6, decoy6)
		payload = h[min(size, len(h)):]
	default:
		payload = bytes.Repeat([]byte{seq, ack}, size*8)
	}
	if how&0x40 != 0 {
		return writeUDP(source, destination, payload), false
	}
	w := wireTCP{source: source, destination: destination, flags: flags, seq: uint32(int32(int8(seq))), ack: uint32(int32(int8(ack))), payload: payload}
	if how&0x80 != 0 {
		w.options = []byte{5, 10, 0, 0, 0, seq, 0, 0, 0, ack, 1, 1}
		w.seq <<= 24
	}
	return w.bytes(), false
}

func FuzzStripper(f *testing.F) {
	f.Add([]byte{0, 0, 0, FlagSYN, 0, 2, 9, 1, FlagSYN | FlagACK, 0, 0x10, 1, 10, FlagACK, 20, 'G', 'E', 'T', 0x30, 40, 10, FlagACK, 9, 2, 10, 50, FlagACK | FlagFIN, 0})
	f.Add([]byte{0, 0, 0, FlagSYN, 0, 0x20, 11, 10, FlagACK, 10, 0x20, 1, 10, FlagACK, 0, 0, 45, 10, FlagACK | FlagFIN, 3, 1, 2, 3})
	f.Add([]byte{0x50, 0, 0, 0, 5, 1, 2, 3, 4, 5, 0x42, 0, 0, 0, 2, 7, 7})
	f.Fuzz(func(t *testing.T, b []byte) {
		w := &witness{t: t, begun: map[*Flow]bool{}, ended: map[*Flow]bool{}}
		limits := Limits{Waiting: 3, Flows: 3, FlowBytes: 3000, Held: 5000}
		s := New(w, limits)
		in := script{b}
		for at := int64(0); len(in.b) > 0; at += int64(time.Second) / 4 {
			data, unsummed := in.packet()
			w.now = data
			s.Take(&Packet{At: at, Data: data, Unsummed: unsummed})
			w.taken = append(w.taken, data)
			if len(w.taken)%5 == 0 {
				s.Expire(at)
			}
			held := 0
			for _, f := range s.flows {
				held += f.heldBytes
			}
			if st := s.Stats(); st.Held != held || held > limits.Held || len(s.flows) > limits.Waiting+2*limits.Flows || len(s.flows) != st.Waiting+st.Active+s.closing.n {
				t.Fatalf("%d flows that hold %d bytes: %+v", len(s.flows), held, st)
			}
		}
		s.Close(1 << 62)
		if len(s.flows) != 0 || s.Stats().Held != 0 || len(w.ended) != len(w.begun) {
			t.Fatalf("at the end %d flows, %+v; %d begun, %d ended", len(s.flows), s.Stats(), len(w.begun), len(w.ended))
		}
	})
}
