package wire

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"
	"pgregory.net/rapid"

	"decoynet/deception"
)

// packetOf is a frame with a segment or datagram, behind extension headers or
// options where there are some.
func packetOf(t deception.Transport, source, destination netip.AddrPort, extra bool) []byte {
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, source.Port()), destination.Port())
	body := append(ports, make([]byte, 16)...)
	if source.Addr().Is4() {
		header := make([]byte, 20)
		header[0], header[9] = 0x45, byte(t)
		copy(header[12:], source.Addr().AsSlice())
		copy(header[16:], destination.Addr().AsSlice())
		if extra {
			header[0] = 0x46
			header = append(header, 0x94, 4, 0, 0) // router alert
		}
		return append(append(append(make([]byte, 12), 0x08, 0x00), header...), body...)
	}
	header := make([]byte, 40)
	header[0], header[6], header[7] = 0x60, byte(t), 64
	copy(header[8:], source.Addr().AsSlice())
	copy(header[24:], destination.Addr().AsSlice())
	if extra {
		header[6] = headerDestination
		header = append(header, headerHopByHop, 0, 1, 4, 0, 0, 0, 0, byte(t), 0, 1, 4, 0, 0, 0, 0)
	}
	return append(append(append(make([]byte, 12), 0x86, 0xdd), header...), body...)
}

// What is selected is taken, and little else: only addresses of IPv6, and those
// of many ranges, are taken more generously.
func TestSelection(t *testing.T) {
	four := func(b byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, b}) }
	six := func(b byte) netip.Addr {
		return netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b})
	}
	rapid.Check(t, func(t *rapid.T) {
		var s Selection
		for range rapid.IntRange(0, 5).Draw(t, "ports") {
			first := rapid.Uint16Range(1, 20).Draw(t, "first")
			s.Ports = append(s.Ports, deception.PortRange{
				Transport: rapid.SampledFrom([]deception.Transport{deception.TCP, deception.UDP}).Draw(t, "transport"),
				First:     first, Last: rapid.Uint16Range(first, 22).Draw(t, "last"),
			})
		}
		for range rapid.SampledFrom([]int{0, 1, 2, 5, 60}).Draw(t, "addresses") {
			address := four
			if rapid.Bool().Draw(t, "IPv6") {
				address = six
			}
			from := rapid.ByteRange(0, 40).Draw(t, "from")
			s.Addresses = append(s.Addresses, deception.AddrRange{From: address(from), To: address(rapid.ByteRange(from, 42).Draw(t, "to"))})
		}
		program, err := s.compile()
		if err != nil {
			t.Fatal(err)
		}
		if len(program) > 4096 {
			t.Fatalf("%d instructions", len(program))
		}
		steps, ok := bpf.Disassemble(program)
		if !ok {
			t.Fatal("no program of package bpf's")
		}
		vm, err := bpf.NewVM(steps)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			address, exact := four, len(s.rangesOf(true)) == count(s.Addresses, true)
			if rapid.Bool().Draw(t, "packet of IPv6") {
				address, exact = six, len(s.Addresses) == 0
			}
			transport := rapid.SampledFrom([]deception.Transport{deception.TCP, deception.UDP}).Draw(t, "packet's transport")
			source := netip.AddrPortFrom(address(rapid.ByteRange(0, 50).Draw(t, "source")), rapid.Uint16Range(0, 25).Draw(t, "port"))
			destination := netip.AddrPortFrom(address(rapid.ByteRange(0, 50).Draw(t, "destination")), rapid.Uint16Range(0, 25).Draw(t, "port"))
			b := packetOf(transport, source, destination, rapid.Bool().Draw(t, "extra headers"))
			n, err := vm.Run(b)
			if err != nil {
				t.Fatal(err)
			}
			want := s.Has(transport, source, destination)
			// The filter takes an address of one side with a port of the other.
			mixed := s.Has(transport, netip.AddrPortFrom(source.Addr(), destination.Port()), netip.AddrPortFrom(destination.Addr(), source.Port()))
			if want && n == 0 || exact && !want && !mixed && n != 0 {
				t.Fatalf("%s from %s to %s: taken %v, selected %v by %+v", transport, source, destination, n > 0, want, s)
			}
		}
	})
}

func count(ranges []deception.AddrRange, four bool) int {
	n := 0
	for _, r := range ranges {
		if r.From.Is4() == four {
			n++
		}
	}
	return n
}
