package archive

import (
	"encoding/binary"
	"net/netip"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
)

// flow makes the frames of a TCP flow, with valid checksums and sequence numbers.
type flow struct {
	id        deception.SessionID
	from, to  netip.AddrPort
	tags      []uint16
	at        time.Time
	step      time.Duration
	seq       [2]uint32
	frames    [][]byte
	times     []int64
	transport byte
}

const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
	flagPSH
	flagACK
)

func newFlow(at time.Time, from, to string, tags ...uint16) *flow {
	return &flow{
		id: deception.NewSessionID(at), from: netip.MustParseAddrPort(from), to: netip.MustParseAddrPort(to),
		tags: tags, at: at, step: time.Millisecond, seq: [2]uint32{1000, 5000}, transport: 6,
	}
}

// talk is a whole flow: a handshake, data of so many bytes each way, an orderly end.
func (f *flow) talk(sizes ...int) *flow {
	f.segment(0, flagSYN, nil)
	f.segment(1, flagSYN|flagACK, nil)
	f.segment(0, flagACK, nil)
	for i, size := range sizes {
		f.segment(i%2, flagPSH|flagACK, make([]byte, size))
		f.segment(1-i%2, flagACK, nil)
	}
	f.segment(0, flagFIN|flagACK, nil)
	f.segment(1, flagFIN|flagACK, nil)
	f.segment(0, flagACK, nil)
	return f
}

// segment adds the frame of a segment from that side.
func (f *flow) segment(side int, flags byte, data []byte) {
	from, to := f.from, f.to
	if side == 1 {
		from, to = to, from
	}
	b := binary.BigEndian.AppendUint16(nil, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint32(b, f.seq[side])
	ack := f.seq[1-side]
	if flags&flagACK == 0 {
		ack = 0
	}
	b = binary.BigEndian.AppendUint32(b, ack)
	b = append(b, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
	f.seq[side] += uint32(len(data))
	if flags&(flagSYN|flagFIN) != 0 {
		f.seq[side]++
	}
	f.add(side, from.Addr(), to.Addr(), append(b, data...), 16)
}

// datagram adds the frame of a UDP datagram from that side.
func (f *flow) datagram(side int, data []byte) {
	from, to := f.from, f.to
	if side == 1 {
		from, to = to, from
	}
	b := binary.BigEndian.AppendUint16(nil, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(data)))
	f.transport = 17
	f.add(side, from.Addr(), to.Addr(), append(append(b, 0, 0), data...), 6)
}

// add frames what an IP packet holds, whose checksum is to stand at that place.
func (f *flow) add(side int, from, to netip.Addr, body []byte, check int) {
	intruder, decoy := frame.Addresses(f.id.Key())
	macs := append(decoy[:], intruder[:]...)
	if side == 1 {
		macs = append(intruder[:], decoy[:]...)
	}
	for _, tag := range f.tags {
		macs = binary.BigEndian.AppendUint16(macs, 0x8100)
		macs = binary.BigEndian.AppendUint16(macs, tag)
	}
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = append(binary.BigEndian.AppendUint32(pseudo, uint32(len(body))), 0, 0, 0, f.transport)
	binary.BigEndian.PutUint16(body[check:], checksum(append(pseudo, body...)))
	var ip []byte
	if from.Is4() {
		ip = []byte{8, 0, 0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, f.transport, 0, 0}
		ip = append(append(ip, from.AsSlice()...), to.AsSlice()...)
		binary.BigEndian.PutUint16(ip[4:], uint16(20+len(body)))
		binary.BigEndian.PutUint16(ip[12:], checksum(ip[2:]))
	} else {
		ip = []byte{0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, f.transport, 64}
		ip = append(append(ip, from.AsSlice()...), to.AsSlice()...)
		binary.BigEndian.PutUint16(ip[6:], uint16(len(body)))
	}
	f.frames = append(f.frames, append(append(macs, ip...), body...))
	f.times = append(f.times, f.at.UnixNano())
	f.at = f.at.Add(f.step)
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i]) << 8
		if i+1 < len(b) {
			sum += uint32(b[i+1])
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
