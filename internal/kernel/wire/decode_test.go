package wire

import (
	"encoding/hex"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/bpf"
)

// Frames as tcpdump wrote them down, shortened behind what matters.
var samples = map[string]string{
	"arp request":   "ffffffffffff 020000000042 0806 0001 0800 06 04 0001 020000000042 c0000242 000000000000 c000020a 0000000000000000",
	"arp reply":     "020000000042 020000000010 0806 0001 0800 06 04 0002 020000000010 c000020a 020000000042 c0000242",
	"arp inverse":   "ffffffffffff 020000000042 0806 0001 0800 06 04 0008 020000000042 c0000242 000000000000 c000020a",
	"syn":           "020000000010 020000000042 0800 4500 0028 1c46 4000 40 06 9a3d c0000242 c000020a d431 0050 00000001 00000000 a002 faf0 0000 0000",
	"syn, options":  "020000000010 020000000042 0800 4600 002c 1c46 4000 40 06 0535 c0000242 c000020a 94040000 d431 0050 00000001 00000000 a002 faf0 0000 0000",
	"syn-ack":       "020000000010 020000000042 0800 4500 0028 1c46 4000 40 06 9a3d c0000242 c000020a d431 0050 00000001 00000000 a012 faf0 0000 0000",
	"first piece":   "020000000010 020000000042 0800 4500 001c 1c46 2000 40 11 ba3e c0000242 c000020a d431 00a1 0008 0000",
	"later piece":   "020000000010 020000000042 0800 4500 001c 1c46 2001 40 11 ba3d c0000242 c000020a d431 00a1 0008 0000",
	"datagram":      "020000000010 020000000042 0800 4500 001c 1c46 4000 40 11 9a3e c0000242 c000020a d431 00a1 0008 0000",
	"ping":          "020000000010 020000000042 0800 4500 0018 1c46 4000 40 01 9a52 c0000242 c000020a 0800 0000",
	"pong":          "020000000010 020000000042 0800 4500 0018 1c46 4000 40 01 9a52 c0000242 c000020a 0000 0000",
	"solicitation":  "3333ff000010 020000000042 86dd 60000000 0020 3a ff 20010db8000000000000000000000066 ff0200000000000000000001ff000010 8700 0000 00000000 20010db8000000000000000000000010 0101 020000000042",
	"dad":           "3333ff000010 020000000042 86dd 60000000 0018 3a ff 00000000000000000000000000000000 ff0200000000000000000001ff000010 8700 0000 00000000 20010db8000000000000000000000010",
	"from afar":     "3333ff000010 020000000042 86dd 60000000 0018 3a fe 20010db8000000000000000000000066 ff0200000000000000000001ff000010 8700 0000 00000000 20010db8000000000000000000000010",
	"advertisement": "333300000001 020000000010 86dd 60000000 0020 3a ff fe800000000000000000000000000010 ff020000000000000000000000000001 8800 0000 20000000 20010db8000000000000000000000010 0201 020000000011",
	"ping6":         "020000000010 020000000042 86dd 60000000 0008 3a 40 20010db8000000000000000000000066 20010db8000000000000000000000010 8000 0000 00000000",
	"router":        "333300000001 020000000010 86dd 60000000 0010 3a ff fe800000000000000000000000000010 ff020000000000000000000000000001 8600 0000 00000000 0000000000000000",
	"syn6 behind":   "020000000010 020000000042 86dd 60000000 0030 00 40 20010db8000000000000000000000066 20010db8000000000000000000000010 3c00 010400000000 2c00 010400000000 0600 0001 00000007 d431 0050 00000001 00000000 5002 faf0 0000 0000",
	"later piece6":  "020000000010 020000000042 86dd 60000000 0030 2c 40 20010db8000000000000000000000066 20010db8000000000000000000000010 0600 0009 00000007 d431 0050 00000001 00000000 5002 faf0 0000 0000",
	"lldp":          "ffffffffffff 020000000042 88cc 0207040200000000420000",
	"inner tag":     "ffffffffffff 020000000042 8100 006e 0806 0001 0800 06 04 0001 020000000042 c0000242 000000000000 c000020a",
}

func sample(t testing.TB, name string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(samples[name], " ", ""))
	if err != nil || len(b) == 0 {
		t.Fatalf("sample %q: %v", name, err)
	}
	return b
}

func TestDecode(t *testing.T) {
	intruder, host, none := [6]byte{2, 5: 0x42}, [6]byte{2, 5: 0x10}, [6]byte{}
	everybody, group, nodes := [6]byte{255, 255, 255, 255, 255, 255}, [6]byte{0x33, 0x33, 0xff, 0, 0, 0x10}, [6]byte{0x33, 0x33, 0, 0, 0, 1}
	a := netip.MustParseAddr
	intruder4, host4, intruder6, host6 := a("192.0.2.66"), a("192.0.2.10"), a("2001:db8::66"), a("2001:db8::10")
	want := map[string]Frame{
		"arp request":   {Kind: ARPRequest, TargetMAC: everybody, SourceMAC: intruder, SenderMAC: intruder, Source: intruder4, Target: host4},
		"arp reply":     {Kind: ARPReply, TargetMAC: intruder, SourceMAC: host, SenderMAC: host, Source: host4, Target: intruder4},
		"syn":           {Kind: SYN, TargetMAC: host, SourceMAC: intruder, Source: intruder4, Target: host4, SourcePort: 54321, Port: 80},
		"syn, options":  {Kind: SYN, TargetMAC: host, SourceMAC: intruder, Source: intruder4, Target: host4, SourcePort: 54321, Port: 80},
		"first piece":   {Kind: Datagram, TargetMAC: host, SourceMAC: intruder, Source: intruder4, Target: host4, SourcePort: 54321, Port: 161},
		"datagram":      {Kind: Datagram, TargetMAC: host, SourceMAC: intruder, Source: intruder4, Target: host4, SourcePort: 54321, Port: 161},
		"ping":          {Kind: Echo, TargetMAC: host, SourceMAC: intruder, Source: intruder4, Target: host4},
		"solicitation":  {Kind: Solicitation, TargetMAC: group, SourceMAC: intruder, SenderMAC: intruder, Source: intruder6, Target: host6},
		"dad":           {Kind: Solicitation, TargetMAC: group, SourceMAC: intruder, SenderMAC: none, Source: a("::"), Target: host6},
		"advertisement": {Kind: Advertisement, TargetMAC: nodes, SourceMAC: host, SenderMAC: [6]byte{2, 5: 0x11}, Source: a("fe80::10"), Target: host6},
		"ping6":         {Kind: Echo, TargetMAC: host, SourceMAC: intruder, Source: intruder6, Target: host6},
		"syn6 behind":   {Kind: SYN, TargetMAC: host, SourceMAC: intruder, Source: intruder6, Target: host6, SourcePort: 54321, Port: 80},
	}
	vm := virtual(t, AllKinds)
	for name := range samples {
		var f Frame
		ok := decode(sample(t, name), &f)
		w, wanted := want[name]
		if ok != wanted {
			t.Errorf("%s: decoded %v, want %v", name, ok, wanted)
		}
		if diff := cmp.Diff(w, f, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); wanted && diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if n, err := vm.Run(sample(t, name)); err != nil || n > 0 != wanted {
			t.Errorf("%s: the filter returns %d, %v; want taken %v", name, n, err, wanted)
		}
	}
}

// A filter for some kinds takes those and no others.
func TestFilterByKind(t *testing.T) {
	for k := ARPRequest; k <= lastKind; k++ {
		vm := virtual(t, Only(k))
		for name := range samples {
			var f Frame
			want := decode(sample(t, name), &f) && f.Kind == k
			if n, err := vm.Run(sample(t, name)); err != nil || n > 0 != want {
				t.Errorf("filter for %s, %s: it returns %d, %v; want taken %v", k, name, n, err, want)
			}
		}
	}
}

// virtual is the filter in package bpf's own machine, which is no kernel's. It
// knows no ancillary data, so the part about them is left out.
func virtual(t testing.TB, kinds Kinds) *bpf.VM {
	t.Helper()
	raw, err := assemble(selection(kinds))
	if err != nil {
		t.Fatal(err)
	}
	program, ok := bpf.Disassemble(raw)
	if !ok {
		t.Fatal("the filter is not what package bpf assembles")
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

// The filter takes exactly what decode reads, and as much of it as decode reads.
func FuzzDecode(f *testing.F) {
	for name := range samples {
		f.Add(sample(f, name))
	}
	vm := virtual(f, AllKinds)
	f.Fuzz(func(t *testing.T, b []byte) {
		var whole, cut Frame
		ok := decode(b, &whole)
		n, err := vm.Run(b)
		if err != nil {
			t.Fatal(err)
		}
		if ok != (n > 0) {
			t.Fatalf("decoded %v, but the filter returns %d", ok, n)
		}
		if ok && (!decode(b[:min(n, len(b))], &cut) || cut != whole) {
			t.Fatalf("of %d bytes the filter lets %d through, which read as\n%+v, not\n%+v", len(b), n, cut, whole)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	frame := sample(b, "syn")
	var f Frame
	b.ReportAllocs()
	for b.Loop() {
		decode(frame, &f)
	}
}
