package subject

import (
	"net/netip"
	"strings"
	"testing"
	"text/template"

	"decoynet/bench/load"
	"decoynet/config"
	"decoynet/deception"
)

// TestDocuments holds the generated documents to what the binary accepts and
// makes of them.
func TestDocuments(t *testing.T) {
	site := &Site{
		DecoyPrefix: netip.MustParsePrefix("10.77.101.0/24"),
		Zone:        netip.MustParsePrefix("10.88.1.0/24"),
		ServiceAddr: netip.MustParseAddr("10.88.1.2"),
		Aliases:     netip.MustParsePrefix("10.99.1.0/24"),
	}
	for _, v := range Variants {
		t.Run(v.Name, func(t *testing.T) {
			var text strings.Builder
			if err := document.Execute(&text, v.data(site, "/proc/1/ns/net")); err != nil {
				t.Fatal(err)
			}
			doc, err := config.Parse("decoynet.yaml", []byte(text.String()))
			if err != nil {
				t.Fatal(err, "\n", text.String())
			}
			d, s := doc.State.Decoys[0], doc.State.Services[0]
			last := decoysIn(site.DecoyPrefix)[Decoys-1]
			if d.Path != v.Path || !d.Addresses[0].Contains(last) || d.Lookup(deception.TCP, 83) == nil {
				t.Errorf("decoy: %+v", d)
			}
			if (len(s.Aliases) > 0) != v.Aliases || doc.State.Segments[0].Steering != v.Steering {
				t.Errorf("service: %+v, segment: %+v", s, doc.State.Segments[0])
			}
		})
	}
}

// TestChainDocuments does the same for the documents of two machines.
func TestChainDocuments(t *testing.T) {
	site := &Site{
		DecoyPrefix: netip.MustParsePrefix("10.77.101.0/24"),
		Zone:        netip.MustParsePrefix("10.88.1.0/24"),
		ServiceAddr: netip.MustParseAddr("10.88.1.2"),
		FrontAddr:   netip.MustParseAddr("10.66.1.1"),
		GatewayAddr: netip.MustParseAddr("10.66.1.2"),
	}
	for _, test := range []struct {
		name    string
		text    *template.Template
		tunnels map[string]bool // by node: its flows leave for a gateway elsewhere
	}{
		{"tunnel", tunnelDocument, map[string]bool{frontNode: true, gatewayNode: false}},
		{"hop", hopDocument, map[string]bool{frontNode: false, gatewayNode: false}},
	} {
		for node, tunnels := range test.tunnels {
			t.Run(test.name+"/"+node, func(t *testing.T) {
				var text strings.Builder
				if err := test.text.Execute(&text, site.chain(node)); err != nil {
					t.Fatal(err)
				}
				doc, err := config.Parse("decoynet.yaml", []byte(text.String()))
				if err != nil {
					t.Fatal(err, "\n", text.String())
				}
				part, err := doc.Part()
				if err != nil {
					t.Fatal(err)
				}
				if part.Node != node || part.Tunnels() != tunnels {
					t.Errorf("part of %s: %+v; tunnels %t, want %t", node, part, part.Tunnels(), tunnels)
				}
				if d := doc.State.Decoys[0]; d.Lookup(deception.TCP, load.PortTotal) == nil {
					t.Errorf("decoy: %+v", d)
				}
			})
		}
	}
}
