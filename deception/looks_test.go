package deception

import "testing"

func TestMACPrefix(t *testing.T) {
	for text, want := range map[string]MACPrefix{
		"00:14:22": {0x00, 0x14, 0x22},
		"3C-D9-2B": {0x3c, 0xd9, 0x2b},
		"10:20:30": {0x10, 0x20, 0x30},
		"02:00:00": {0x02, 0x00, 0x00}, // locally administered: nobody's, but possible
	} {
		got, err := ParseMACPrefix(text)
		if err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
		if again, err := ParseMACPrefix(got.String()); err != nil || again != got {
			t.Errorf("%s is written %s, which is read as %s, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"", "00:14", "00:14:22:01", "00:14:22:01:02:03", "0:14:22", "00:1:422", "001422", "00:14:2g", "01:14:22", "00:00:00", "::"} {
		if got, err := ParseMACPrefix(text); err == nil {
			t.Errorf("%q is taken as %v", text, got)
		}
	}
}

func TestVendorsAreHosts(t *testing.T) {
	seen := map[MACPrefix]string{}
	for _, name := range Vendors() {
		p, ok := VendorPrefix(name)
		if again, err := ParseMACPrefix(p.String()); !ok || err != nil || again != p {
			t.Errorf("%s: %v, %v", name, p, err)
		}
		if p[0]&2 != 0 {
			t.Errorf("%s: %s is locally administered", name, p)
		}
		if other := seen[p]; other != "" {
			t.Errorf("%s and %s share %s", name, other, p)
		}
		seen[p] = name
	}
}
