package doctor

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"decoynet/deception"
)

// What the relay takes of the descriptor limit: reserved for everything that is
// no flow, and a pair for each flow.
const (
	reservedFiles = 1024
	filesPerFlow  = 2
)

// Flows for which there should be room.
const (
	fewFlows    = 4096
	wantedFiles = 1 << 20
)

func judgeLimits(f *Facts) []Finding {
	l := f.Limits
	out := judgeFiles(l)
	if l.SystemFiles > 0 && l.SystemInUse > l.SystemFiles/10*9 {
		out = append(out, Finding{
			Check: "limits", Subject: "fs.file-max", Severity: Problem,
			What: fmt.Sprintf("%d of the machine's %d open files are in use", l.SystemInUse, l.SystemFiles),
			Why:  "nobody on this machine can open a connection when they are used up",
			Fix:  fmt.Sprintf("sysctl -w fs.file-max=%d", max(2*l.SystemFiles, 1<<21)),
		})
	}
	if l.Tasks > 0 && l.Tasks < l.InUse+64 {
		out = append(out, Finding{
			Check: "limits", Subject: "pids", Severity: Problem,
			What: fmt.Sprintf("%d of the control group's %d tasks are in use", l.InUse, l.Tasks),
			Why:  "decoynet enters namespaces on threads of their own", Fix: "systemctl set-property decoynet.service TasksMax=512",
		})
	}
	return append(out, judgeConntrack(f)...)
}

func judgeFiles(l Limits) []Finding {
	if l.Files == 0 {
		return nil
	}
	flows := int64(min(l.Files, math.MaxInt32)-min(l.Files, reservedFiles)) / filesPerFlow
	who := "this process"
	if l.OfRunning {
		who = "decoynet"
	}
	out := Finding{
		Check: "limits", Subject: "descriptors", Severity: OK,
		What: fmt.Sprintf("%s may open %d files: room for %d relayed flows at once", who, l.Files, flows),
	}
	if flows >= fewFlows {
		return []Finding{out}
	}
	out.Severity = Problem
	out.Why = "further flows wait or are refused; a scan alone opens thousands"
	out.Fix = fmt.Sprintf("ulimit -n %d", wantedFiles)
	if l.PerProcess > 0 && l.PerProcess < wantedFiles {
		out.Fix = fmt.Sprintf("sysctl -w fs.nr_open=%d && %s", wantedFiles, out.Fix)
	}
	if l.OfRunning {
		out.On = "decoynet's unit (LimitNOFILE=1048576) or the shell that starts it"
	}
	return []Finding{out}
}

func judgeConntrack(f *Facts) []Finding {
	l := f.Limits
	if l.Conntrack == 0 || len(kernelUses(f.State)) == 0 {
		return nil
	}
	var out []Finding
	for name, used := range l.ConntrackUsed {
		if used < l.Conntrack/10*8 {
			continue
		}
		where := "this host"
		if name != "" {
			where = "segment " + name
		}
		out = append(out, Finding{
			Check: "limits", Subject: "conntrack", Severity: Problem,
			What: fmt.Sprintf("%s tracks %d connections of %d", where, used, l.Conntrack),
			Why:  "new flows of the kernel path are dropped when it is full",
			Fix:  fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", max(4*l.Conntrack, 1<<18)),
		})
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.What, b.What) })
	if l.Conntrack < 1<<16 && len(out) == 0 {
		out = append(out, Finding{
			Check: "limits", Subject: "conntrack", Severity: Note,
			What: fmt.Sprintf("at most %d connections are tracked", l.Conntrack),
			Why:  "a scan through the kernel path fills that in seconds", Fix: fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", 1<<18),
		})
	}
	return out
}

// judgeNeighbours compares the neighbour table with how many machines could come
// by: each one of a segment's own subnets needs an entry there.
func judgeNeighbours(f *Facts) []Finding {
	var out []Finding
	t := f.Neighbour
	for _, family := range []struct {
		is4          bool
		name         string
		limit, inUse uint64
	}{{true, "ipv4", t.Limit4, t.InUse4}, {false, "ipv6", t.Limit6, t.InUse6}} {
		if family.limit == 0 {
			continue
		}
		size := uint64(0)
		for _, s := range f.segments() {
			for _, n := range s.Subnets {
				if bits := n.Prefix.Addr().BitLen() - n.Prefix.Bits(); n.Prefix.Addr().Is4() == family.is4 && family.is4 {
					size += 1 << bits
				}
			}
		}
		fix := fmt.Sprintf("sysctl -w net.%s.neigh.default.gc_thresh3=%d", family.name, max(4*family.limit, 2*size, 1<<14))
		switch {
		case family.inUse > family.limit/10*8:
			out = append(out, Finding{
				Check: "limits", Subject: "neighbours", Severity: Problem,
				What: fmt.Sprintf("%d of at most %d %s neighbours are known", family.inUse, family.limit, family.name),
				Why:  "the machine cannot answer anybody new when its table is full", Fix: fix,
			})
		case size > family.limit:
			out = append(out, Finding{
				Check: "limits", Subject: "neighbours", Severity: Note,
				What: fmt.Sprintf("the segments' subnets have %d addresses, the machine remembers %d neighbours", size, family.limit),
				Why:  "with more of them in contact at once, some get no answer", Fix: fix,
			})
		}
	}
	return out
}

// judgeListeners names the source ports that cannot be kept: a socket that
// listens on all addresses of the host's namespace takes its port on every
// address, the intruders' too (inet_csk_bind_conflict), whatever SO_REUSEADDR
// says.
func judgeListeners(f *Facts) []Finding {
	if len(f.Listeners) == 0 || f.State == nil {
		return nil
	}
	var ports []deception.PortRange
	for _, l := range f.Listeners {
		ports = append(ports, deception.Port(l.Transport, l.Port))
	}
	return []Finding{{
		Check: "source ports", Severity: Note,
		What: "taken on all addresses by servers of this host: " + deception.JoinPorts(ports),
		Why:  "an intruder that comes from such a port reaches its service from another one; the session holds both. A server bound to one address takes none",
	}}
}
