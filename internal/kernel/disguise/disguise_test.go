package disguise

import (
	"net/netip"
	"testing"

	"pgregory.net/rapid"

	"decoynet/deception"
)

func TestPermutation(t *testing.T) {
	keys := roundKeys(Seed("machine", "node", "office"))
	seen := make([]bool, 1<<24)
	for x := range uint32(1 << 24) {
		y := permute(x, keys)
		if y >= 1<<24 || seen[y] {
			t.Fatalf("%06x leads to %06x, which is too large or taken", x, y)
		}
		seen[y] = true
	}
}

// A MAC address is that of the vendor, of one host, and the same for ever: a
// change of the function would change every decoy in every neighbour's cache.
func TestMAC(t *testing.T) {
	p := Policy{OUI: deception.MACPrefix{0x00, 0x14, 0x22}, Seed: Seed("machine", "node", "office")}
	for addr, want := range map[string]string{
		"192.0.2.100":   "00:14:22:c0:6c:a2",
		"192.0.2.101":   "00:14:22:8e:7b:41",
		"2001:db8::100": "00:14:22:c8:2d:82",
	} {
		if got := p.MAC(netip.MustParseAddr(addr)).String(); got != want {
			t.Errorf("%s: %s, want %s", addr, got, want)
		}
	}
	if got := (&Policy{Seed: 1}).MAC(netip.MustParseAddr("192.0.2.1")); got != nil {
		t.Errorf("without a vendor: %s", got)
	}
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Uint32().Draw(t, "a"), rapid.Uint32().Draw(t, "b")
		q := Policy{OUI: p.OUI, Seed: rapid.Uint64().Draw(t, "seed")}
		same := q.MAC(address(a)).String() == q.MAC(address(b)).String()
		if same != (a&0xffffff == b&0xffffff) {
			t.Fatalf("%s and %s: one MAC address is %v", address(a), address(b), same)
		}
	})
}

func address(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

func TestSeedDependsOnAll(t *testing.T) {
	seen := map[uint64]bool{}
	for _, parts := range [][3]string{{"m", "n", "s"}, {"m", "ns", ""}, {"mn", "", "s"}, {"m", "n", "t"}, {"", "n", "s"}} {
		seed := Seed(parts[0], parts[1], parts[2])
		if seen[seed] {
			t.Errorf("%v: a seed that others have", parts)
		}
		seen[seed] = true
	}
}
