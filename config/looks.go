package config

import (
	"fmt"
	"strings"

	"decoynet/deception"
)

// looks is how a decoy shows itself on the network.
type looks struct {
	mac         located[deception.MACPrefix]
	personality located[string]
}

// readLooks reads what makes a decoy another host than the node. In the segment
// host it is the node.
func readLooks(o *object) looks {
	var l looks
	if o.has("mac") {
		l.mac = readOne(o, "mac", parseMAC)
	}
	if o.has("personality") {
		l.personality = o.oneOf("personality", string(deception.PersonalityLinux), string(deception.PersonalityWindows))
	}
	return l
}

// checkLooks refuses looks of the machine itself.
func (c *checker) checkLooks() {
	for _, d := range c.d.decoys {
		if !d.host {
			continue
		}
		const right = "drop it, or put the decoy into a segment of a network"
		if d.looks.mac.ok {
			c.add(d.looks.mac.at, "mac in the segment host, whose addresses have the machine's own MAC address; %s", right)
		}
		if d.looks.personality.ok {
			c.add(d.looks.personality.at, "personality in the segment host, where the machine shows its own TCP/IP; %s", right)
		}
	}
}

// vendorWord begins a vendor's name in the document: vendor:dell.
const vendorWord = "vendor:"

func parseMAC(s string) (deception.MACPrefix, error) {
	name, ok := strings.CutPrefix(s, vendorWord)
	if !ok {
		p, err := deception.ParseMACPrefix(s)
		if _, known := deception.VendorPrefix(s); err != nil && known {
			return p, fmt.Errorf("%q is no MAC address; write %s%s", s, vendorWord, s)
		}
		if err != nil {
			return p, fmt.Errorf("bad mac: %w, or %sNAME", err, vendorWord)
		}
		return p, nil
	}
	p, ok := deception.VendorPrefix(name)
	if !ok {
		return p, fmt.Errorf("unknown vendor %q; %s; of any other write the first three bytes, as mac: 00:14:22",
			name, suggest(name, "vendors", deception.Vendors()))
	}
	return p, nil
}
