package doctor

import (
	"net"
	"net/netip"
	"slices"
	"strings"

	"decoynet/deception"
	"decoynet/internal/kernel/survey"
	"decoynet/internal/kernel/trial"
	"decoynet/internal/suricata"
)

// Facts is everything that was read. What could not be read stays zero and is
// named in Unread.
type Facts struct {
	Unread []Unread

	// The kernel, and what this process may do.
	Release      string
	Features     []trial.Result
	Capabilities []string // that are missing
	VLANModule   bool     // the modules of this kernel hold 8021q, or it is built in
	Unsynced     bool     // the clock
	Maker        string   // of this machine, as its firmware says: tells hypervisors apart

	// The document, nil without one.
	State *deception.State
	// Running is nil where no decoynet runs on the data directory.
	Running *Running
	// Elsewhere is the data directory of a decoynet that runs on this machine
	// with another one; elsewhereUnknown where it did not tell.
	Elsewhere string
	Leftovers []string // kernel objects of ours that no running decoynet holds

	Data Data

	// The host's network namespace.
	Links     []survey.Link
	Filters   []survey.Chain // of others
	Sysctl    map[string]string
	OurRules  []string       // routing rules and routes of ours, as ip(8) writes them
	Listeners []WildcardPort // sockets bound to all addresses
	Limits    Limits
	Neighbour NeighbourTable

	Segments    []SegmentFacts
	Trunks      []TrunkFacts // NICs of segments that have a tag
	Services    []ServiceProbe
	KernelPaths []KernelProbe
	Routes      map[netip.Addr]survey.Route // to the services

	Inspect *InspectFacts
}

// elsewhereUnknown stands for a data directory that could not be found out.
const elsewhereUnknown = "unknown"

// Unread is something that could not be found out.
type Unread struct {
	Check, Subject string
	Err            error
}

// Running is what a running decoynet says of itself.
type Running struct {
	PID      int
	Document string
	Stale    bool   // the file differs from what is applied
	Broken   string // why the file is not valid; empty where it is
	Ready    bool
	Problems []string // of its last apply
	Segments []RunningSegment
	Lost     uint64 // sessions that were not recorded
	Failing  string // why recording fails now; empty where it works
	Moved    uint64 // flows that lost their source port
	// Suricata is what it says of the one that it runs; nil where it runs none.
	Suricata *suricata.Status
}

// RunningSegment is what the running decoynet says about a segment.
type RunningSegment struct {
	Name, Steering, MAC string
	Ready               bool
}

// Data is the data directory.
type Data struct {
	Path       string
	Exists     bool
	Unwritable string // why nothing can be written there
	FreeBytes  uint64
	FileSystem string
	Mount      string // mount point
	Database   string // why the session store does not open; empty where it does or is not there
}

// WildcardPort is a port that a socket of the host holds on all its addresses.
type WildcardPort struct {
	Transport deception.Transport
	Port      uint16
}

// Limits of the process and the machine. Zero means unknown.
type Limits struct {
	Files         uint64 // hard limit of descriptors, of the running decoynet or of this process
	OfRunning     bool
	SystemFiles   uint64 // fs.file-max
	SystemInUse   uint64
	PerProcess    uint64            // fs.nr_open
	Tasks, InUse  uint64            // pids.max and pids.current of the control group
	Conntrack     uint64            // nf_conntrack_max
	ConntrackUsed map[string]uint64 // by namespace; "" is the host's
}

// NeighbourTable is the machine's one table of neighbours; every namespace has
// its share in it.
type NeighbourTable struct {
	Limit4, Limit6 uint64 // gc_thresh3; 0 where it cannot be seen
	InUse4, InUse6 uint64 // entries of the host and the segments
}

// SegmentFacts is what was found out about one segment.
type SegmentFacts struct {
	Name   string
	Exists bool // its namespace
	MAC    net.HardwareAddr
	Create error // why no macvlan can be made on its parent; nil where one stands or could be made
	LAN    LANProbe
	Probed uint64 // decoy addresses that were asked for
	Total  uint64
	// Conflicts are decoy addresses that somebody else answers for.
	Conflicts []Conflict
	VLAN      *VLANFacts // nil for a segment without a tag
}

// LANProbe is whether frames pass between the LAN and a MAC address of ours.
type LANProbe struct {
	Done      bool
	Parent    bool         // somebody answered the NIC's own address
	Macvlan   bool         // somebody answered the segment's address
	Neighbour netip.Addr   // who did
	Silent    []netip.Addr // gateways that answered nobody
	Asked     bool         // they were asked under a real address, which everybody answers
}

// Conflict is a decoy address that another machine has.
type Conflict struct {
	Addr netip.Addr
	MAC  net.HardwareAddr
}

// Answer is what came back from a service.
type Answer string

// The answers.
const (
	NoAnswer Answer = ""
	Accepts  Answer = "accepts"
	Refuses  Answer = "refuses"
)

// ServiceProbe is what came of asking one port of a service as if an intruder
// asked, and of asking it from this host's own address.
type ServiceProbe struct {
	Service, Zone string
	Target        netip.AddrPort // port 0: it has UDP ports only
	UDP           bool           // only whether it refuses was asked
	Range         bool           // Target stands for a range of ports
	Alias         bool           // Target is an alias address
	From          netip.Addr     // the intruder's
	Sent          error          // why nothing could be sent
	Answer        Answer
	// Links are those of this host at which the answer came in for this host.
	Links []string
	// Passed are those at which it was seen on its way to another machine.
	Passed []string
	// Delivered says that the answer reached the transparent socket.
	Delivered bool
	// Own is the answer to this host's own address, and OwnErr why none came.
	Own    Answer
	OwnErr string
}

// KernelProbe is how far a packet came on the kernel path, injected as if
// it came out of the segment's namespace.
type KernelProbe struct {
	Segment, Service, Zone string
	Uplink                 string // host's end of the segment's veth pair
	Target                 netip.AddrPort
	Sent                   error
	Forwarded              bool // it left at the zone's link
	Answered               bool // the service's answer came in there
	Returned               bool // the answer went back into the segment
}

// Link returns the host's interface of that name, or nil.
func (f *Facts) Link(name string) *survey.Link {
	i := slices.IndexFunc(f.Links, func(l survey.Link) bool { return l.Name == name })
	if i < 0 {
		return nil
	}
	return &f.Links[i]
}

// setting returns a sysctl's value, "" where the kernel has none of that name.
func (f *Facts) setting(parts ...string) string { return f.Sysctl[sysctlKey(parts...)] }

// sysctlKey writes a key with slashes, as interface names may have dots.
func sysctlKey(parts ...string) string { return strings.Join(parts, "/") }

// setCommand is the command that sets a key.
func setCommand(value string, parts ...string) string {
	key := sysctlKey(parts...)
	if !strings.Contains(key, ".") {
		key = strings.ReplaceAll(key, "/", ".")
	}
	return "sysctl -w " + key + "=" + value
}

// kernelUse is a service that a segment's decoys reach by the kernel path.
type kernelUse struct {
	Segment string
	Service *deception.Service
	Zone    *deception.Zone
}

// kernelUses lists who needs the kernel path.
func kernelUses(s *deception.State) []kernelUse {
	var out []kernelUse
	if s == nil {
		return nil
	}
	for i := range s.Decoys {
		d := &s.Decoys[i]
		if d.Path != deception.PathKernel {
			continue
		}
		for _, b := range d.Bind {
			v := s.Service(b.Service)
			if v == nil || s.Zone(v.Zone) == nil {
				continue
			}
			u := kernelUse{d.Segment, v, s.Zone(v.Zone)}
			if !slices.Contains(out, u) {
				out = append(out, u)
			}
		}
	}
	return out
}

// segments are the state's, without the host's own.
func (f *Facts) segments() []deception.Segment {
	if f.State == nil {
		return nil
	}
	var out []deception.Segment
	for _, s := range f.State.Segments {
		if s.Name != deception.HostSegment {
			out = append(out, s)
		}
	}
	return out
}

// vlanSegments are those whose frames carry a tag on their NIC.
func (f *Facts) vlanSegments() []deception.Segment {
	return slices.DeleteFunc(f.segments(), func(s deception.Segment) bool { return s.VLAN == 0 })
}

// zones are the state's.
func (f *Facts) zones() []deception.Zone {
	if f.State == nil {
		return nil
	}
	return f.State.Zones
}
