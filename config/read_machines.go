package config

import (
	"net/netip"

	"decoynet/deception"
)

// place is the machine that an object is on.
type place struct {
	written located[string] // its node key
	object  pos
	label   string // of the object, as it stands in messages

	// node is the machine's name; empty in a document of one machine. known is
	// false where the document does not say, about which a fault is on record.
	node  string
	known bool
}

type nodeDraft struct {
	name located[string]
}

type gatewayDraft struct {
	name      located[string]
	place     place
	listen    located[netip.AddrPort]
	addresses []located[string]
}

type controllerDraft struct {
	place  place
	listen located[netip.AddrPort]
	urls   []located[string]
}

type egressDraft struct {
	node   located[string]
	listen located[netip.AddrPort]
	from   []located[netip.Prefix]
}

func (d *draft) readMachines(o *object) {
	if o.has("node") {
		d.node = readOne(o, "node", parseNode)
	}
	for _, e := range o.objects("nodes", nodeShape) {
		d.nodes = append(d.nodes, &nodeDraft{name: readOne(e, "name", parseNode)})
	}
	for _, e := range o.objects("gateways", gatewayShape) {
		g := &gatewayDraft{name: checkName(e), place: readPlace(e), listen: readOne(e, "listen", parseListen)}
		g.addresses, _ = readList(e, "addresses", parseEndpoint)
		d.gateways = append(d.gateways, g)
	}
	if n := o.get("controller"); n != nil {
		e := o.r.object(n, controllerShape)
		d.controller = &controllerDraft{place: readPlace(e), listen: readOne(e, "listen", parseListen)}
		d.controller.urls, _ = readList(e, "urls", parseControllerURL)
	}
}

// readPlace reads the node key of an object.
func readPlace(o *object) place {
	p := place{object: o.at, label: o.label()}
	if o.has("node") {
		p.written = readOne(o, "node", parseNode)
	} else {
		p.written.at = o.at
	}
	p.known = !o.has("node") // until checkMachines looks at it
	return p
}

func readEgress(o *object) *egressDraft {
	n := o.get("egress")
	if n == nil {
		return nil
	}
	e := o.r.object(n, egressShape)
	out := &egressDraft{node: readOne(e, "node", parseNode), listen: readOne(e, "listen", parseListen)}
	out.from, _ = readList(e, "from", parseAllowTo)
	return out
}

// readHostAddresses reads the addresses of a decoy in the segment host.
func (d *decoyDraft) readHostAddresses(o *object) {
	d.addresses, d.sound = readList(o, "addresses", parseHostRange)
	d.sound = d.sound && o.has("addresses")
	var kept []located[deception.AddrRange]
	for _, a := range d.addresses {
		if a.text != anyAddress {
			kept = append(kept, a)
			continue
		}
		if d.any.ok || len(d.addresses) > 1 {
			o.r.add(a.at, "any stands for every address of the machine; alone, as addresses: [any]")
		}
		d.any = a
	}
	d.addresses = kept
}

// anyAddress stands for every address of a machine.
const anyAddress = "any"

// parseHostRange reads addresses of a machine itself. Loopback addresses are
// among them: who touches those is on the machine already.
func parseHostRange(s string) (deception.AddrRange, error) {
	if s == anyAddress {
		return deception.AddrRange{}, nil
	}
	r, err := parseRange(s)
	if err != nil {
		return r, err
	}
	return r, hostRangeFault(s, r)
}
