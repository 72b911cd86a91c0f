package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"decoynet/deception"
	"decoynet/internal/claim"
)

// preview is what `decoynet up --dry-run -o json` prints: what this machine
// would take from its networks.
type preview struct {
	Node     string           `json:"node"`
	Segments []segmentPreview `json:"segments"`
	// Listen are decoys at the machine's own addresses: ports are opened there,
	// no address is claimed.
	Listen []decoyPreview `json:"listen,omitempty"`
}

type segmentPreview struct {
	Name     string   `json:"name"`
	Parent   string   `json:"parent"`
	VLAN     uint16   `json:"vlan,omitempty"`
	Subnets  []string `json:"subnets"`
	Exclude  []string `json:"exclude,omitempty"`
	Claim    string   `json:"claim"`
	Steering string   `json:"steering"`
	// Addresses is how many would be claimed; TakesSeconds about how
	// long until all are.
	Addresses    uint64         `json:"addresses"`
	TakesSeconds float64        `json:"takes_s"`
	Decoys       []decoyPreview `json:"decoys"`
}

type decoyPreview struct {
	Name      string   `json:"name"`
	Addresses []string `json:"addresses"` // each an address or a range
	Count     uint64   `json:"count"`
	Ports     []string `json:"ports"`
	Path      string   `json:"path"`
}

// previewOf returns what a node would claim that is told to realise the state.
func previewOf(s *deception.State) preview {
	p := preview{Node: s.Node, Segments: []segmentPreview{}}
	for _, g := range s.Segments {
		mode := cmp.Or(g.Claim, deception.ClaimProbe)
		sp := segmentPreview{
			Name: g.Name, Parent: g.Parent, VLAN: g.VLAN, Subnets: []string{}, Exclude: rangeNames(g.Exclude),
			Claim: string(mode), Steering: string(cmp.Or(g.Steering, deception.SteeringAuto)), Decoys: []decoyPreview{},
		}
		for _, sub := range g.Subnets {
			sp.Subnets = append(sp.Subnets, sub.Prefix.String())
		}
		for _, d := range s.DecoysOf(g.Name) {
			dp := previewDecoy(d)
			sp.Decoys, sp.Addresses = append(sp.Decoys, dp), sp.Addresses+dp.Count
		}
		sp.TakesSeconds = math.Round(claim.Takes(mode, sp.Addresses).Seconds()*10) / 10
		p.Segments = append(p.Segments, sp)
	}
	for _, d := range s.DecoysOf(deception.HostSegment) {
		p.Listen = append(p.Listen, previewDecoy(d))
	}
	return p
}

func previewDecoy(d *deception.Decoy) decoyPreview {
	dp := decoyPreview{Name: d.Name, Addresses: rangeNames(d.Addresses), Path: string(cmp.Or(d.Path, deception.PathRelay)), Ports: []string{}}
	if d.Any {
		dp.Addresses = []string{"any"}
	}
	for _, r := range d.Addresses {
		dp.Count += r.Len()
	}
	for _, b := range d.Bind {
		for _, r := range b.Ports {
			dp.Ports = append(dp.Ports, r.String())
		}
	}
	return dp
}

func rangeNames(ranges []deception.AddrRange) []string {
	out := make([]string, len(ranges))
	for i, r := range ranges {
		out[i] = r.String()
	}
	return out
}

// write prints the preview as JSON or for a person.
func (p *preview) write(w io.Writer, output string) error {
	if output == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		if err := enc.Encode(p); err != nil {
			return fmt.Errorf("write what would be claimed: %w", err)
		}
		return nil
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SEGMENT\tPARENT\tVLAN\tCLAIM\tSTEERING\tDECOY\tCOUNT\tADDRESSES\tPORTS")
	var addresses uint64
	var takes float64
	for _, g := range p.Segments {
		vlan := "-"
		if g.VLAN != 0 {
			vlan = strconv.Itoa(int(g.VLAN))
		}
		decoys := g.Decoys
		if len(decoys) == 0 {
			decoys = []decoyPreview{{Name: "-"}} // it would be built all the same
		}
		for _, d := range decoys {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", g.Name, g.Parent, vlan, g.Claim, g.Steering, d.Name, d.Count, few(d.Addresses), few(d.Ports))
		}
		addresses, takes = addresses+g.Addresses, max(takes, g.TakesSeconds)
	}
	for _, d := range p.Listen {
		fmt.Fprintf(t, "%s\t-\t-\tnone\tlisten\t%s\t%d\t%s\t%s\n", deception.HostSegment, d.Name, d.Count, few(d.Addresses), few(d.Ports))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write what would be claimed: %w", err)
	}
	fmt.Fprintf(w, "\nnode %s would claim %d addresses in %d segments, all of them after about %v; nothing was changed\n",
		p.Node, addresses, len(p.Segments), time.Duration(takes*float64(time.Second)).Round(100*time.Millisecond))
	return nil
}

// fewNames is how many names of a list a person is shown; JSON has them all.
const fewNames = 6

func few(names []string) string {
	if len(names) == 0 {
		return "-"
	}
	if more := len(names) - fewNames; more > 0 {
		return strings.Join(names[:fewNames], ",") + fmt.Sprintf(",and %d more", more)
	}
	return strings.Join(names, ",")
}
