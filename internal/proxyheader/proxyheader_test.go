package proxyheader

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
	"github.com/pires/go-proxyproto"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var same = cmp.Options{
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

// full is a header that has everything.
func full() Header {
	return Header{
		Transport: deception.TCP, Source: netip.MustParseAddrPort("192.0.2.66:4711"), Destination: netip.MustParseAddrPort("192.0.2.10:80"),
		Session: deception.SessionID{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0x7d, 0xef, 0x81, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef},
		Node:    "crm-1", Segment: "office", Decoy: "office-web", Service: "web", Target: netip.MustParseAddrPort("10.1.0.2:8080"),
	}
}

// The bytes are a contract with other versions and other programs.
func TestBytes(t *testing.T) {
	local := Header{Local: true, Node: "hq"}
	six := Header{
		Transport: deception.UDP, Source: netip.MustParseAddrPort("[2001:db8::66]:4711"), Destination: netip.MustParseAddrPort("[2001:db8::10]:161"),
		Target: netip.MustParseAddrPort("[fd00::2]:161"),
	}
	first := full()
	for _, c := range []struct {
		header Header
		want   string
	}{
		{first, "0d0a0d0a000d0a515549540a 21 11 004c c0000242 c000020a 1267 0050" +
			" 05 0010 0123456789ab7def8123456789abcdef" +
			" e0 0005 63726d2d31 e1 0006 6f6666696365 e2 000a 6f66666963652d776562 e3 0003 776562 e4 0006 0a010002 901f"},
		{six, "0d0a0d0a000d0a515549540a 21 22 0039" +
			" 20010db8000000000000000000000066 20010db8000000000000000000000010 1267 00a1 e4 0012 fd000000000000000000000000000002 a100"},
		{local, "0d0a0d0a000d0a515549540a 20 00 0005 e0 0002 6871"},
	} {
		want, err := hex.DecodeString(strings.ReplaceAll(c.want, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.header.Append(nil)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%+v is written\n%x (%v), want\n%x", c.header, got, err, want)
		}
	}
	if target, err := first.Target.MarshalBinary(); err != nil || !bytes.Contains(must(t, first), target) {
		t.Errorf("the target is not what MarshalBinary gives: %x, %v", target, err)
	}
}

func must(t *testing.T, h Header) []byte {
	t.Helper()
	b, err := h.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// headers draws any header that can be written.
var headers = rapid.Custom(func(t *rapid.T) Header {
	name := rapid.StringMatching(`[!-~]{0,64}`)
	h := Header{Node: name.Draw(t, "node"), Segment: name.Draw(t, "segment"), Decoy: name.Draw(t, "decoy"), Service: name.Draw(t, "service")}
	if rapid.Bool().Draw(t, "session") {
		copy(h.Session[:], rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "id"))
	}
	if rapid.Bool().Draw(t, "target") {
		h.Target = drawAddr(t, rapid.Bool().Draw(t, "target of IPv4"))
	}
	if h.Local = rapid.Bool().Draw(t, "local"); h.Local {
		return h
	}
	h.Transport = rapid.SampledFrom([]deception.Transport{deception.TCP, deception.UDP}).Draw(t, "transport")
	four := rapid.Bool().Draw(t, "IPv4")
	h.Source, h.Destination = drawAddr(t, four), drawAddr(t, four)
	return h
})

func drawAddr(t *rapid.T, four bool) netip.AddrPort {
	n := 16
	if four {
		n = 4
	}
	a, _ := netip.AddrFromSlice(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "address"))
	if a.Is4In6() {
		a = netip.IPv6Unspecified()
	}
	return netip.AddrPortFrom(a, rapid.Uint16().Draw(t, "port"))
}

// What is written is read again, whatever follows it, and every beginning of it
// asks for more.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := headers.Draw(t, "header")
		before := rapid.SliceOfN(rapid.Byte(), 0, 8).Draw(t, "before")
		b, err := h.Append(slices.Clone(before))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(b, before) {
			t.Fatal("Append changed what stood there")
		}
		b = b[len(before):]
		if len(b) > MaxSize {
			t.Fatalf("%d bytes", len(b))
		}
		whole := append(slices.Clone(b), rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "data")...)
		got, n, err := Parse(whole)
		if err != nil || n != len(b) {
			t.Fatalf("Parse: %d of %d bytes, %v", n, len(b), err)
		}
		if diff := cmp.Diff(h, got, same); diff != "" {
			t.Fatalf("(-written +read):\n%s", diff)
		}
		for i := range b {
			if _, _, err := Parse(b[:i]); !errors.Is(err, ErrShort) {
				t.Fatalf("the first %d of %d bytes: %v, want ErrShort", i, len(b), err)
			}
		}
	})
}

// The library agrees with us in both directions.
func TestLibraryAgrees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := headers.Draw(t, "header")
		b, err := h.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		theirs, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			t.Fatalf("the library refuses %x: %v", b, err)
		}
		if h.Local != theirs.Command.IsLocal() {
			t.Fatalf("command %v", theirs.Command)
		}
		if !h.Local {
			if s, d := theirs.SourceAddr.String(), theirs.DestinationAddr.String(); s != h.Source.String() || d != h.Destination.String() ||
				theirs.SourceAddr.Network() != h.Transport.String() {
				t.Fatalf("the library reads %s -> %s (%s), want %s -> %s", s, d, theirs.SourceAddr.Network(), h.Source, h.Destination)
			}
		}
		again, err := theirs.Format()
		if err != nil {
			t.Fatal(err)
		}
		got, n, err := Parse(again)
		if err != nil || n != len(again) {
			t.Fatalf("what the library writes: %v", err)
		}
		if diff := cmp.Diff(h, got, same); diff != "" {
			t.Fatalf("through the library (-ours +theirs):\n%s", diff)
		}
	})
}

// tlv appends one TLV and corrects the length.
func tlv(b []byte, kind byte, value ...byte) []byte {
	b = append(slices.Clone(b), kind, byte(len(value)>>8), byte(len(value)))
	b = append(b, value...)
	binary.BigEndian.PutUint16(b[14:], uint16(len(b)-16))
	return b
}

// Every one of these is refused at the byte that makes it wrong: with one byte
// less it is the beginning of a header.
func TestMalformed(t *testing.T) {
	good := must(t, full())
	four := good[:28:28]
	six := must(t, Header{Transport: deception.TCP, Source: netip.MustParseAddrPort("[::1]:1"), Destination: netip.MustParseAddrPort("[::1]:2")})
	set := func(b []byte, at int, value byte) []byte { b = slices.Clone(b); b[at] = value; return b }
	length := func(b []byte, n int) []byte { return set(set(b, 14, byte(n>>8)), 15, byte(n)) }
	for _, c := range []struct {
		name  string
		b     []byte
		wrong int // offset of the byte that makes it wrong
		says  string
	}{
		{"first byte", []byte("GET / HTTP/1.1"), 0, "signature"},
		{"version 1", []byte("PROXY TCP4 1.2.3.4"), 0, "signature"},
		{"last byte of the signature", set(good, 11, 'x'), 11, "signature"},
		{"version 3", set(good, 12, 0x31), 12, "version and command 0x31"},
		{"command 2", set(good, 12, 0x22), 12, "version and command 0x22"},
		{"no family", set(good, 13, 0x00), 13, "family and transport 0x00"},
		{"unix family", set(good, 13, 0x31), 13, "family and transport 0x31"},
		{"no transport", set(good, 13, 0x10), 13, "family and transport 0x10"},
		{"far too long", length(good, 0xffff), 14, "at most 1024"},
		{"too long", length(good, MaxSize-16+1), 15, "at most 1024"},
		{"too short for its addresses", length(four, 11), 15, "too small for its addresses"},
		{"too short for IPv6", length(six, 35), 15, "too small for its addresses"},
		{"two families", set(set(six, 16+10, 0xff), 16+11, 0xff), 16 + 35, "two families"},
		{"one byte behind the last TLV", length(append(slices.Clone(four), 4), 13), 15, "left behind its last TLV"},
		{"two bytes behind the last TLV", length(append(slices.Clone(four), 4, 0), 14), 15, "left behind its last TLV"},
		{"TLV beyond the end", set(tlv(four, typeNode, 'a', 'b'), 30, 3), 30, "longer than the header"},
		{"TLV far beyond the end", set(tlv(four, typeNode, 'a', 'b'), 29, 1), 29, "longer than the header"},
		{"session twice", tlv(tlv(four, typeUniqueID, make([]byte, 16)...), typeUniqueID, make([]byte, 16)...), 47, "given twice"},
		{"node twice", tlv(tlv(four, typeNode, 'a'), typeNode, 'b'), 32, "its node is given twice"},
		{"target twice", tlv(tlv(four, typeTarget, 10, 0, 0, 1, 80, 0), typeTarget, 10, 0, 0, 1, 80, 0), 37, "its target is given twice"},
		{"session of 15 bytes", tlv(four, typeUniqueID, make([]byte, 15)...), 30, "UNIQUE_ID) has 15 bytes"},
		{"empty name", tlv(four, typeDecoy), 30, "name of the decoy has 0 bytes"},
		{"long name", tlv(four, typeService, bytes.Repeat([]byte{'x'}, 254)...), 30, "name of the service has 254 bytes"},
		{"space in a name", tlv(four, typeSegment, 'a', ' '), 32, "not printable"},
		{"escape in a name", tlv(four, typeSegment, 'a', 0x1b), 32, "not printable"},
		{"name beyond ASCII", tlv(four, typeSegment, []byte("ä")...), 31, "not printable"},
		{"target of 7 bytes", tlv(four, typeTarget, make([]byte, 7)...), 30, "target has 7 bytes"},
		{"checksum of 3 bytes", tlv(four, typeCRC32C, 0, 0, 0), 30, "checksum has 3 bytes"},
		{"wrong checksum", tlv(four, typeCRC32C, 0, 0, 0, 0), 34, "checksum is wrong"},
	} {
		for n := c.wrong + 1; n <= len(c.b); n++ {
			_, _, err := Parse(c.b[:n])
			if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%s, %d of %d bytes: %v; want ErrMalformed that says %q", c.name, n, len(c.b), err, c.says)
				break
			}
		}
		if _, _, err := Parse(c.b[:c.wrong]); !errors.Is(err, ErrShort) {
			t.Errorf("%s, before the wrong byte: %v, want ErrShort", c.name, err)
		}
	}
	if _, _, err := Parse(length(good, 0xffff)); !errors.Is(err, ErrSize) {
		t.Errorf("too long: %v, want ErrSize", err)
	}
}

// What other senders say is taken as they mean it.
func TestOthersHeaders(t *testing.T) {
	h := full()
	good := must(t, h)
	// TLVs that mean nothing to us: ALPN, AUTHORITY, NOOP, SSL, NETNS and one
	// of the range for experiments, twice.
	b := good
	for _, kind := range []byte{0x01, 0x02, 0x04, 0x04, 0x20, 0x30, 0xf0, 0xf0} {
		b = tlv(b, kind, []byte("anything")...)
	}
	if got, n, err := Parse(b); err != nil || n != len(b) || got != h {
		t.Errorf("with TLVs of others: %+v, %d, %v", got, n, err)
	}
	// A right checksum, before other TLVs and behind them.
	for _, b := range [][]byte{tlv(good, typeCRC32C, 0, 0, 0, 0), tlv(tlv(good, typeCRC32C, 0, 0, 0, 0), 0x04, 1, 2, 3)} {
		sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
		binary.BigEndian.PutUint32(b[len(good)+3:], sum)
		if got, n, err := Parse(append(b, "data"...)); err != nil || n != len(b) || got != h {
			t.Errorf("with a checksum: %+v, %d, %v", got, n, err)
		}
		b[20]++
		if _, _, err := Parse(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("with a wrong checksum: %v", err)
		}
	}
	// IPv4 in IPv6 form, as a socket of both families gives it.
	mapped := []byte(signature + "\x21\x21\x00\x24")
	for _, a := range []string{"::ffff:192.0.2.66", "::ffff:192.0.2.10"} {
		mapped = append(mapped, netip.MustParseAddr(a).AsSlice()...)
	}
	mapped = append(mapped, 0x12, 0x67, 0x00, 0x50)
	want := Header{Transport: deception.TCP, Source: h.Source, Destination: h.Destination}
	if got, _, err := Parse(mapped); err != nil || got != want {
		t.Errorf("mapped addresses: %+v, %v", got, err)
	}
	// The sender's own connection, with the addresses that it then means nothing by.
	for _, b := range [][]byte{[]byte(signature + "\x20\x00\x00\x00"), append([]byte(signature+"\x20\x11\x00\x0c"), good[16:28]...)} {
		if got, n, err := Parse(b); err != nil || n != len(b) || got != (Header{Local: true}) {
			t.Errorf("LOCAL: %+v, %d, %v", got, n, err)
		}
	}
}

func TestAppendRefuses(t *testing.T) {
	for says, change := range map[string]func(*Header){
		"of one family": func(h *Header) { h.Destination = netip.MustParseAddrPort("[::1]:80") },
		"and without a zone": func(h *Header) {
			h.Source, h.Destination = netip.MustParseAddrPort("[fe80::1%eth0]:1"), netip.MustParseAddrPort("[fe80::2]:1")
		},
		"source invalid":      func(h *Header) { h.Source = netip.AddrPort{} },
		"transport proto-1":   func(h *Header) { h.Transport = 1 },
		"has 254 bytes":       func(h *Header) { h.Decoy = strings.Repeat("x", 254) },
		"is not printable":    func(h *Header) { h.Node = "a\nb" },
		"target":              func(h *Header) { h.Target = netip.MustParseAddrPort("[fe80::1%eth0]:1") },
		"has no addresses":    func(h *Header) { h.Local = true },
		"name of the segment": func(h *Header) { h.Segment = "ä" },
	} {
		h := full()
		change(&h)
		b, err := h.Append([]byte("before"))
		if !errors.Is(err, ErrMalformed) || !strings.Contains(err.Error(), says) || string(b) != "before" {
			t.Errorf("%q, %v; want an error that says %q", b, err, says)
		}
	}
	// IPv4 in IPv6 form is written as IPv4.
	h := full()
	h.Source = netip.AddrPortFrom(netip.AddrFrom16(h.Source.Addr().As16()), h.Source.Port())
	h.Target = netip.AddrPortFrom(netip.AddrFrom16(h.Target.Addr().As16()), h.Target.Port())
	if got := must(t, h); !bytes.Equal(got, must(t, full())) {
		t.Errorf("mapped addresses are written %x", got)
	}
}

// FuzzParse wants no input to be read beyond its end or beyond the limits, the
// answer never to change from "wrong" to anything else as bytes come in, and
// what is read to be what is written again.
func FuzzParse(f *testing.F) {
	h := full()
	b, err := h.Append(nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(append(b, "data"...))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, n, err := Parse(b)
		switch {
		case err == nil:
			if n < fixedSize || n > len(b) || n > MaxSize {
				t.Fatalf("%d of %d bytes", n, len(b))
			}
			checkPrefixes(t, b[:n])
			again, err := h.Append(nil)
			if err != nil {
				t.Fatalf("cannot write what was read, %+v: %v", h, err)
			}
			if back, _, err := Parse(again); err != nil || back != h {
				t.Fatalf("read %+v, then %+v, %v", h, back, err)
			}
		case errors.Is(err, ErrShort):
			if n != 0 || len(b) >= MaxSize {
				t.Fatalf("%d bytes are too few", len(b))
			}
			checkPrefixes(t, b)
		case errors.Is(err, ErrMalformed):
			if n != 0 || h != (Header{}) {
				t.Fatalf("refused, and yet %+v, %d", h, n)
			}
			if _, _, later := Parse(append(slices.Clone(b), make([]byte, MaxSize)...)); !errors.Is(later, ErrMalformed) {
				t.Fatalf("refused (%v), but not with more bytes: %v", err, later)
			}
		default:
			t.Fatalf("unknown error %v", err)
		}
	})
}

func checkPrefixes(t *testing.T, b []byte) {
	for i := range b {
		if _, _, err := Parse(b[:i]); !errors.Is(err, ErrShort) {
			t.Fatalf("the first %d of %d good bytes: %v", i, len(b), err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	h := full()
	room := make([]byte, 0, MaxSize)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := h.Append(room); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParse(b *testing.B) {
	h := full()
	in, err := h.Append(nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Parse(in); err != nil {
			b.Fatal(err)
		}
	}
}

// The same with the library, for comparison.
func BenchmarkLibraryParse(b *testing.B) {
	h := full()
	in, err := h.Append(nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		header, err := proxyproto.Read(bufio.NewReaderSize(bytes.NewReader(in), len(in)))
		if err != nil {
			b.Fatal(err)
		}
		if tlvs, err := header.TLVs(); err != nil || len(tlvs) != 6 {
			b.Fatal(len(tlvs), err)
		}
	}
}

func BenchmarkLibraryAppend(b *testing.B) {
	h := full()
	in, err := h.Append(nil)
	if err != nil {
		b.Fatal(err)
	}
	header, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(in)))
	if err != nil {
		b.Fatal(err)
	}
	tlvs, err := header.TLVs()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		one := proxyproto.Header{Version: 2, Command: proxyproto.PROXY, TransportProtocol: header.TransportProtocol, SourceAddr: header.SourceAddr, DestinationAddr: header.DestinationAddr}
		if err := one.SetTLVs(tlvs); err != nil {
			b.Fatal(err)
		}
		if _, err := one.Format(); err != nil {
			b.Fatal(err)
		}
	}
}
