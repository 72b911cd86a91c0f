package deception

import "time"

// Inspect says how what intruders do is analysed on ingress gateways' machines.
// The zero value analyses nothing.
type Inspect struct {
	// Nodes are the machines that analyse; empty: every one that takes intruders'
	// flows to services (an ingress gateway, or the one machine there is).
	Nodes    []string
	Suricata SuricataMode
	// EVE is the file that a Suricata which others run writes its events to
	// (SuricataExternal); empty: its events are not read.
	EVE string
	// FIFO feeds the Suricata that decoynet runs. It is the default where
	// Suricata is managed.
	FIFO bool
	// Tap is the name of the tap device for Suricata or other sensors; empty: none.
	Tap string
	// Depth is how many bytes of each direction of a flow are fed; 0 is no limit.
	Depth uint64
	// Rules are further rule files, and directories of *.rules files, each
	// absolute, besides those of decoynet and of the system.
	Rules []string
	// SystemRules has the rules below /etc/suricata/rules and
	// /var/lib/suricata/rules loaded as well.
	SystemRules bool
	Capture     []Capture
	PCAP        PCAPLimits
}

// Enabled tells whether anything is analysed or fed at all.
func (i *Inspect) Enabled() bool {
	return i.Suricata != SuricataOff || i.FIFO || i.Tap != "" || i.PCAP.MaxBytes > 0
}

// SuricataMode says who runs Suricata.
type SuricataMode string

// The modes. The zero value is SuricataOff.
const (
	SuricataOff      SuricataMode = ""
	SuricataManaged  SuricataMode = "managed"
	SuricataExternal SuricataMode = "external"
)

// Capture is a link whose flows between gateways are fed as they were before
// the PROXY header.
type Capture struct {
	Interface string
	// Ports are the TCP ports that flows with a header go to; empty: any.
	Ports []PortRange
}

// PCAPLimits bound what is kept of the packets of sessions. MaxBytes 0 keeps none.
type PCAPLimits struct {
	MaxBytes     uint64        // of all files together
	MaxAge       time.Duration // of a file
	SessionBytes uint64        // of one session's packets; 0 is no limit
}
