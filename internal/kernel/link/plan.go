package link

import (
	"fmt"
	"slices"
	"strings"
)

// nic is what the plan needs to know of an interface.
type nic struct {
	Index    int
	Name     string
	Kind     string // "macvlan", "veth", "bridge", "device", ...
	Alias    string
	MAC      string
	MTU      int
	Up       bool // administratively
	Promisc  bool // by its own flag
	Carrier  bool
	Ethernet bool
	Mode     string // of a macvlan or ipvlan
	VLAN     int    // of a vlan: its IEEE 802.1Q identifier
	Lower    int    // IFLA_LINK: the parent's or the veth peer's index, 0 if none
	LowerNS  int    // netnsid of Lower's namespace, -1 if it is the interface's own
	Master   int    // index of the bridge, bond, ... that it is a port of
}

func (n *nic) ours() bool { return n.Alias == Alias }

func byName(links []nic, name string) *nic {
	i := slices.IndexFunc(links, func(n nic) bool { return n.Name == name })
	if i < 0 {
		return nil
	}
	return &links[i]
}

func byIndex(links []nic, index int) *nic {
	i := slices.IndexFunc(links, func(n nic) bool { return n.Index == index })
	if i < 0 {
		return nil
	}
	return &links[i]
}

// checkParent finds the parent among the host's links, or says in words of a
// person why a segment cannot stand on it.
func checkParent(segment, parent string, links []nic, wireless func(nic) bool) (nic, error) {
	refuse := func(cause error, hint string) (nic, error) {
		return nic{}, fmt.Errorf("segment %s: parent %s %w; %s", segment, parent, cause, hint)
	}
	p := byName(links, parent)
	if p == nil {
		return refuse(ErrParentMissing, "interfaces here: "+candidates(links))
	}
	if !p.Ethernet {
		return refuse(ErrParentUnsuitable, "it is not an Ethernet interface")
	}
	if wireless(*p) {
		return refuse(ErrParentUnsuitable,
			"it is wireless, and an access point drops frames from any MAC address but the station's own; name a wired NIC")
	}
	if m := byIndex(links, p.Master); p.Master != 0 && m != nil {
		switch m.Kind {
		case "bridge":
			return refuse(ErrParentBusy, fmt.Sprintf("it is a port of bridge %s; write parent: %s", m.Name, m.Name))
		case "bond", "team":
			return refuse(ErrParentBusy, fmt.Sprintf("it is a port of %s %s; write parent: %s", m.Kind, m.Name, m.Name))
		case "openvswitch":
			return refuse(ErrParentBusy, "it is a port of an Open vSwitch bridge; add an internal port to that bridge and name it as the parent")
		}
	}
	if !p.Up {
		return refuse(ErrParentDown, "ip link set "+parent+" up")
	}
	return *p, nil
}

// candidates lists what could have been meant.
func candidates(links []nic) string {
	var names []string
	for _, n := range links {
		if n.Ethernet && !n.ours() {
			names = append(names, n.Name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// holder names what already receives the parent's frames, as far as it can be
// seen in the parent's own namespace.
func holder(parent nic, links []nic) string {
	for _, n := range links {
		if n.Lower == parent.Index && n.LowerNS == -1 && (n.Kind == "ipvlan" || n.Mode == "passthru") {
			return fmt.Sprintf("%s (%s) stands on it", n.Name, strings.TrimSpace(n.Kind+" "+n.Mode))
		}
	}
	return "another driver holds it (ipvlan, a macvlan in passthru mode, an Open vSwitch, ...)"
}

// lanSpec is what lan0 must be to be kept.
type lanSpec struct {
	Lower   int
	LowerNS int
	// AnyNS skips the check of LowerNS. On a parent that is a macvlan itself the
	// kernel puts the new one beside it, on the same real device, which may be in
	// a third namespace.
	AnyNS bool
	MAC   string
}

// lanPlan says what to do about lan0.
type lanPlan struct {
	Keep    *nic   // nil: make a new one
	Why     string // why the old one could not be kept; empty if there was none
	Replace []nic  // to be removed before the new one takes its place
}

// planLAN decides whether the lan0 that stands is the right one. Compared is
// only what cannot be changed in place; MTU and flags are set as needed.
func planLAN(links []nic, want lanSpec) (lanPlan, error) {
	plan := lanPlan{Replace: strays(links)}
	lan := byName(links, LANName)
	if lan == nil {
		return plan, nil
	}
	// A run that died between making and marking it left it without an alias.
	half := lan.Kind == "macvlan" && lan.Alias == "" && lan.MAC == want.MAC
	if !lan.ours() && !half {
		return lanPlan{}, fmt.Errorf("%s exists and is not ours (its alias is not %q)", LANName, Alias)
	}
	switch {
	case half:
		plan.Why = "it was not finished"
	case lan.Kind != "macvlan":
		plan.Why = "it is a " + lan.Kind
	case lan.Mode != "bridge":
		plan.Why = "it is in " + lan.Mode + " mode"
	case lan.Lower != want.Lower || !want.AnyNS && lan.LowerNS != want.LowerNS:
		plan.Why = "it stands on another parent"
	case lan.MAC != want.MAC:
		plan.Why = "its MAC address is " + lan.MAC
	default:
		plan.Keep = lan
		return plan, nil
	}
	plan.Replace = append(plan.Replace, *lan)
	return plan, nil
}

// strays are links in the segment namespace that an earlier Apply did not
// finish: it died between creating and naming them.
func strays(links []nic) []nic {
	var out []nic
	for _, n := range links {
		half := n.Kind == "macvlan" && strings.HasPrefix(n.Name, tempPrefix) ||
			n.Kind == "veth" && strings.HasPrefix(n.Name, hostPrefix)
		if half || n.ours() && n.Name != LANName && n.Name != UplinkName {
			out = append(out, n)
		}
	}
	return out
}

// uplinkSpec is what the veth pair must be to be kept.
type uplinkSpec struct {
	HostName         string
	HostNS           int // netnsid of the host namespace as seen from the segment
	HostMAC, LinkMAC string
}

// planUplink decides whether the veth pair that stands is the right one. Old
// ends that are in the way are listed per namespace.
func planUplink(seg, host []nic, want uplinkSpec) (keep bool, dropSeg, dropHost *nic, err error) {
	up, peer := byName(seg, UplinkName), byName(host, want.HostName)
	if up != nil && !up.ours() {
		return false, nil, nil, fmt.Errorf("%s exists and is not ours (its alias is not %q)", UplinkName, Alias)
	}
	if peer != nil && !peer.ours() {
		return false, nil, nil, fmt.Errorf("%s exists in the host namespace and is not ours (its alias is not %q)", peer.Name, Alias)
	}
	if up != nil && peer != nil && up.Kind == "veth" && peer.Kind == "veth" &&
		up.Lower == peer.Index && up.LowerNS == want.HostNS &&
		up.MAC == want.LinkMAC && peer.MAC == want.HostMAC {
		return true, nil, nil, nil
	}
	return false, up, peer, nil
}
