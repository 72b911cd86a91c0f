package demo

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"decoynet/deception"
)

// outpost is a place whose intruder reaches the servers through a node there.
type outpost struct {
	Node      string
	Intruder  []netip.Addr          // addresses of the intruder there, one a family
	Strangers map[netip.Addr]string // who lies between and must never be seen
}

// judgeOutpost holds every server's log and every session against what the
// intruder at the outpost really used: each server saw him at each of his
// addresses, nobody saw one of those who lie between, and each of his visits is
// recorded once, at the node.
func judgeOutpost(e evidence, o outpost) (peers, sessions int, faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	used := map[netip.AddrPort]bool{}
	for _, f := range e.Card.began {
		used[f.Source] = true
	}
	for _, s := range e.Servers {
		seen := map[netip.Addr]bool{}
		for _, c := range s.entries() {
			who, strange := o.Strangers[c.Peer.Addr()]
			switch {
			case strange:
				fault("%s saw %s: that is %s", s.Name, c.Peer, who)
			case slices.Contains(o.Intruder, c.Peer.Addr()) && used[c.Peer]:
				seen[c.Peer.Addr()] = true
				peers++
			}
		}
		for _, a := range o.Intruder {
			if !seen[a] {
				fault("%s has not seen %s", s.Name, a)
			}
		}
	}
	times := map[flow]int{}
	for i := range e.Sessions {
		s := &e.Sessions[i]
		times[s.flow]++
		if who, strange := o.Strangers[s.Source.Addr()]; strange {
			fault("session %s is recorded of %s", s.flow, who)
		}
		if !slices.Contains(o.Intruder, s.Source.Addr()) {
			continue
		}
		sessions++
		if s.Node != o.Node || s.Segment != deception.HostSegment {
			fault("session %s is recorded at node %s, segment %s; not at %s, %s", s.flow, s.Node, s.Segment, o.Node, deception.HostSegment)
		}
		if s.Seen.Source != s.Source && s.Seen.Source.IsValid() {
			fault("session %s was passed on as from %s", s.flow, s.Seen.Source)
		}
	}
	for _, v := range e.Visits {
		if n := times[v.flow]; n != 1 && slices.Contains(o.Intruder, v.Source.Addr()) {
			fault("%s %s is recorded %d times", v.Tool, v.flow, n)
		}
	}
	return peers, sessions, faults
}

// nodeState is what the demo needs of `decoynet get nodes -o json`.
type nodeState struct {
	Name      string
	Condition string
	Wanted    string `json:"revision_wanted"`
	Held      string `json:"revision_held"`
	Peer      string // where the controller sees it
	Problems  []string
}

// converged returns which nodes are not what they are told to be. That a machine has
// no Suricata, of which other problems of analysis follow, is no fault of theirs.
func converged(nodes []nodeState) (faults []string) {
	if len(nodes) != 2 {
		faults = append(faults, fmt.Sprintf("the controller knows %d nodes, not 2", len(nodes)))
	}
	for _, n := range nodes {
		problems := n.Problems
		if slices.ContainsFunc(problems, noSuricata) {
			problems = slices.DeleteFunc(slices.Clone(problems), func(p string) bool { return strings.HasPrefix(p, "inspect: ") })
		}
		if n.Condition != "converged" || n.Held == "" || n.Held != n.Wanted || len(problems) > 0 {
			faults = append(faults, fmt.Sprintf("node %s is %s, with revision %q of %q: %s", n.Name, n.Condition, n.Held, n.Wanted, strings.Join(problems, "; ")))
		}
	}
	return faults
}

// inUse returns a fault where the node does not report that the port is another
// service's.
func inUse(nodes []nodeState, node string, port uint16) (faults []string) {
	for _, n := range nodes {
		for _, p := range n.Problems {
			if n.Name == node && n.Condition == "failed" && strings.Contains(p, fmt.Sprintf("port %d/tcp", port)) && strings.Contains(p, "in use") {
				return nil
			}
		}
	}
	return []string{fmt.Sprintf("node %s does not report that port %d is in use", node, port)}
}
