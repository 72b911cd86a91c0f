package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"decoynet/deception"
)

// draft is a document read object by object; nothing in it was compared with
// anything else yet.
type draft struct {
	node      located[string]
	data      located[string]
	retention located[time.Duration]
	heads     located[string]

	nodes      []*nodeDraft
	gateways   []*gatewayDraft
	controller *controllerDraft

	segments []*segmentDraft
	zones    []*zoneDraft
	services []*serviceDraft
	decoys   []*decoyDraft
	scanners []*scannerDraft
	inspect  *inspectDraft // nil where nothing is said of it

	// opaque are the lists that could not be read at all: whether a reference
	// into one is right cannot be told.
	opaque map[string]bool
}

type segmentDraft struct {
	name, parent located[string]
	place        place
	steering     located[string]
	claim        located[string]
	vlan         located[uint16] // not ok: none, or one that cannot be read
	subnets      []subnetDraft
	sound        bool // every subnet was read
	exclude      []located[deception.AddrRange]
	barred       []deception.AddrRange // what no decoy may have, joined and sorted
	elsewhere    bool                  // vxlan, or a vlan that cannot be read: which network is unknown
}

type subnetDraft struct {
	prefix  located[netip.Prefix]
	gateway located[netip.Addr]
}

type zoneDraft struct {
	name, link located[string]
	place      place
	egress     *egressDraft // nil where there is none
	subnets    []located[netip.Prefix]
	sound      bool // every subnet was read
	allow      []deception.Allow
}

type serviceDraft struct {
	name, zone, netns located[string]
	addresses         []located[netip.Addr]
	ports             []located[deception.PortRange]
	sorted            []deception.PortRange // ports, by transport and number
	aliases           []located[netip.Prefix]
	soundAddresses    bool
	soundPorts        bool
}

type decoyDraft struct {
	name, segment, path located[string]
	idle                located[time.Duration]
	place               place
	host                bool // it listens on the machine's own addresses
	any                 located[deception.AddrRange]
	addresses           []located[deception.AddrRange]
	sound               bool // every address was read
	bind                []*bindDraft
	looks               looks
}

type bindDraft struct {
	service located[string]
	ports   []located[deception.PortRange]
	target  located[uint16]
	blind   bool // there is a target, but not one to go by
}

func readDocument(root *node, r *report) *draft {
	d := &draft{opaque: map[string]bool{}}
	o := r.object(root, documentShape)
	if o == nil {
		d.opaque = map[string]bool{"nodes": true, "segments": true, "zones": true, "services": true}
		return d
	}
	d.readMachines(o)
	if o.has("data") {
		d.data = readOne(o, "data", parseDataDir)
	}
	d.readRecording(o)
	for _, e := range o.objects("segments", segmentShape) {
		d.segments = append(d.segments, readSegment(e))
	}
	for _, e := range o.objects("zones", zoneShape) {
		d.zones = append(d.zones, readZone(e))
	}
	for _, e := range o.objects("services", serviceShape) {
		d.services = append(d.services, readService(e))
	}
	for _, e := range o.objects("decoys", decoyShape) {
		d.decoys = append(d.decoys, readDecoy(e))
	}
	for _, e := range o.objects("scanners", scannerShape) {
		d.scanners = append(d.scanners, readScanner(e))
	}
	if n := o.get("inspect"); n != nil {
		d.inspect = readInspect(r.object(n, inspectShape))
	}
	for _, list := range []string{"nodes", "gateways", "segments", "zones", "services"} {
		n := o.fields[list]
		d.opaque[list] = n != nil && n.kind != kindList && n.kind != kindNull
	}
	return d
}

func (d *draft) readRecording(o *object) {
	n := o.get("recording")
	if n == nil {
		return
	}
	rec := o.r.object(n, recordingShape)
	d.retention = readOne(rec, "retention", durationIn("retention", time.Minute, 3650*24*time.Hour, "90d"))
	if n := rec.get("heads"); n != nil {
		d.heads = located[string]{n.text, n.text, n.at, true}
	}
}

// checkName reads the name of an object. A bad name is kept all the same: what
// refers to it is not wrong for that.
func checkName(o *object) located[string] {
	name := o.text("name")
	if name.ok {
		if fault := nameFault(name.v); fault != "" {
			o.r.add(name.at, "%s", fault)
		}
	}
	return name
}

func readSegment(o *object) *segmentDraft {
	s := &segmentDraft{name: checkName(o), place: readPlace(o), sound: true}
	if s.name.v == deception.HostSegment {
		o.r.add(s.name.at, "segment name %q is reserved for the machine's own addresses; another name, as office", s.name.v)
	}
	if o.has("parent") || !o.has("vxlan") { // a VXLAN segment stands on no NIC
		s.parent = readOne(o, "parent", parseInterface)
	}
	for _, e := range o.objects("subnets", subnetShape) {
		sub := subnetDraft{prefix: readOne(e, "prefix", parsePrefix)}
		if e.has("gateway") {
			sub.gateway = readOne(e, "gateway", parseGateway)
		}
		s.sound = s.sound && sub.prefix.ok
		s.subnets = append(s.subnets, sub)
	}
	if n := o.fields["subnets"]; n == nil || n.kind != kindList || len(n.items) != len(s.subnets) {
		s.sound = false
	}
	s.exclude, _ = readList(o, "exclude", parseRange)
	if o.has("steering") {
		s.steering = o.oneOf("steering", string(deception.SteeringAuto), string(deception.SteeringSKLookup), string(deception.SteeringTPROXY), string(deception.SteeringIPTables))
	}
	if o.has("claim") {
		s.claim = o.oneOf("claim", string(deception.ClaimProbe), string(deception.ClaimRFC5227), string(deception.ClaimUnchecked))
	}
	if o.has("vlan") {
		s.vlan = readOne(o, "vlan", parseVLAN)
	}
	s.elsewhere = o.has("vxlan") || o.has("vlan") && !s.vlan.ok
	readVXLAN(o)
	return s
}

// parseVLAN reads a VLAN identifier: 0 marks frames that have a priority only,
// 4095 is reserved (IEEE 802.1Q, table 9-2).
func parseVLAN(s string) (uint16, error) {
	id, err := parseNumber("vlan", s, 1, 4094)
	return uint16(id), err
}

// readVXLAN checks the key of tunnelled segments, which this version knows but
// does not build.
func readVXLAN(o *object) {
	n := o.get("vxlan")
	if n == nil {
		return
	}
	if id := o.r.object(n, vxlanShape).get("vni"); id != nil {
		if _, err := parseNumber("vni", id.text, 1, 1<<24-1); err != nil {
			o.r.add(id.at, "%s", err)
			return
		}
		o.r.add(o.keyAt["vxlan"], "VXLAN segments are not built by this version; name an interface of this machine as parent")
	}
}

func readZone(o *object) *zoneDraft {
	z := &zoneDraft{name: checkName(o), place: readPlace(o), egress: readEgress(o)}
	z.place.known = z.place.known && (z.egress != nil || !o.has("egress"))
	z.subnets, z.sound = readList(o, "subnet", parsePrefix)
	z.sound = z.sound && o.has("subnet")
	onePerFamily(o, "subnet", z.subnets, netip.Prefix.Addr)
	if o.has("link") || !o.has("egress") {
		z.link = readOne(o, "link", parseInterface)
	}
	if z.link.v == deception.LinkAuto && !o.has("egress") {
		o.r.add(z.link.at, "link auto is for zones with an egress; name the interface, as in `ip link`")
		z.link.ok = false
	}
	for _, e := range o.objects("allow", allowShape) {
		to := readOne(e, "to", parseAllowTo)
		ports, _ := readList(e, "ports", parsePorts)
		checkPortsOnce(o.r, "this allow entry", ports)
		z.allow = append(z.allow, deception.Allow{To: to.v, Ports: values(ports)})
	}
	return z
}

func readService(o *object) *serviceDraft {
	s := &serviceDraft{name: checkName(o), zone: o.text("zone")}
	s.addresses, s.soundAddresses = readList(o, "address", parseHostAddr)
	s.soundAddresses = s.soundAddresses && o.has("address")
	onePerFamily(o, "address", s.addresses, func(a netip.Addr) netip.Addr { return a })
	s.ports, s.soundPorts = readList(o, "ports", parsePorts)
	s.soundPorts = s.soundPorts && o.has("ports")
	checkPortsOnce(o.r, o.label(), s.ports)
	s.sorted = slices.SortedFunc(slices.Values(values(s.ports)), func(a, b deception.PortRange) int {
		return cmp.Or(cmp.Compare(a.Transport, b.Transport), cmp.Compare(a.First, b.First))
	})
	s.aliases, _ = readList(o, "aliases", parsePrefix)
	onePerFamily(o, "aliases", s.aliases, netip.Prefix.Addr)
	if o.has("netns") {
		s.netns = readOne(o, "netns", parseNetns)
	}
	return s
}

func readDecoy(o *object) *decoyDraft {
	d := &decoyDraft{name: checkName(o), segment: o.text("segment"), place: readPlace(o)}
	if d.host = d.segment.v == deception.HostSegment; d.host {
		d.readHostAddresses(o)
	} else {
		d.addresses, d.sound = readList(o, "addresses", parseDecoyRange)
		d.sound = d.sound && o.has("addresses")
	}
	for _, e := range o.objects("bind", bindShape) {
		d.bind = append(d.bind, readBinding(e))
	}
	if o.has("path") {
		d.path = o.oneOf("path", string(deception.PathRelay), string(deception.PathKernel))
	}
	if o.has("idle") {
		d.idle = readOne(o, "idle", durationIn("idle", time.Second, 24*time.Hour, "30m"))
	}
	d.looks = readLooks(o)
	return d
}

func readBinding(o *object) *bindDraft {
	b := &bindDraft{service: o.text("service")}
	b.ports, _ = readList(o, "ports", parsePorts)
	if o.has("target") {
		b.target = readOne(o, "target", parseTarget)
	}
	if !b.target.ok {
		b.blind = o.has("target")
		return b
	}
	if n := len(b.ports); n > 1 || n == 1 && b.ports[0].v.First != b.ports[0].v.Last {
		o.r.add(b.target.at, "target %d for several ports (%s); one binding with its own target for each port", b.target.v, deception.JoinPorts(values(b.ports)))
		b.target.ok, b.blind = false, true
	}
	return b
}

func parseDecoyRange(s string) (deception.AddrRange, error) {
	if s == anyAddress {
		return deception.AddrRange{}, fmt.Errorf("addresses: [any] is for the segment host only; the addresses themselves, as 192.0.2.100-192.0.2.150")
	}
	return parseRange(s)
}

// onePerFamily refuses a second value of the same address family.
func onePerFamily[T any](o *object, name string, list []located[T], addr func(T) netip.Addr) {
	seen := map[bool]bool{}
	for _, v := range list {
		four := addr(v.v).Is4()
		if seen[four] {
			o.r.add(v.at, "%s has a second %s entry; at most one IPv4 and one IPv6", name, family(four))
		}
		seen[four] = true
	}
}

func family(four bool) string {
	if four {
		return "IPv4"
	}
	return "IPv6"
}

func values[T any](list []located[T]) []T {
	out := make([]T, len(list))
	for i, v := range list {
		out[i] = v.v
	}
	return out
}
