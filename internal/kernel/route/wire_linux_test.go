package route

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestRouteSurvivesTheWire(t *testing.T) {
	for _, r := range []routeEntry{
		{Dst: prefix("192.0.2.7/32"), Table: TableLocal, Type: Local, Dev: 1},
		{Dst: prefix("0.0.0.0/0"), Table: 14301, Type: Unicast, Dev: 300, Via: addr("169.254.77.2"), Onlink: true, Metric: 5},
		{Dst: prefix("::/0"), Table: TableMain, Type: Unicast, Dev: 2, Via: addr("fe80::1"), Onlink: true, Metric: metric6},
		{Dst: prefix("2001:db8::/33"), Table: TableZone, Type: Local, Dev: 1, Metric: metric6},
	} {
		got := parseRoute(appendRoute(nil, r), familyOf(r.Dst.Addr().Is4()))
		if len(got) != 1 || got[0] != r {
			t.Errorf("sent %+v, read %+v", r, got)
		}
		foreign := appendRoute(nil, r)
		foreign[5] = unix.RTPROT_STATIC
		if got := parseRoute(foreign, foreign[0]); got != nil {
			t.Errorf("a route of protocol %d was taken for ours", foreign[5])
		}
	}
}

func TestRuleSurvivesTheWire(t *testing.T) {
	for _, r := range []ruleEntry{
		{Family: IPv4, Priority: 14200, IIF: "br-linux", Table: TableZone, Action: toTable},
		{Family: IPv6, Priority: 14201, Mark: 0x0dec0001, Mask: 0xffff0000, Table: 14301, Action: toTable},
		{Family: IPv4, Priority: 14202, From: prefix("10.1.0.0/24"), To: prefix("10.2.0.0/16"), Table: TableMain, Action: toTable},
		{Family: IPv6, Priority: 14203, From: prefix("fd00:1::/64"), Table: TableMain, Action: toTable},
	} {
		got, ours := parseRule(appendRule(nil, r), familyOf(r.Family == IPv4))
		if !ours || got != r {
			t.Errorf("sent %+v, read %+v (ours %v)", r, got, ours)
		}
	}
}

func TestAddrSurvivesTheWire(t *testing.T) {
	want := heldAddr{addrEntry: addrEntry{Addr: addr("2001:db8::7"), Bits: 128, Dev: 9}, flags: decoyFlags, proto: Protocol}
	got, ok := parseAddr(appendAddr(nil, want.addrEntry))
	if !ok || got != want {
		t.Errorf("sent %+v, read %+v", want, got)
	}
}

// Cut or mangled messages must not be read beyond their end.
func TestParsersBearGarbage(t *testing.T) {
	r := routeEntry{Dst: prefix("10.0.0.0/8"), Table: TableMain, Type: Unicast, Dev: 2, Via: addr("10.0.0.1")}
	full := appendRoute(nil, r)
	for n := range full {
		parseRoute(full[:n], unix.AF_INET)
		parseRule(full[:n], unix.AF_INET)
		parseAddr(full[:n])
		parseHops(r, full[:n])
		answer(unix.NlMsghdr{Type: unix.NLMSG_ERROR, Flags: flagTLVs}, full[:n])
	}
	for i := range full {
		for _, v := range []byte{0, 1, 0x7f, 0xff} {
			bad := append([]byte(nil), full...)
			bad[i] = v
			parseRoute(bad, unix.AF_INET)
			parseHops(r, bad)
		}
	}
}

func TestMultipathIsOneEntryPerHop(t *testing.T) {
	r := routeEntry{Dst: prefix("2001:db8::/32"), Table: TableMain, Type: Unicast, Metric: metric6}
	msg := appendRoute(nil, r)
	var hops []byte
	for i, via := range []string{"fe80::1", "fe80::2"} {
		a := addr(via).As16()
		hops = native.AppendUint16(hops, 8+20)
		hops = append(hops, unix.RTNH_F_ONLINK, 0)
		hops = native.AppendUint32(hops, uint32(i+5))
		hops = attribute(hops, unix.RTA_GATEWAY, a[:])
	}
	msg = attribute(msg, unix.RTA_MULTIPATH, hops)
	want := []routeEntry{r, r}
	want[0].Dev, want[0].Via, want[0].Onlink = 5, addr("fe80::1"), true
	want[1].Dev, want[1].Via, want[1].Onlink = 6, addr("fe80::2"), true
	equal := cmp.Comparer(func(a, b routeEntry) bool { return a == b })
	if diff := cmp.Diff(want, parseRoute(msg, unix.AF_INET6), equal); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestOurAddrs(t *testing.T) {
	held := func(a string, dev int, flags uint32, proto uint8) heldAddr {
		return heldAddr{addrEntry{addr(a), 128, dev}, flags, proto}
	}
	decoy := held("2001:db8::1", 2, decoyFlags|unix.IFA_F_PERMANENT, 0)
	for _, tt := range []struct {
		name string
		held []heldAddr
		link int
		want []string
	}{
		{"by origin, on any interface", []heldAddr{held("2001:db8::2", 7, decoyFlags, Protocol), decoy}, 2, []string{"2001:db8::2"}},
		{"a kernel that tells origins: flags prove nothing", []heldAddr{held("::1", 1, 0, 1), decoy}, 2, nil},
		{"a kernel that does not", []heldAddr{held("::1", 1, 0, 0), decoy}, 2, []string{"2001:db8::1"}},
		{"another interface", []heldAddr{held("::1", 1, 0, 0), decoy}, 3, nil},
		{"other flags", []heldAddr{held("2001:db8::3", 2, unix.IFA_F_NODAD, 0)}, 2, nil},
	} {
		var got []string
		for _, a := range ourAddrs(tt.held, tt.link) {
			got = append(got, a.Addr.String())
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

func TestAnswer(t *testing.T) {
	refusal := native.AppendUint32(nil, 0xffffffff-uint32(unix.EEXIST)+1)
	capped := append(refusal, make([]byte, unix.SizeofNlMsghdr)...)
	said := attribute(capped, attrErrMsg, []byte("no such thing\x00"))

	if err := answer(unix.NlMsghdr{Type: unix.NLMSG_ERROR}, make([]byte, 20)); err != nil {
		t.Errorf("an acknowledgement is %v", err)
	}
	if err := answer(unix.NlMsghdr{Type: unix.NLMSG_DONE}, nil); err != nil {
		t.Errorf("the end of a dump is %v", err)
	}
	if err := answer(unix.NlMsghdr{Type: unix.NLMSG_ERROR, Flags: flagCapped}, capped); !errors.Is(err, unix.EEXIST) {
		t.Errorf("a refusal is %v", err)
	}
	err := answer(unix.NlMsghdr{Type: unix.NLMSG_ERROR, Flags: flagCapped | flagTLVs}, said)
	if !errors.Is(err, unix.EEXIST) || err.Error() != "file exists (no such thing)" {
		t.Errorf("an explained refusal is %v", err)
	}
}
