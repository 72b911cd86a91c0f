package firewall

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"

	"decoynet/deception"
)

// sample rules with a set, a map, a verdict map and two chains.
func sampleRuleset(edit ...func(*ruleset)) *ruleset {
	r := newRuleset()
	r.counters["zone-a"] = true
	s := r.set(newSet("zone-set", nftables.TypeIPAddr, nftables.SetDatatype{}))
	s.interval = true
	s.add(element{key: "\x0a\x00\x00\x00", last: "\x0a\x00\x00\xff"})
	m := r.set(newSet("zone-map", nftables.TypeInetService, nftables.TypeMark))
	m.add(element{key: "\x00\x50\x00\x00", val: "mark"})
	v := r.set(newSet("zone-vmap", nftables.TypeIFName, nftables.TypeVerdict))
	v.add(element{key: string(ifname("eth0")), jump: "zone-a-in"})
	r.chain("zone-base", &hook{kind: nftables.ChainTypeFilter, hook: 1, priority: 0}).add("all", iifGoto("zone-vmap"))
	r.chain("zone-a-in", nil).add("none", drop())
	for _, f := range edit {
		f(r)
	}
	return r
}

// words writes a plan down shortly.
func (p *plan) words() []string {
	var out []string
	list := func(what string, names []string) {
		for _, n := range names {
			out = append(out, what+" "+n)
		}
	}
	elements := func(what string, changes []elementChange) {
		for _, c := range changes {
			for range c.elements {
				out = append(out, what+" of "+c.set.name)
			}
		}
	}
	list("+counter", p.newCounters)
	for _, s := range p.newSets {
		out = append(out, "+set "+s.name)
	}
	for _, c := range p.newChains {
		out = append(out, "+chain "+c.name)
	}
	list("flush", p.flush)
	list("redo chain", p.drop)
	list("redo set", p.remake)
	elements("-element", p.delElements)
	elements("+element", p.addElements)
	for _, c := range p.fill {
		out = append(out, "fill "+c.name)
	}
	list("-set", p.delSets)
	list("-chain", p.delChains)
	list("-counter", p.delCounters)
	return out
}

func TestDiff(t *testing.T) {
	all := scope{word: "zone"}
	shared := scope{word: "zone", element: func(_ *set, e element) bool { return e.val != "other" }}
	for _, tc := range []struct {
		name       string
		have, want *ruleset
		scope      scope
		keep       bool
		plan       []string
	}{
		{name: "same", have: sampleRuleset(), want: sampleRuleset(), scope: all},
		{
			name: "first", have: newRuleset(), want: sampleRuleset(), scope: all,
			plan: []string{
				"+counter zone-a", "+set zone-map", "+set zone-set", "+set zone-vmap", "+chain zone-a-in", "+chain zone-base",
				"+element of zone-map", "+element of zone-set", "+element of zone-vmap", "fill zone-a-in", "fill zone-base",
			},
		},
		{
			name: "none any more", have: sampleRuleset(), want: newRuleset(), scope: all,
			plan: []string{
				"flush zone-a-in", "flush zone-base", "-set zone-map", "-set zone-set", "-set zone-vmap",
				"-chain zone-a-in", "-chain zone-base", "-counter zone-a",
			},
		},
		{
			name: "others' objects stay", scope: all, want: sampleRuleset(),
			have: sampleRuleset(func(r *ruleset) {
				r.chain("steer", nil)
				r.chain("zones", nil)
				r.counters["zonec"] = true
				r.set(newSet("x-zone", nftables.TypeIPAddr, nftables.SetDatatype{}))
			}),
		},
		{
			name: "one rule", scope: all, want: sampleRuleset(),
			have: sampleRuleset(func(r *ruleset) { r.chains["zone-a-in"].rules[0].comment = "by hand" }),
			plan: []string{"flush zone-a-in", "fill zone-a-in"},
		},
		{
			name: "another hook", scope: all, want: sampleRuleset(),
			have: sampleRuleset(func(r *ruleset) { r.chains["zone-base"].hook.priority = 7 }),
			plan: []string{"+chain zone-base", "flush zone-base", "redo chain zone-base", "fill zone-base"},
		},
		{
			name: "another type of set: every rule could refer to it", scope: all, want: sampleRuleset(),
			have: sampleRuleset(func(r *ruleset) { r.sets["zone-map"].key = nftables.TypeIPAddr }),
			plan: []string{
				"+set zone-map", "flush zone-a-in", "flush zone-base", "redo set zone-map",
				"+element of zone-map", "fill zone-a-in", "fill zone-base",
			},
		},
		{
			name: "another value for a key", scope: all, keep: true, want: sampleRuleset(),
			have: sampleRuleset(func(r *ruleset) {
				r.sets["zone-map"].elements = map[string]element{}
				r.sets["zone-map"].add(element{key: "\x00\x50\x00\x00", val: "old"})
			}),
			plan: []string{"-element of zone-map", "+element of zone-map"},
		},
		{
			name: "additions first: what is superfluous stays", scope: all, keep: true, want: sampleRuleset(),
			have: sampleRuleset(func(r *ruleset) {
				r.sets["zone-set"].add(element{key: "\x0b\x00\x00\x00", last: "\x0b\x00\x00\xff"})
				r.counters["zone-b"] = true
				r.chain("zone-b-in", nil)
			}),
		},
		{
			name: "additions first: but not an overlapping interval", scope: all, keep: true, want: sampleRuleset(),
			have: sampleRuleset(func(r *ruleset) {
				r.sets["zone-set"].elements = map[string]element{}
				r.sets["zone-set"].add(element{key: "\x0a\x00\x00\x80", last: "\x0a\x00\x01\x00"})
			}),
			plan: []string{"-element of zone-set", "+element of zone-set"},
		},
		{
			name: "others' elements of a shared map stay", scope: shared, want: sampleRuleset(),
			have: sampleRuleset(func(r *ruleset) {
				r.sets["zone-map"].add(element{key: "\x00\x51\x00\x00", val: "other"})
				r.sets["zone-map"].add(element{key: "\x00\x52\x00\x00", val: "mine"})
			}),
			plan: []string{"-element of zone-map"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := diff(tc.have, tc.want, tc.scope, tc.keep)
			if d := cmp.Diff(tc.plan, p.words()); d != "" {
				t.Error(d)
			}
			if p.empty() != (len(tc.plan) == 0) || p.status().Changed != (len(tc.plan) > 0) {
				t.Errorf("empty %v, status %+v", p.empty(), p.status())
			}
		})
	}
}

func TestDigestFollowsDiff(t *testing.T) {
	same := sampleRuleset()
	if same.digest() != sampleRuleset().digest() {
		t.Error("equal rulesets differ")
	}
	for i, edit := range []func(*ruleset){
		func(r *ruleset) { r.counters["zone-b"] = true },
		func(r *ruleset) { r.chains["zone-base"].hook.priority++ },
		func(r *ruleset) { r.chains["zone-a-in"].add("more", drop()) },
		func(r *ruleset) { r.sets["zone-map"].add(element{key: "k", val: "v"}) },
		func(r *ruleset) { r.sets["zone-set"].interval = false },
		func(r *ruleset) { delete(r.sets, "zone-set") },
	} {
		if same.digest() == sampleRuleset(edit).digest() {
			t.Errorf("edit %d does not show", i)
		}
	}
}

func TestKeys(t *testing.T) {
	for _, tc := range []struct {
		key, next string
		ok        bool
	}{
		{"\x0a\x00\x00\xff", "\x0a\x00\x01\x00", true},
		{"\x00\xff\xff\xff", "\x01\x00\x00\x00", true},
		{"\xff\xff\xff\xff", "", false},
	} {
		next, ok := nextKey([]byte(tc.key))
		if string(next) != tc.next || ok != tc.ok {
			t.Errorf("after %x: %x, %v", tc.key, next, ok)
		}
		if ok && string(previousKey(next)) != tc.key {
			t.Errorf("before %x: %x", next, previousKey(next))
		}
	}
}

// A state that cannot be written is refused before the kernel is touched, and
// says what is wrong with it.
func TestInvalidStates(t *testing.T) {
	port := deception.PortRange{Transport: deception.TCP, First: 1, Last: 1}
	redirect := func(t deception.Transport, decoy, service string) Redirect {
		d, _ := netip.ParseAddrPort(decoy)
		s, _ := netip.ParseAddrPort(service)
		return Redirect{t, d, s}
	}
	path := func(edit func(*KernelPath)) func() error {
		k := KernelPath{Index: 1, HostLink: "dnv-1", Redirects: []Redirect{redirect(deception.TCP, "192.0.2.1:80", "10.0.0.1:80")}}
		edit(&k)
		return func() error { _, err := ApplyKernelPath(context.Background(), nil, nil, k); return err }
	}
	zones := func(z ...ZoneRules) func() error {
		return func() error { _, err := ApplyZones(context.Background(), nil, z); return err }
	}
	for _, tc := range []struct {
		name string
		err  func() error
		says string
	}{
		{"no zone name", zones(ZoneRules{Link: "br0"}), `zone name ""`},
		{"odd zone name", zones(ZoneRules{Zone: "a b", Link: "br0"}), `zone name "a b"`},
		{"no link", zones(ZoneRules{Zone: "a"}), `link name ""`},
		{"long link", zones(ZoneRules{Zone: "a", Link: strings.Repeat("x", 16)}), "at most 15"},
		{"two zones on a link", zones(ZoneRules{Zone: "a", Link: "br0"}, ZoneRules{Zone: "b", Link: "br0"}), "listed twice"},
		{"a zone twice", zones(ZoneRules{Zone: "a", Link: "br0"}, ZoneRules{Zone: "a", Link: "br1"}), "listed twice"},
		{"allow without ports", zones(ZoneRules{Zone: "a", Link: "br0", Allow: []deception.Allow{{To: netip.MustParsePrefix("::/0")}}}), "address and ports"},
		{"allow without address", zones(ZoneRules{Zone: "a", Link: "br0", Allow: []deception.Allow{{Ports: []deception.PortRange{port}}}}), "address and ports"},
		{"index 0", path(func(k *KernelPath) { k.Index = 0 }), "segment index 0"},
		{"index of MarkSelf", path(func(k *KernelPath) { k.Index = 0xffff }), "segment index 65535"},
		{"foreign link", path(func(k *KernelPath) { k.HostLink = "eth0" }), "begins with dnv-"},
		{"only the prefix", path(func(k *KernelPath) { k.HostLink = "dnv-" }), "begins with dnv-"},
		{"mixed families", path(func(k *KernelPath) { k.Redirects[0] = redirect(deception.TCP, "192.0.2.1:80", "[::1]:80") }), "families differ"},
		{"no port", path(func(k *KernelPath) { k.Redirects[0] = redirect(deception.TCP, "192.0.2.1:0", "10.0.0.1:80") }), "port is missing"},
		{"no service", path(func(k *KernelPath) { k.Redirects[0] = redirect(deception.TCP, "192.0.2.1:80", "") }), "address or port is missing"},
		{"other transport", path(func(k *KernelPath) { k.Redirects[0].Transport = 1 }), "neither TCP nor UDP"},
		{"no alias", path(func(k *KernelPath) { k.Reply = ReplyByAlias }), "in none of the segment's alias pools"},
		{"two services", path(func(k *KernelPath) {
			k.Redirects = append(k.Redirects, redirect(deception.TCP, "192.0.2.1:80", "10.0.0.2:80"))
		}), "leads to both"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := tc.err()
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v; want ErrInvalid with %q", err, tc.says)
			}
		})
	}
}

func TestTargets(t *testing.T) {
	k := KernelPath{}
	for _, service := range []string{"10.0.0.3:80", "10.0.0.1:80", "10.0.0.2:443", "10.0.0.2:80", "10.0.0.9:1", "[fd00::1]:1"} {
		k.Redirects = append(k.Redirects, Redirect{Service: netip.MustParseAddrPort(service)})
	}
	show := func(ranges []deception.AddrRange) (out []string) {
		for _, r := range ranges {
			out = append(out, r.String())
		}
		return out
	}
	if got := show(k.targets(true)); !slices.Equal(got, []string{"10.0.0.1-10.0.0.3", "10.0.0.9"}) {
		t.Error(got)
	}
	if got := show(k.targets(false)); !slices.Equal(got, []string{"fd00::1"}) {
		t.Error(got)
	}
	k.Reply, k.Aliases = ReplyByAlias, []netip.Prefix{netip.MustParsePrefix("10.9.1.0/24"), netip.MustParsePrefix("10.9.0.0/24")}
	if got := show(k.targets(true)); !slices.Equal(got, []string{"10.9.0.0-10.9.1.255"}) {
		t.Error(got)
	}
}
