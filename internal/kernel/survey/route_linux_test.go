package survey

import (
	"errors"
	"net/netip"
	"testing"

	"decoynet/internal/kernel/netns/netnstest"
)

func TestRouteTo(t *testing.T) {
	ns := netnstest.New(t, "route")
	for _, line := range []string{
		"link add p0 type veth peer name p1", "link set p0 up", "link set p1 up", "link set lo up",
		"address add 192.0.2.1/24 dev p0", "route add 198.51.100.0/24 via 192.0.2.254",
	} {
		netnstest.IP(t, ns, line)
	}
	for to, want := range map[string]Route{
		"192.0.2.7":    {Dev: "p0"},
		"198.51.100.1": {Dev: "p0", Via: netip.MustParseAddr("192.0.2.254")},
		"192.0.2.1":    {Dev: "lo", Local: true},
	} {
		if got, err := RouteTo(ns, netip.MustParseAddr(to)); err != nil || got != want {
			t.Errorf("to %s: %+v, %v; want %+v", to, got, err, want)
		}
	}
	for _, to := range []string{"203.0.113.1", "2001:db8::1"} {
		if got, err := RouteTo(ns, netip.MustParseAddr(to)); !errors.Is(err, ErrUnreachable) {
			t.Errorf("to %s: %+v, %v; want ErrUnreachable", to, got, err)
		}
	}
}
