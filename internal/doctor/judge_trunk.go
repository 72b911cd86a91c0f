package doctor

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"decoynet/deception"
	"decoynet/internal/kernel/trial"
)

// missingVLAN is for a kernel without VLAN devices. Every Debian kernel has the
// module; where this one's modules lack it, it is another kernel, or its modules
// went with an upgrade that nobody has booted yet.
func missingVLAN(f *Facts, r trial.Result) Finding {
	out := missing(r, Problem)
	out.What = fmt.Sprintf("this kernel has no VLAN devices (%s, module 8021q): %v", parts[r.Feature].config, r.Err)
	out.Fix = "modprobe 8021q && echo 8021q > /etc/modules-load.d/8021q.conf"
	if !f.VLANModule {
		out.What += fmt.Sprintf("; /lib/modules/%s holds no 8021q", f.Release)
		out.Fix = "apt-get install linux-image-amd64 && reboot"
		out.Why += "; Debian's kernels have the module, linux-image-cloud-amd64 as well"
	}
	return out
}

// judgeTrunks tells what arrives at the NICs of VLAN segments.
func judgeTrunks(f *Facts) []Finding {
	var out []Finding
	for i := range f.Trunks {
		t := &f.Trunks[i]
		if t.Listened == 0 {
			continue
		}
		out = append(out, judgeTags(f, t)...)
		out = append(out, judgeTrunkMTU(f, t)...)
		out = append(out, judgeStacks(t)...)
		out = append(out, judgeVLANs(f, t)...)
	}
	return out
}

// vlansOf are the segments on a NIC, in the order of their VLANs.
func (f *Facts) vlansOf(parent string) []deception.Segment {
	out := slices.DeleteFunc(f.vlanSegments(), func(s deception.Segment) bool { return s.Parent != parent })
	slices.SortStableFunc(out, func(a, b deception.Segment) int { return int(a.VLAN) - int(b.VLAN) })
	return out
}

// switchPort says where a change of the switch belongs, by its own name for the
// port where it was heard.
func (t *TrunkFacts) switchPort() string {
	for _, n := range t.Heard.Notices {
		if n.Port != "" {
			return strings.TrimSpace(fmt.Sprintf("switch %s, port %s", n.Switch, n.Port))
		}
	}
	return "the switch, at the port of " + t.Parent
}

// native is the VLAN of frames without a tag, as far as the switch says.
func (t *TrunkFacts) native() (vlan uint16, who string) {
	for _, n := range t.Heard.Notices {
		if n.Native != 0 {
			return n.Native, n.Protocol
		}
	}
	return 0, ""
}

// carried are the VLANs that the port carries, where the switch says that.
func (t *TrunkFacts) carried() []uint16 {
	for _, n := range t.Heard.Notices {
		if len(n.VLANs) > 0 {
			return n.VLANs
		}
	}
	return nil
}

// judgeTags says which tags arrive, in one line.
func judgeTags(f *Facts, t *TrunkFacts) []Finding {
	var heard, further, configured []uint16
	for _, s := range f.vlansOf(t.Parent) {
		configured = append(configured, s.VLAN)
		if t.Heard.Tags[s.VLAN] > 0 && !slices.Contains(heard, s.VLAN) {
			heard = append(heard, s.VLAN)
		}
	}
	configured = slices.Compact(configured)
	for v := range t.Heard.Tags {
		if !slices.Contains(configured, v) {
			further = append(further, v)
		}
	}
	slices.Sort(further)
	out := Finding{Check: "trunk", Subject: t.Parent, Severity: OK}
	during := " in " + t.Listened.Round(time.Second).String()
	switch {
	case t.Heard.Frames == 0:
		out.Severity, out.What = Problem, "no frame at all arrived"+during
		out.Why, out.Fix = "is it the right NIC? A switch is silent at a port that it has shut or blocks", "ethtool "+t.Parent
		return []Finding{out}
	case len(t.Heard.Tags) == 0:
		out.Severity, out.What = Problem, fmt.Sprintf("%s arrived%s, none with a VLAN tag: the port is no trunk", plural(int(t.Heard.Frames), "frame"), during)
		out.Why = "the segments' frames need their tags"
		out.Fix, out.On = "switchport mode trunk; switchport trunk allowed vlan add "+vlanList(configured), t.switchPort()
		return []Finding{out}
	}
	out.What = numbered("VLAN", heard) + " heard" + during
	if len(heard) == 0 {
		out.What = "no VLAN of a segment heard" + during
	} else if len(heard) < len(configured) {
		out.What += fmt.Sprintf(", of %d that have segments", len(configured))
	}
	if len(further) > 0 {
		out.What += "; without a segment: " + numbered("VLAN", further)
	}
	if vlan, who := t.native(); vlan != 0 {
		out.What += fmt.Sprintf("; native VLAN %d (%s)", vlan, who)
	} else if t.Heard.Untagged > 0 {
		out.What += "; untagged frames, which are of the native VLAN"
	}
	if port := t.switchPort(); !strings.HasPrefix(port, "the ") {
		out.What += "; " + port
	}
	if t.Heard.Missed > 0 {
		out.What += fmt.Sprintf("; %d frames came too fast to be looked at", t.Heard.Missed)
	}
	return []Finding{out}
}

// ethernetMTU is what hosts send unless they are told otherwise.
const ethernetMTU = 1500

func judgeTrunkMTU(f *Facts, t *TrunkFacts) []Finding {
	l := f.Link(t.Parent)
	if l == nil || l.MTU == 0 || l.MTU >= ethernetMTU {
		return nil
	}
	return []Finding{{
		Check: "trunk", Subject: t.Parent, Severity: Problem,
		What: fmt.Sprintf("the MTU of %s is %d: hosts of its VLANs send %d bytes and a tag of 4", t.Parent, l.MTU, ethernetMTU),
		Why:  "full-size frames are lost: connections open, and hang when data comes", Fix: fmt.Sprintf("ip link set %s mtu %d", t.Parent, ethernetMTU),
	}}
}

// judgeStacks is for frames with two tags.
func judgeStacks(t *TrunkFacts) []Finding {
	if len(t.Heard.Stacks) == 0 {
		return nil
	}
	var names []string
	for s := range t.Heard.Stacks {
		names = append(names, fmt.Sprintf("%d in %d", s.Inner, s.Outer))
	}
	slices.Sort(names)
	more := ""
	if most := 4; len(names) > most {
		more = fmt.Sprintf(" and %d more", len(names)-most)
		names = names[:most]
	}
	return []Finding{{
		Check: "trunk", Subject: t.Parent, Severity: Note,
		What: fmt.Sprintf("frames with two tags arrive (802.1ad, QinQ): VLAN %s%s", strings.Join(names, ", "), more),
		Why:  "segments are in VLANs with one tag; what is inside of another is not reached",
	}}
}

// vlanCause is something that is to be said of one VLAN, or of several alike. In
// its texts, %s stands for the VLANs, %p for who was asked, %d for the decoy's
// address that was asked under.
type vlanCause struct {
	severity           Severity
	what, why, fix, on string
}

// vlanCauses collects causes, so that a hundred VLANs with one cause are one
// finding.
type vlanCauses struct {
	order []vlanCause
	of    map[vlanCause][]vlanCase
}

// vlanCase is where a cause was found.
type vlanCase struct {
	segment string
	vlan    uint16
	peer    *Peer // nil where nobody was asked
}

func (c *vlanCauses) add(s *deception.Segment, peer *Peer, cause vlanCause) {
	if c.of == nil {
		c.of = map[vlanCause][]vlanCase{}
	}
	if c.of[cause] == nil {
		c.order = append(c.order, cause)
	}
	c.of[cause] = append(c.of[cause], vlanCase{s.Name, s.VLAN, peer})
}

func (c *vlanCauses) findings(parent string) []Finding {
	var out []Finding
	for _, cause := range c.order {
		cases := c.of[cause]
		var ids []uint16
		for _, o := range cases {
			ids = append(ids, o.vlan)
		}
		subject, peer, decoy := parent, "the gateway", "a decoy"
		if len(cases) == 1 {
			subject = cases[0].segment
			if p := cases[0].peer; p != nil {
				peer, decoy = p.Addr.String(), "decoy "+p.Decoy.String()
			}
		}
		fill := func(text, vlans string) string {
			return strings.NewReplacer("%s", vlans, "%p", peer, "%d", decoy).Replace(text)
		}
		out = append(out, Finding{
			Check: "vlan", Subject: subject, Severity: cause.severity, Why: cause.why,
			What: fill(cause.what, numbered("VLAN", ids)), Fix: fill(cause.fix, vlanList(ids)), On: fill(cause.on, ""),
		})
	}
	return out
}

// judgeVLANs looks at each VLAN of a trunk.
func judgeVLANs(f *Facts, t *TrunkFacts) []Finding {
	var causes vlanCauses
	for _, s := range f.vlansOf(t.Parent) {
		facts := f.segment(s.Name)
		if facts == nil || facts.VLAN == nil || len(t.Heard.Tags) == 0 {
			continue // said for all
		}
		if facts.VLAN.Frames == 0 {
			causes.add(&s, nil, judgeSilent(t, &s, facts.VLAN))
			continue
		}
		judgePeers(f, t, &s, facts.VLAN, &causes)
	}
	return causes.findings(t.Parent)
}

// judgeSilent is for a VLAN whose tag was never seen.
func judgeSilent(t *TrunkFacts, s *deception.Segment, v *VLANFacts) vlanCause {
	port := t.switchPort()
	native, who := t.native()
	untagged := slices.IndexFunc(v.Strays, func(o Stray) bool { return o.VLAN == 0 })
	switch {
	case native == s.VLAN || untagged >= 0 && native == 0:
		sign := "the switch says by " + who
		if native != s.VLAN {
			sign = fmt.Sprintf("%s was heard without one", v.Strays[untagged].Addr)
		}
		return vlanCause{
			Problem, "%s has no tag here: it is the port's native VLAN (" + sign + ")", "the segment waits for frames with its tag",
			"switchport trunk native vlan OTHER (or vlan dot1q tag native)", port,
		}
	case len(v.Strays) > 0:
		o := v.Strays[0]
		return vlanCause{
			Problem, fmt.Sprintf("%%s is silent, and %s of its subnet was heard in VLAN %d", o.Addr, o.VLAN), "the document names the wrong VLAN, or the wrong subnet",
			fmt.Sprintf("segment %s: vlan: %d", s.Name, o.VLAN), OnDocument,
		}
	}
	for stack := range t.Heard.Stacks {
		if stack.Inner == s.VLAN {
			return vlanCause{
				Problem, fmt.Sprintf("%%s arrives inside of VLAN %d only, with two tags", stack.Outer), "the port is a tunnel's (802.1ad, QinQ); a segment needs one tag",
				"switchport mode trunk; switchport trunk allowed vlan add %s", port,
			}
		}
	}
	out := vlanCause{
		Problem, "%s never showed a frame, and its gateway answers nobody: the switch may not carry it on this port", "nobody reaches the segment's decoys",
		"switchport trunk allowed vlan add %s", port,
	}
	if n := len(v.Peers); n == 0 {
		out.severity = Note
		out.what = "%s never showed a frame: the switch may not carry it on this port, or nobody is there"
		out.why = "a document that names the segment's gateway lets it be asked"
		if slices.ContainsFunc(s.Subnets, func(n deception.Subnet) bool { return n.Gateway.IsValid() }) {
			out.why = "without --passive its gateway is asked; --listen listens for longer"
		}
	}
	if carried := t.carried(); len(carried) > 0 && !slices.Contains(carried, s.VLAN) {
		out.severity, out.what = Problem, fmt.Sprintf("%s; by LLDP the port carries %s", out.what, numbered("VLAN", carried))
	}
	return out
}

// judgePeers is for a VLAN that was heard.
func judgePeers(f *Facts, t *TrunkFacts, s *deception.Segment, v *VLANFacts, causes *vlanCauses) {
	tell := func(p Peer) bool { return p.answered() }
	if slices.ContainsFunc(v.Peers, func(p Peer) bool { return p.passes() }) {
		// Where one host is reached, it is not by the port that another is not.
		tell = func(p Peer) bool { return p.passes() }
	}
	var said *vlanCause
	var by *Peer
	for i := range v.Peers {
		if p := &v.Peers[i]; tell(*p) && (said == nil || said.severity == OK) {
			cause := judgePeer(f, t, p)
			if said == nil || cause.severity != OK {
				said, by = &cause, p
			}
		}
	}
	if said != nil {
		causes.add(s, by, *said)
	} else if len(v.Peers) == 0 {
		causes.add(s, nil, vlanCause{severity: OK, what: "%s is heard; nobody was asked there"})
	}
	for i := range v.Peers {
		if p := &v.Peers[i]; p.Gateway && !p.answered() {
			causes.add(s, p, judgeSilentGateway(p))
		}
	}
}

func judgeSilentGateway(p *Peer) vlanCause {
	out := vlanCause{
		Problem, "%s is heard, and its gateway answers nobody (%p)", "decoys cannot answer intruders from other networks",
		"subnets: gateway: ADDRESS, the router's in %s", OnDocument,
	}
	if !p.Decoy.IsValid() {
		out.severity = Note // not everybody answers when nobody's address asks
	}
	return out
}

// judgePeer tells from one host of the VLAN what becomes of the segment's frames.
func judgePeer(f *Facts, t *TrunkFacts, p *Peer) vlanCause {
	const unreachable = "decoys have a MAC address of their own: nobody can reach them"
	fix, on := f.secondMACFix(t)
	switch {
	case !p.passes() && p.Apart && p.Out && !p.Back:
		return vlanCause{
			Problem, "%s: frames of a second MAC address leave, and those to it do not arrive (%p answers the NIC's own): " +
				"a virtual switch refuses promiscuous mode", unreachable, fix, on,
		}
	case !p.passes() && p.Apart && !p.Out && p.Back:
		return vlanCause{
			Problem, "%s: frames of a second MAC address are dropped on their way out (%p answers the NIC's own): " +
				"port security, or forged transmits are refused", unreachable, fix, on,
		}
	case !p.passes():
		return vlanCause{
			Problem, "%s: %p answers the NIC's own MAC address, and not a second one: " +
				"port security, or a hypervisor that filters MAC addresses", unreachable, fix, on,
		}
	case p.Second && p.Decoy.IsValid() && !p.AsDecoy:
		return vlanCause{
			Problem, "%s: %p answers a question from nobody's address, and not one from %d: the switch inspects ARP (DAI) by its DHCP snooping table",
			"decoys have no lease, so what they say is dropped: nobody can reach them",
			"interface: ip arp inspection trust; or for the decoys alone: arp access-list DECOYS, permit ip host ADDRESS mac host MAC, " +
				"ip arp inspection filter DECOYS vlan %s", t.switchPort(),
		}
	}
	return judgeEcho(t, p)
}

// judgeEcho tells from pings how large frames may be.
func judgeEcho(t *TrunkFacts, p *Peer) vlanCause {
	const well = "%s: %p answers the segment's own MAC address"
	e := p.Echo
	switch {
	case !e.Sent:
		return vlanCause{severity: OK, what: well}
	case e.Largest == 0:
		return vlanCause{severity: OK, what: well + "; it answers no ping, so that sizes could not be tried"}
	case e.Largest < e.Full:
		cause := vlanCause{
			Problem, fmt.Sprintf("%%s: packets of %d bytes do not come back from %%p, those of %d do: the MTU there or on the way is smaller than that of %s",
				e.Full, e.Largest, t.Parent), "full-size frames are lost: connections open, and hang when data comes",
			"system mtu 1504 (or 1500 where tags do not count)", t.switchPort(),
		}
		if e.Full > ethernetMTU && e.Largest >= ethernetMTU {
			cause.fix, cause.on = fmt.Sprintf("ip link set %s mtu %d", t.Parent, e.Largest), ""
		}
		return cause
	case e.Fragment > 0 && e.Fragment < e.Full:
		return vlanCause{
			Problem, fmt.Sprintf("%%s: %%p answers a packet of %d bytes in fragments of %d: its MTU is smaller than that of %s", e.Full, e.Fragment, t.Parent),
			"what it forwards from decoys may be lost", fmt.Sprintf("ip mtu %d, at the interface of VLAN %%s", e.Full), "%p",
		}
	}
	return vlanCause{severity: OK, what: fmt.Sprintf("%s, with packets of %d bytes", well, e.Full)}
}

// makers are words of firmware that tell a hypervisor, and what lets a second
// MAC address pass there.
var makers = []struct{ word, name, fix string }{
	{"VMware", "vSphere", "port group > security: promiscuous mode, MAC address changes, forged transmits: accept " +
		"(Get-VirtualPortGroup -Name GROUP | Get-SecurityPolicy | Set-SecurityPolicy -AllowPromiscuous $true -MacChanges $true -ForgedTransmits $true)"},
	{"Microsoft Corporation Virtual Machine", "Hyper-V", "Set-VMNetworkAdapter -VMName NAME -MacAddressSpoofing On"},
	{"QEMU", "Proxmox or libvirt", "Proxmox: VM > firewall > options > MAC filter: no; libvirt: no filter no-mac-spoofing, and for macvtap <interface trustGuestRxFilters='yes'>"},
}

// secondMACFix is what lets frames of a second MAC address pass.
func (f *Facts) secondMACFix(t *TrunkFacts) (fix, on string) {
	for _, m := range makers {
		if strings.Contains(f.Maker, m.word) {
			return m.fix, m.name
		}
	}
	return "switchport port-security maximum N (or no switchport port-security); " + secondMAC, t.switchPort() + ", or the hypervisor"
}

// numbered writes VLAN 110, or VLANs 110, 120-140.
func numbered(word string, ids []uint16) string {
	if len(ids) != 1 {
		word += "s"
	}
	return word + " " + strings.ReplaceAll(vlanList(ids), ",", ", ")
}

// vlanList writes VLANs as switches take them: 110,120-140.
func vlanList(ids []uint16) string {
	set := map[uint16]bool{}
	for _, id := range ids {
		set[id] = true
	}
	var parts []string
	sorted := slices.Sorted(maps.Keys(set))
	for i := 0; i < len(sorted); {
		j := i
		for j+1 < len(sorted) && sorted[j+1] == sorted[j]+1 {
			j++
		}
		part := fmt.Sprint(sorted[i])
		if j > i {
			part += fmt.Sprintf("-%d", sorted[j])
		}
		parts = append(parts, part)
		i = j + 1
	}
	return strings.Join(parts, ",")
}
