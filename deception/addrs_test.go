package deception

import (
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseAddrRange(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.10":              "192.0.2.10",
		"192.0.2.10-192.0.2.20":   "192.0.2.10-192.0.2.20",
		"192.0.2.10 - 192.0.2.20": "192.0.2.10-192.0.2.20",
		"192.0.2.64/28":           "192.0.2.64-192.0.2.79",
		"2001:db8::/120":          "2001:db8::-2001:db8::ff",
		"192.0.2.7/32":            "192.0.2.7",
		"192.0.2.20-192.0.2.10":   "error: runs backwards; write 192.0.2.10-192.0.2.20",
		"192.0.2.1-2001:db8::1":   "error: mixes IPv4 and IPv6",
		"192.0.2.65/28":           "error: has host bits set; write 192.0.2.64/28",
		"192.0.2.300":             "error: bad address",
		"fe80::1%eth0":            "error: bad address",
		"::ffff:192.0.2.1":        "error: bad address",
		"":                        "error: bad address",
		"192.0.2.1-":              "error: bad address",
		"::ffff:192.0.2.0/120":    "error: bad prefix",
	} {
		r, err := ParseAddrRange(in)
		got := r.String()
		if err != nil {
			got = "error: " + err.Error()
		}
		if fault, ok := strings.CutPrefix(want, "error: "); ok {
			if err == nil || !strings.Contains(err.Error(), fault) {
				t.Errorf("ParseAddrRange(%q) = %s, want an error with %q", in, got, fault)
			}
		} else if got != want {
			t.Errorf("ParseAddrRange(%q) = %s, want %s", in, got, want)
		}
	}
}

func addrRange(t *testing.T, s string) AddrRange {
	t.Helper()
	r, err := ParseAddrRange(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// The prefixes of a range hold each of its addresses once and no other.
func TestPrefixesCoverTheRange(t *testing.T) {
	for _, s := range []string{
		"192.0.2.0/24", "192.0.2.1-192.0.2.254", "192.0.2.7", "192.0.2.100-192.0.2.150",
		"0.0.0.0-0.0.1.255", "255.255.255.250-255.255.255.255", "2001:db8::1-2001:db8::1ff",
		"ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
	} {
		r := addrRange(t, s)
		var n uint64
		next := r.From
		for _, p := range r.Prefixes() {
			if p.Addr() != next {
				t.Errorf("%s: prefix %s does not begin at %s", s, p, next)
			}
			n += RangeOf(p).Len()
			next = LastAddr(p).Next()
		}
		if n != r.Len() {
			t.Errorf("%s: prefixes hold %d addresses, want %d", s, n, r.Len())
		}
	}
}

func TestLenAndNth(t *testing.T) {
	for _, c := range []struct {
		in   string
		want uint64
	}{
		{"192.0.2.9", 1},
		{"0.0.0.0/0", 1 << 32},
		{"2001:db8::/64", math.MaxUint64},
		{"2001:db8::/65", 1 << 63},
		{"2001:db8:0:0:ffff:ffff:ffff:ffff-2001:db8:0:1::1", 3},
		{"::/0", math.MaxUint64},
	} {
		if got := addrRange(t, c.in).Len(); got != c.want {
			t.Errorf("Len(%s) = %d, want %d", c.in, got, c.want)
		}
	}
	r := addrRange(t, "2001:db8:0:0:ffff:ffff:ffff:fffe-2001:db8:0:1::1")
	for n, want := range []string{"2001:db8::ffff:ffff:ffff:fffe", "2001:db8::ffff:ffff:ffff:ffff", "2001:db8:0:1::", "2001:db8:0:1::1"} {
		a := Nth(r.From, uint64(n))
		if a.String() != want || r.Offset(a) != uint64(n) {
			t.Errorf("Nth(%d) = %s with offset %d, want %s", n, a, r.Offset(a), want)
		}
	}
	if a := Nth(netip.MustParseAddr("255.255.255.255"), 1); a.IsValid() {
		t.Errorf("an address behind the last one: %s", a)
	}
}

func TestSortRangesJoins(t *testing.T) {
	in := []string{"192.0.2.20-192.0.2.30", "2001:db8::5", "192.0.2.31", "192.0.2.10", "192.0.2.25-192.0.2.28", "255.255.255.255", "2001:db8::6"}
	var ranges []AddrRange
	for _, s := range in {
		ranges = append(ranges, addrRange(t, s))
	}
	var got []string
	for _, r := range SortRanges(ranges) {
		got = append(got, r.String())
	}
	want := []string{"192.0.2.10", "192.0.2.20-192.0.2.31", "255.255.255.255", "2001:db8::5-2001:db8::6"}
	if !slices.Equal(got, want) {
		t.Errorf("SortRanges = %v, want %v", got, want)
	}
}

func TestContainsKeepsFamiliesApart(t *testing.T) {
	all4, all6 := addrRange(t, "0.0.0.0/0"), addrRange(t, "::/0")
	if all4.Contains(netip.MustParseAddr("::1")) || all6.Contains(netip.MustParseAddr("127.0.0.1")) || all4.Overlaps(all6) {
		t.Error("IPv4 and IPv6 ranges contain each other's addresses")
	}
}

func TestParsePortRange(t *testing.T) {
	for in, want := range map[string]string{
		"80": "80", "80/tcp": "80", "161/udp": "161/udp", "8000-8100": "8000-8100", "1-65535/udp": "1-65535/udp",
		"0": "", "65536": "", "8100-8000": "", "80/sctp": "", "": "", "-1": "", "http": "", "80-": "",
	} {
		r, err := ParsePortRange(in)
		if want == "" && err == nil || want != "" && r.String() != want {
			t.Errorf("ParsePortRange(%q) = %s, %v; want %q", in, r, err, want)
		}
	}
}
