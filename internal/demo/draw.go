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
	Remark               string // beside the gateway
}

type host struct {
	Name  string
	Addrs []netip.Addr
	MAC   string
	Ports string
}

type decoyGroup struct {
	Addresses []deception.AddrRange
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
	decoysAt     = 40
	trunkAt      = 56 // the line from the LAN through the gateway to the zone
	rightEdge    = 98
)

// draw draws the network.
func draw(s scene) string {
	var c canvas
	y := max(
		c.column(intruderAt, 0, s.Intruder.lines()...),
		c.column(productionAt, 0, s.Production.lines()...),
		c.column(decoysAt, 0, s.decoyLines()...),
	)
	for _, x := range []int{intruderAt + 4, productionAt + 4} {
		c.put(x, y, "|")
	}
	c.put(trunkAt, y, ":")
	c.put(0, y+1, wire(s.LAN, s.LANPrefix))
	for _, x := range []int{intruderAt + 4, productionAt + 4, trunkAt} {
		c.put(x, y+1, "+")
	}
	y = c.column(trunkAt, y+2, "|", "|")
	c.put(trunkAt-len("eth0 "), y-1, "eth0 ")
	c.put(trunkAt+2, y-1, joined(s.Gateway.Addrs))
	y = c.column(trunkAt-6, y, "+-----+-----+", "|           |  "+s.Remark, "+-----+-----+")
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

// decoyGroups returns the document's decoys for the drawing.
func (p *plan) decoyGroups() []decoyGroup {
	var out []decoyGroup
	for i := range p.state.Decoys {
		d := &p.state.Decoys[i]
		var services []string
		for _, b := range d.Bind {
			if !slices.Contains(services, b.Service) {
				services = append(services, b.Service)
			}
		}
		out = append(out, decoyGroup{Addresses: d.Addresses, Services: strings.Join(services, " "), Path: string(d.Path)})
	}
	return out
}
