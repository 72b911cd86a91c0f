package disguise

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"decoynet/deception"
)

// One policy at fault costs the others nothing.
func TestCompile(t *testing.T) {
	vendor := deception.MACPrefix{0x00, 0x14, 0x22}
	good := Policy{Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28")}, OUI: vendor}
	for want, bad := range map[string]Policy{
		"192.0.2.1/28":         {Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/28")}, OUI: vendor},
		"::ffff:192.0.2.0/124": {Prefixes: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("::ffff:192.0.2.0"), 124)}, OUI: vendor},
		"invalid Prefix":       {Prefixes: []netip.Prefix{{}}, OUI: vendor},
		"groups":               {Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.16/28")}, OUI: deception.MACPrefix{1, 2, 3}},
		`"beos"`:               {Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.16/28")}, Personality: "beos"},
		"two ways":             {Prefixes: good.Prefixes, OUI: vendor, Seed: 7},
	} {
		table, err := compile([]Policy{good, bad})
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
		if l := table[good.Prefixes[0]]; len(table) != 1 || l.HasMAC != 1 {
			t.Errorf("%s: table %v", want, table)
		}
	}
}

// What stands is known by a fingerprint, which must tell any two states apart.
func TestFingerprint(t *testing.T) {
	base := Policy{Prefixes: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28")}, OUI: deception.MACPrefix{0x00, 0x14, 0x22}, Seed: 1}
	other := func(change func(*Policy)) Policy {
		p := base
		change(&p)
		return p
	}
	seen := map[string]bool{}
	for _, p := range []Policy{
		base,
		other(func(p *Policy) { p.Prefixes = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/29")} }),
		other(func(p *Policy) { p.Prefixes = []netip.Prefix{netip.MustParsePrefix("c000:200::/28")} }),
		other(func(p *Policy) { p.OUI[2]++ }),
		other(func(p *Policy) { p.Seed++ }),
		other(func(p *Policy) { p.Personality = deception.PersonalityWindows }),
	} {
		table, err := compile([]Policy{p})
		if err != nil {
			t.Fatal(err)
		}
		f := table.fingerprint([]byte("program"), []byte{1, 2, 3, 4, 5, 6})
		if seen[f] {
			t.Errorf("%v has the fingerprint of another", p)
		}
		seen[f] = true
		if table.fingerprint([]byte("another"), []byte{1, 2, 3, 4, 5, 6}) == f || table.fingerprint([]byte("program"), []byte{1, 2, 3, 4, 5, 7}) == f {
			t.Error("program or lan0's address change nothing")
		}
	}
}
