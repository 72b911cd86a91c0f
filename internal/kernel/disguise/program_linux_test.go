package disguise

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"decoynet/deception"
)

var lanMAC = net.HardwareAddr{0x02, 0x11, 0x22, 0x33, 0x44, 0x55}

// loaded loads the programs with the policies, outside of any network.
func loaded(t testing.TB, policies ...Policy) *programObjects {
	t.Helper()
	table, err := compile(policies)
	if err != nil {
		t.Fatal(err)
	}
	objs, err := load(Desired{MAC: lanMAC}, table)
	if err != nil {
		t.Fatal(err)
	}
	return objs
}

// through lets the kernel run the program on a frame, and returns the frame after.
func through(t *rapid.T, p *ebpf.Program, frame []byte) []byte {
	t.Helper()
	o := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
	verdict, err := p.Run(&o)
	if err != nil || int32(verdict) != -1 {
		t.Fatalf("program returns %d, %v", int32(verdict), err)
	}
	return o.DataOut
}

// The kernel computes the MAC addresses that Go does, for any seed and address of
// either family, and readdresses frames to these and to no others.
func TestProgramsAgreeWithGo(t *testing.T) {
	var policies []Policy
	for i := range byte(16) {
		policies = append(policies, Policy{
			Prefixes: []netip.Prefix{
				netip.PrefixFrom(netip.AddrFrom4([4]byte{i << 4}), 4),
				netip.PrefixFrom(netip.AddrFrom16([16]byte{i << 4}), 4),
			},
			OUI: deception.MACPrefix{i << 1, 0x14, 0x22}, Seed: rand.Uint64(),
		})
	}
	objs := loaded(t, policies...)
	defer objs.Close()
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "decoy")
		decoy := netip.AddrFrom16([16]byte(raw))
		if rapid.Bool().Draw(t, "IPv4") {
			decoy = netip.AddrFrom4([4]byte(raw[:4]))
		}
		p := policies[raw[0]>>4]
		own := p.MAC(decoy)
		leaving, want := ipFrame(decoy, true, broadcast, lanMAC), ipFrame(decoy, true, broadcast, own)
		if got := through(t, objs.DecoynetOut, leaving); !bytes.Equal(got, want) {
			t.Fatalf("with seed %x, from %s leaves\n%x, want\n%x", p.Seed, decoy, got, want)
		}
		coming, want := ipFrame(decoy, false, own, stranger), ipFrame(decoy, false, lanMAC, stranger)
		if got := through(t, objs.DecoynetIn, coming); !bytes.Equal(got, want) {
			t.Fatalf("with seed %x, to %s comes\n%x, want\n%x", p.Seed, decoy, got, want)
		}
		own[rapid.IntRange(0, 5).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		coming = ipFrame(decoy, false, own, stranger)
		if got := through(t, objs.DecoynetIn, coming); !bytes.Equal(got, coming) {
			t.Fatalf("with seed %x, to %s at %s comes\n%x", p.Seed, decoy, own, got)
		}
	})
}

// ipFrame is a frame with an IP packet of an unknown protocol from or to a decoy.
func ipFrame(decoy netip.Addr, from bool, dst, src net.HardwareAddr) []byte {
	f := append(append([]byte{}, dst...), src...)
	peer := netip.MustParseAddr("203.0.113.1")
	if decoy.Is4() {
		f = append(f, 8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 253, 0, 0)
	} else {
		peer = netip.MustParseAddr("2001:db8:ffff::1")
		f = append(f, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 59, 64)
	}
	if from {
		f = append(append(f, decoy.AsSlice()...), peer.AsSlice()...)
	} else {
		f = append(append(f, peer.AsSlice()...), decoy.AsSlice()...)
	}
	return append(f, make([]byte, 20)...)
}

// Whatever a SYN's options are, timestamps are taken out of it and nothing else,
// with a checksum that is right; and what is no TCP stays as it is.
func TestTimestampsAreDeclined(t *testing.T) {
	objs := loaded(t, Policy{Prefixes: prefixes("0.0.0.0/0"), Personality: deception.PersonalityWindows})
	defer objs.Close()
	kinds := [][]byte{
		{1}, {2, 4, 5, 0xb4}, {3, 3, 7}, {4, 2}, {8, 10, 1, 2, 3, 4, 0, 0, 0, 0}, {254, 6, 0xf9, 0x89, 1, 2}, {34, 2},
	}
	rapid.Check(t, func(t *rapid.T) {
		var options, want []byte
		for _, i := range rapid.SliceOfN(rapid.IntRange(0, len(kinds)-1), 0, 9).Draw(t, "options") {
			o := kinds[i]
			if len(options)+len(o) > 40 || o[0] == 8 && bytes.Contains(options, o) {
				continue
			}
			options = append(options, o...)
			if o[0] == 8 {
				o = bytes.Repeat([]byte{1}, 10)
			}
			want = append(want, o...)
		}
		for len(options)%4 != 0 {
			options, want = append(options, 1), append(want, 1)
		}
		data := rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(t, "data")
		before, after := tcpFrame(2, options, data), tcpFrame(2, want, data)
		if got := through(t, objs.DecoynetHear, before); !bytes.Equal(got, after) {
			t.Fatalf("options %x become\n%x, want\n%x", options, got, after)
		}
		// Of congestion notification it hears nothing either.
		if got := through(t, objs.DecoynetHear, tcpFrame(2|64|128, options, data)); !bytes.Equal(got, after) {
			t.Fatalf("with ECN, options %x become\n%x, want\n%x", options, got, after)
		}
		established := tcpFrame(16, options, data)
		if got := through(t, objs.DecoynetHear, established); !bytes.Equal(got, established) {
			t.Fatalf("an established connection's segment becomes\n%x, not\n%x", got, established)
		}
	})
}

// tcpFrame is a frame with a TCP segment to a decoy.
func tcpFrame(flags byte, options, data []byte) []byte {
	segment := append([]byte{0x12, 0x34, 0, 80, 1, 2, 3, 4, 0, 0, 0, 0, byte(5+len(options)/4) << 4, flags, 0xff, 0xff, 0, 0, 0, 0}, options...)
	segment = append(segment, data...)
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, unix.IPPROTO_TCP, 0, 0, 203, 0, 113, 1, 192, 0, 2, 100}
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(segment)))
	binary.BigEndian.PutUint16(ip[10:], ^sum(ip))
	pseudo := append(append([]byte{}, ip[12:20]...), 0, unix.IPPROTO_TCP, byte(len(segment)>>8), byte(len(segment)))
	binary.BigEndian.PutUint16(segment[16:], ^sum(append(pseudo, segment...)))
	frame := append(append(append([]byte{}, lanMAC...), stranger...), 8, 0)
	return append(append(frame, ip...), segment...)
}

// A SYN-ACK gets the order, the scale and the window of its personality, and the
// checksums of both headers are right.
func TestSynAck(t *testing.T) {
	mss, nop, sack, stamps := []byte{2, 4, 5, 0xb4}, []byte{1}, []byte{4, 2}, []byte{8, 10, 1, 2, 3, 4, 5, 6, 7, 8}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	scaled := func(n byte) []byte { return []byte{1, 3, 3, n} }
	for _, c := range []struct {
		name            string
		personality     deception.Personality
		window, becomes uint16
		options, want   []byte
	}{
		{"all", "windows", 65535, 65535, join(mss, sack, stamps, scaled(10)), join(mss, scaled(8), sack, stamps)},
		{"no stamps", "windows", 65535, 65535, join(mss, nop, nop, sack, scaled(7)), join(mss, scaled(7), nop, nop, sack)},
		{"no SACK", "windows", 64240, 64240, join(mss, nop, nop, stamps, scaled(9)), join(mss, scaled(8), nop, nop, stamps)},
		{"scale only", "windows", 65535, 65535, join(mss, scaled(14)), join(mss, scaled(8))},
		{"no scale", "windows", 65535, 65392, join(mss, nop, nop, sack), join(mss, nop, nop, sack)},
		{"nothing", "windows", 8192, 8192, mss, mss},
		{"Windows itself", "windows", 65535, 65535, join(mss, scaled(8), nop, nop, sack), join(mss, scaled(8), nop, nop, sack)},
		{"all", "linux", 65535, 65160, join(mss, sack, stamps, scaled(10)), join(mss, sack, stamps, scaled(7))},
		{"no stamps", "linux", 65535, 64240, join(mss, nop, nop, sack, scaled(8)), join(mss, nop, nop, sack, scaled(7))},
		{"small", "linux", 28960, 28960, join(mss, nop, nop, sack, scaled(2)), join(mss, nop, nop, sack, scaled(2))},
		{"nothing", "linux", 1000, 1000, mss, mss},
	} {
		objs := loaded(t, Policy{Prefixes: prefixes("203.0.113.1/32"), Personality: c.personality})
		frame := tcpFrame(2|16, c.options, nil) // from the decoy, in this case
		set := func(f []byte, window uint16) {
			binary.BigEndian.PutUint16(f[48:], window)
			binary.BigEndian.PutUint16(f[50:], 0)
			pseudo := append(append([]byte{}, f[26:34]...), 0, unix.IPPROTO_TCP, 0, byte(len(f)-34))
			binary.BigEndian.PutUint16(f[50:], ^sum(append(pseudo, f[34:]...)))
		}
		set(frame, c.window)
		want := tcpFrame(2|16, c.want, nil)
		set(want, c.becomes)
		o := ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256)}
		if _, err := objs.DecoynetOut.Run(&o); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(o.DataOut[34:], want[34:]) {
			t.Errorf("%s, %s: the segment becomes\n%x, want\n%x", c.personality, c.name, o.DataOut[34:], want[34:])
		}
		if err := checksums(o.DataOut); err != nil {
			t.Errorf("%s, %s: %v", c.personality, c.name, err)
		}
		objs.Close()
	}
}
