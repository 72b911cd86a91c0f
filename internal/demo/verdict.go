package demo

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"decoynet/deception"
	"decoynet/internal/ecs"
)

// contact is one entry of a server's own log; Local is the zero AddrPort where
// the log does not say what was called.
type contact struct{ Peer, Local netip.AddrPort }

// server is what one server has to say.
type server struct {
	Name      string // nginx
	Service   string // its name in the document
	Transport deception.Transport
	Contacts  []contact
	// Checks are the addresses from which decoynet itself asks a UDP port
	// whether it is open. (It asks TCP ports by half a handshake, of which no
	// server hears.)
	Checks []netip.Addr
}

// visit is a flow on which a client of the intruder's got its answer.
type visit struct {
	flow
	Tool  string
	Group string // visits of one group share a line; "": a line of its own
}

// session is what decoynet has recorded about one flow.
type session struct {
	flow
	ID      string
	Start   time.Time
	Seen    flow   // as the service saw it
	Node    string // where it was met
	Segment string
	Service string
	Path    string
	Reason  string // how it ended, "" while it runs
}

func sessionOf(d ecs.SessionDocument) session {
	return session{
		ID: d.EventID, Start: time.Time(d.EventStart).Local(),
		Node: d.Node, Segment: d.Segment, Service: d.Service, Path: d.Path, Reason: d.EndReason,
		flow: flowOf(d.Transport, d.Source, d.SourcePort, d.Destination, d.Port),
		Seen: flowOf(d.Transport, d.SourceNAT, d.SourceNATPort, d.DestinationNAT, d.NATPort),
	}
}

// evidence is everything that the judgement rests on.
type evidence struct {
	Plan     *plan
	Card     record // the intruders' network cards
	Visits   []visit
	Sessions []session
	Servers  []server
	Alerts   []alert
}

// row is one visit as everybody has it.
type row struct {
	visit
	Session *session // nil: not recorded
	Contact *contact // nil: not in the server's log
}

// serverVerdict is what comes out about one server.
type serverVerdict struct {
	Name, Service string
	Peers         int // entries of the log that are intruders'
	Checks        int // entries that are decoynet's own checks
	Matched       int // entries that have their session
	Sessions      int // sessions of the service
	Rows          []row
	Faults        []string
}

// judgeServers holds each server's own log against the intruder's card and
// against the sessions.
func judgeServers(e evidence) []serverVerdict {
	used := map[netip.AddrPort]bool{}
	for _, f := range e.Card.began {
		used[f.Source] = true
	}
	out := make([]serverVerdict, 0, len(e.Servers))
	for _, s := range e.Servers {
		out = append(out, e.judgeServer(s, used))
	}
	return out
}

func (e *evidence) judgeServer(s server, used map[netip.AddrPort]bool) serverVerdict {
	v := serverVerdict{Name: s.Name, Service: s.Service}
	fault := func(format string, args ...any) { v.Faults = append(v.Faults, fmt.Sprintf(format, args...)) }

	bySeen := map[netip.AddrPort][]int{} // sessions that no entry has claimed yet
	for i := range e.Sessions {
		if c := &e.Sessions[i]; c.Service == s.Service {
			bySeen[c.Seen.Source] = append(bySeen[c.Seen.Source], i)
			v.Sessions++
		}
	}
	entryOf := map[flow]*contact{} // by the session's flow
	for _, c := range s.entries() {
		if s.Transport == deception.UDP && slices.Contains(s.Checks, c.Peer.Addr()) {
			v.Checks++
			continue
		}
		v.Peers++
		if !used[c.Peer] {
			fault("%s saw %s, which the intruder never used", s.Name, c.Peer)
			continue
		}
		at := slices.IndexFunc(bySeen[c.Peer], func(i int) bool {
			return !c.Local.IsValid() || e.Sessions[i].Seen.Destination == c.Local
		})
		if at < 0 {
			fault("%s saw %s, of which no session is recorded", s.Name, c.Peer)
			continue
		}
		found := &e.Sessions[bySeen[c.Peer][at]]
		bySeen[c.Peer] = slices.Delete(bySeen[c.Peer], at, at+1)
		switch {
		case found.Source != c.Peer:
			fault("%s saw %s, the intruder came from %s", s.Name, c.Peer, found.Source)
		case e.Card.stage[found.flow] != established:
			fault("the session %s is none of the intruder's connections", found.flow)
		default:
			v.Matched++
			entryOf[found.flow] = &c
		}
	}
	v.Rows = e.rows(s, entryOf, fault)
	return v
}

// entries returns the log's entries; of a UDP conversation, in which each
// datagram is one, the first.
func (s *server) entries() []contact {
	if s.Transport != deception.UDP {
		return s.Contacts
	}
	var out []contact
	known := map[contact]bool{}
	for _, c := range s.Contacts {
		// Checks are counted by datagram.
		if !known[c] || slices.Contains(s.Checks, c.Peer.Addr()) {
			out = append(out, c)
		}
		known[c] = true
	}
	return out
}

// rows finds for each of the intruder's visits to the server what the others
// know of it.
func (e *evidence) rows(s server, entryOf map[flow]*contact, fault func(string, ...any)) []row {
	sessions := map[flow]*session{}
	for i := range e.Sessions {
		sessions[e.Sessions[i].flow] = &e.Sessions[i]
	}
	var out []row
	for _, visit := range e.Visits {
		if e.Plan.service(visit.Transport, visit.Destination) != s.Service {
			continue
		}
		r := row{visit: visit, Session: sessions[visit.flow], Contact: entryOf[visit.flow]}
		switch {
		case r.Session == nil:
			fault("%s %s got its answer, but no session is recorded", visit.Tool, visit.flow)
		case r.Contact == nil:
			fault("%s %s got its answer, but %s has not logged that peer", visit.Tool, visit.flow, s.Name)
		}
		out = append(out, r)
	}
	return out
}

// judgeSessions holds the recorded sessions against the connections that decoys
// accepted, as the intruder's card saw them: each has one session, and there is
// none besides. A handshake that the intruder broke off may have one, too.
func judgeSessions(e evidence) (connections int, faults []string) {
	recorded := map[flow][]session{}
	for _, s := range e.Sessions {
		recorded[s.flow] = append(recorded[s.flow], s)
	}
	for _, f := range e.Card.began {
		of := recorded[f]
		delete(recorded, f)
		if e.Plan.service(f.Transport, f.Destination) == "" {
			if len(of) > 0 {
				faults = append(faults, fmt.Sprintf("%s %s is recorded (%s), but nothing is bound there", f.Transport, f, ways(of)))
			}
			continue
		}
		full := e.Card.stage[f] == established
		if full {
			connections++
		}
		switch {
		case full && len(of) == 0:
			faults = append(faults, fmt.Sprintf("%s %s was accepted, but no session is recorded", f.Transport, f))
		case len(of) > 1:
			faults = append(faults, fmt.Sprintf("%s %s has %d sessions: %s", f.Transport, f, len(of), ways(of)))
		}
	}
	for f, of := range recorded {
		faults = append(faults, fmt.Sprintf("%s %s is recorded (%s), but was never seen on the intruder's card", f.Transport, f, ways(of)))
	}
	slices.Sort(faults)
	return connections, faults
}

// ways tells when sessions began and how they ended.
func ways(sessions []session) string {
	var out []string
	for _, s := range sessions {
		reason := s.Reason
		if reason == "" {
			reason = "running"
		}
		out = append(out, s.Start.Format("15:04:05.000 ")+reason)
	}
	return strings.Join(out, ", ")
}

// owners is who should answer for which address of the LAN.
type owners struct {
	Decoys   []netip.Addr
	Segment  mac                  // that of the segment, which holds all decoys
	Machines map[netip.Addr]mac   // the real ones
	All      []netip.Addr         // all that were asked for
	Claims   map[netip.Addr][]mac // who answered
}

// judgeOwners checks that decoynet answers for its decoys and for nothing else.
func judgeOwners(o owners) (free int, faults []string) {
	want := map[netip.Addr]mac{}
	for _, a := range o.Decoys {
		want[a] = o.Segment
	}
	for a, m := range o.Machines {
		want[a] = m
	}
	for _, a := range o.All {
		owner, owned := want[a]
		claims := o.Claims[a]
		switch {
		case !owned && len(claims) == 0:
			free++
		case !owned:
			faults = append(faults, fmt.Sprintf("%s is nobody's, yet %v answers for it", a, claims))
		case len(claims) == 0:
			faults = append(faults, fmt.Sprintf("nobody answers for %s", a))
		case !slices.Equal(claims, []mac{owner}):
			faults = append(faults, fmt.Sprintf("%s is at %s, yet %v answers for it", a, owner, claims))
		}
	}
	return free, faults
}

// String writes the address as ip(8) does.
func (m mac) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}
