package subject

import (
	"net/netip"
	"strings"
	"testing"

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
			last := site.Targets(Decoys)[Decoys-1]
			if d.Path != v.Path || !d.Addresses[0].Contains(last) || d.Lookup(deception.TCP, 83) == nil {
				t.Errorf("decoy: %+v", d)
			}
			if (len(s.Aliases) > 0) != v.Aliases || doc.State.Segments[0].Steering != v.Steering {
				t.Errorf("service: %+v, segment: %+v", s, doc.State.Segments[0])
			}
		})
	}
}
