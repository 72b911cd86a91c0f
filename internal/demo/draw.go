package demo

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"decoynet/deception"
)

// scene is what the drawing of the network shows. All addresses are those that
// the machines have, not those that they should have.
type scene struct {
	LAN, Zone            string // names
	LANPrefix            []netip.Prefix
	ZonePrefix           []netip.Prefix
	Intruder, Production host
	Gateway              host // its card in the LAN
	Bridge               host // its bridge to the zone
	Servers              []host
	Decoys               []decoyGroup
	DecoysAt             string // the Ethernet address of all decoys
	Remark, Sensor       string // beside the gateway: decoynet, and who analyses

	Branch              string // name
	BranchPrefix        []netip.Prefix
	BranchIntruder, CRM host
	Inside, Outside     host         // the router's cards in the branch and in the LAN
	BranchDecoys        []decoyGroup // at the business server's own addresses
}

type host struct {
	Name  string
	Addrs []netip.Addr
	MAC   string
	Ports string
}

type decoyGroup struct {
	Addresses []deception.AddrRange
	Ports     string // where the addresses are a machine's own
	Services  string
	Path      string
}

// canvas is a sheet of characters that grows as it is written on.
type canvas [][]rune

func (c *canvas) put(x, y int, text string) {
	for len(*c) <= y {
		*c = append(*c, nil)
	}
	line := (*c)[y]
	for len(line) < x+utf8.RuneCountInString(text) {
		line = append(line, ' ')
	}
	copy(line[x:], []rune(text))
	(*c)[y] = line
}

// column writes lines below each other and returns the line behind the last.
func (c *canvas) column(x, y int, lines ...string) int {
	for i, l := range lines {
		c.put(x, y+i, l)
	}
	return y + len(lines)
}

func (c *canvas) String() string {
	var b strings.Builder
	for _, line := range *c {
		b.WriteString(strings.TrimRight(string(line), " "))
		b.WriteByte('\n')
	}
	return b.String()
}

// The columns of the drawing.
const (
	intruderAt   = 2
	productionAt = 21
	routerAt     = 41 // the line from the branch through its router to the LAN
	decoysAt     = 44
	trunkAt      = 56 // the line from the LAN through the gateway to the zone
	rightEdge    = 98
)

// draw draws the network.
func draw(s scene) string {
	var c canvas
	top := s.drawBranch(&c)
	y := max(
		c.column(intruderAt, top, s.Intruder.lines()...),
		c.column(productionAt, top, s.Production.lines()...),
		c.column(decoysAt, top, s.decoyLines()...),
	)
	for line := top; line <= y; line++ {
		c.put(routerAt, line, "|")
	}
	for _, x := range []int{intruderAt + 4, productionAt + 4} {
		c.put(x, y, "|")
	}
	c.put(trunkAt, y, ":")
	c.put(0, y+1, wire(s.LAN, s.LANPrefix))
	for _, x := range []int{intruderAt + 4, productionAt + 4, routerAt, trunkAt} {
		c.put(x, y+1, "+")
	}
	y = c.column(trunkAt, y+2, "|", "|")
	c.put(trunkAt-len("eth0 "), y-1, "eth0 ")
	c.put(trunkAt+2, y-1, joined(s.Gateway.Addrs))
	y = c.column(trunkAt-6, y, "+-----+-----+", "|           |  "+s.Remark, "+-----+-----+  "+s.Sensor)
	c.put(trunkAt-len(s.Gateway.Name)/2, y-2, s.Gateway.Name)
	c.put(trunkAt-len(s.Bridge.Name)-1, y, s.Bridge.Name)
	c.put(trunkAt, y, "| "+joined(s.Bridge.Addrs))
	c.put(trunkAt, y+1, "|")
	c.put(0, y+2, wire("zone "+s.Zone, s.ZonePrefix))
	c.put(trunkAt, y+2, "+")
	for i, v := range s.Servers {
		x := intruderAt + 14*i
		c.put(x+4, y+2, "+")
		c.put(x+4, y+3, "|")
		c.column(x, y+4, append(v.lines(), v.Ports)...)
	}
	return c.String()
}

// drawBranch draws the branch office above the LAN, down to its router's card
// there, and returns the line behind.
func (s scene) drawBranch(c *canvas) int {
	lines := []string{"decoys: free ports of crm's own addresses"}
	for _, g := range s.BranchDecoys {
		lines = append(lines, g.Ports, g.Services)
	}
	y := max(
		c.column(intruderAt, 0, s.BranchIntruder.lines()...),
		c.column(productionAt, 0, append(s.CRM.lines(), s.CRM.Ports)...),
		c.column(decoysAt, 0, append(lines, "decoynet, listening as an ordinary user")...),
	)
	c.put(0, y+1, wire(s.Branch, s.BranchPrefix))
	for _, x := range []int{intruderAt + 4, productionAt + 4} {
		c.put(x, y, "|")
		c.put(x, y+1, "+")
	}
	c.put(routerAt, y+1, "+")
	c.column(routerAt, y+2, "| "+joined(s.Inside.Addrs), "", "| "+joined(s.Outside.Addrs))
	c.put(routerAt-len(s.Outside.Name)/2, y+3, s.Outside.Name+"  translates: the office sees this address only")
	return y + 5
}

// wire is a network from edge to edge, with its name and prefixes at the end.
func wire(name string, prefixes []netip.Prefix) string {
	label := " " + name
	for _, p := range prefixes {
		label += " " + p.String()
	}
	return strings.Repeat("-", max(4, rightEdge-len(label))) + label
}

func (h host) lines() []string {
	lines := []string{h.Name}
	for _, a := range h.Addrs {
		lines = append(lines, a.String())
	}
	if h.MAC != "" {
		lines = append(lines, h.MAC)
	}
	return lines
}

func (s scene) decoyLines() []string {
	lines := []string{"decoys: addresses that no machine has"}
	width := 0
	for _, g := range s.Decoys {
		for _, text := range g.addresses() {
			width = max(width, len(text))
		}
	}
	for _, g := range s.Decoys {
		for i, text := range g.addresses() {
			beside := g.Services
			if i > 0 {
				beside = "by the " + g.Path
			}
			if i > 1 {
				beside = ""
			}
			lines = append(lines, fmt.Sprintf("%-*s  %s", width, text, beside))
		}
	}
	return append(lines, s.DecoysAt)
}

// addresses returns one line for each family.
func (g decoyGroup) addresses() []string {
	var lines []string
	for _, is4 := range []bool{true, false} {
		var parts []string
		for _, r := range g.Addresses {
			if r.From.Is4() == is4 {
				parts = append(parts, shortRange(r, len(parts) > 0))
			}
		}
		if len(parts) > 0 {
			lines = append(lines, strings.Join(parts, " "))
		}
	}
	return lines
}

// shortRange writes 192.0.2.20-.65, and .100-.199 where another range stands in
// front of it.
func shortRange(r deception.AddrRange, follows bool) string {
	separator := "."
	if r.From.Is6() {
		separator = ":"
	}
	tail := func(a netip.Addr) string {
		s := a.String()
		return s[strings.LastIndex(s, separator):]
	}
	from := r.From.String()
	if follows {
		from = tail(r.From)
	}
	if r.From == r.To {
		return from
	}
	return from + "-" + tail(r.To)
}

func joined(addrs []netip.Addr) string {
	parts := make([]string, len(addrs))
	for i, a := range addrs {
		parts[i] = a.String()
	}
	return strings.Join(parts, "  ")
}

// decoyGroups returns the document's decoys in networks for the drawing.
func (p *plan) decoyGroups() []decoyGroup {
	return p.groups(func(d *deception.Decoy) bool { return d.Segment != deception.HostSegment })
}

// hostDecoys returns the decoys at the node's own addresses.
func (p *plan) hostDecoys(node string) []decoyGroup {
	return p.groups(func(d *deception.Decoy) bool { return d.Segment == deception.HostSegment && d.Node == node })
}

func (p *plan) groups(of func(*deception.Decoy) bool) []decoyGroup {
	var out []decoyGroup
	for i := range p.state.Decoys {
		d := &p.state.Decoys[i]
		if !of(d) {
			continue
		}
		var services, ports []string
		for _, b := range d.Bind {
			if !slices.Contains(services, b.Service) {
				services = append(services, b.Service)
			}
			for _, r := range b.Ports {
				ports = append(ports, strings.TrimSuffix(r.String(), "/tcp"))
			}
		}
		out = append(out, decoyGroup{
			Addresses: d.Addresses, Ports: strings.Join(ports, " "), Services: strings.Join(services, " "), Path: string(d.Path),
		})
	}
	return out
}
