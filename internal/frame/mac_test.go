package frame

import (
	"testing"

	"decoynet/deception"

	"pgregory.net/rapid"
)

func TestAddressesHoldTheKey(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		half := rapid.Uint64Range(0, 1<<45-1)
		want := deception.SessionKey{Hi: half.Draw(t, "hi"), Lo: half.Draw(t, "lo")}
		intruder, decoy := Addresses(want)
		for _, m := range []MAC{intruder, decoy} {
			if m[0]&1 != 0 || m[0]&2 == 0 {
				t.Fatalf("%s is no locally administered unicast address", m)
			}
			if back, err := ParseMAC(m.String()); err != nil || back != m {
				t.Fatalf("%s came back as %s, %v", m, back, err)
			}
		}
		if got, reversed, ok := Key(intruder, decoy); got != want || reversed || !ok {
			t.Fatalf("%+v came back as %+v, reversed %v, ok %v", want, got, reversed, ok)
		}
		if got, reversed, ok := Key(decoy, intruder); got != want || !reversed || !ok {
			t.Fatalf("%+v came back as %+v from the way back, reversed %v, ok %v", want, got, reversed, ok)
		}
	})
}

func TestForeignAddressesHaveNoKey(t *testing.T) {
	intruder, decoy := Addresses(deception.SessionKey{Hi: 1, Lo: 2})
	real := MAC{0x00, 0x1b, 0x21, 1, 2, 3}
	for _, pair := range [][2]MAC{{intruder, intruder}, {decoy, decoy}, {real, decoy}, {intruder, real}, {{}, {}}, {{0xff, 0xff}, decoy}} {
		if k, _, ok := Key(pair[0], pair[1]); ok {
			t.Errorf("%s and %s have key %+v", pair[0], pair[1], k)
		}
	}
}
