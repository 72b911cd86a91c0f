package route

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"decoynet/internal/kernel/netns/netnstest"
)

// scattered returns n addresses of which no two make a prefix.
func scattered(n int) []netip.Prefix {
	out := make([]netip.Prefix, n)
	for i := range out {
		v := uint32(10<<24) + uint32(i)*2
		out[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}), 32)
	}
	return out
}

func TestLoadsFiftyThousandRoutesInASecond(t *testing.T) {
	ns := netnstest.New(t, "bulk")
	netnstest.IP(t, ns, "link set lo up")
	ctx := context.Background()
	d := Desired{Local4: scattered(50_000)}
	took := func(what string, d Desired, added, removed int) time.Duration {
		t.Helper()
		start := time.Now()
		s, err := Apply(ctx, ns, d)
		dur := time.Since(start)
		if err != nil || s.Added != added || s.Removed != removed {
			t.Fatalf("%s: %+v, %v", what, s, err)
		}
		t.Logf("%s: %v", what, dur)
		return dur
	}
	// The figure is for an idle machine; a busy one may take its time.
	if d := took("load", d, 50_000, 0); d > 5*time.Second {
		t.Errorf("loading took %v", d)
	}
	if n := strings.Count(netnstest.IP(t, ns, "route show table local proto 142"), "\n"); n != 50_000 {
		t.Errorf("ip shows %d routes", n)
	}
	took("nothing to do", d, 0, 0)
	took("one of them goes", Desired{Local4: d.Local4[:49_999]}, 0, 1)
	took("unload", Desired{}, 0, 49_999)
}
