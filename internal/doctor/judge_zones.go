package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"decoynet/deception"
	"decoynet/internal/kernel/netns"
)

// judgeZones looks at the links that services are reached through.
func judgeZones(f *Facts) []Finding {
	var out []Finding
	for _, z := range f.zones() {
		found := judgeZone(f, z)
		if len(found) == 0 {
			found = []Finding{{Check: "zone", Subject: z.Name, Severity: OK, What: z.Link + " is up, with the addresses that are its services' gateways"}}
		}
		out = append(out, found...)
	}
	return out
}

func judgeZone(f *Facts, z deception.Zone) []Finding {
	var out []Finding
	add := func(severity Severity, what, why, fix, on string) {
		out = append(out, Finding{Check: "zone", Subject: z.Name, Severity: severity, What: what, Why: why, Fix: fix, On: on})
	}
	l := f.Link(z.Link)
	if l == nil {
		if len(f.Links) > 0 {
			add(Problem, fmt.Sprintf("its link %s does not exist; interfaces here: %s", z.Link, candidates(f)),
				"its services are reached through it", fmt.Sprintf("zone %s: link: INTERFACE", z.Name), OnDocument)
		}
		return out
	}
	if !l.Up {
		add(Problem, z.Link+" is down", "its services are reached through it", "ip link set "+z.Link+" up", "")
		return out
	}
	if !l.Carrier {
		add(Note, z.Link+" has no carrier", "nothing is plugged in there", "", "")
	}
	for _, subnet := range z.Subnets {
		if hasAddr(l, subnet) {
			continue
		}
		fix := fmt.Sprintf("ip address add %s dev %s", netip.PrefixFrom(freeAddr(f.State, subnet), subnet.Bits()), z.Link)
		if subnet.Addr().Is6() {
			fix += " nodad"
		}
		add(Problem, fmt.Sprintf("%s has no address in %s", z.Link, subnet), "services answer to it as their gateway", fix, "")
	}
	if len(out) > 0 {
		return out
	}
	for _, s := range f.State.Services {
		for _, a := range []netip.Addr{s.Addr4, s.Addr6} {
			r, known := f.Routes[a]
			switch {
			case s.Zone != z.Name || !a.IsValid() || !known:
			case r.Local:
				add(Problem, fmt.Sprintf("%s of service %s is this host's own address", a, s.Name), "nothing is sent to the service", fmt.Sprintf("service %s: address: ADDRESS", s.Name), OnDocument)
			case r.Dev != z.Link:
				add(Problem, fmt.Sprintf("service %s (%s) is reached through %s, not %s", s.Name, a, r.Dev, z.Link),
					"its answers come in where nobody waits for them, and are not contained", fmt.Sprintf("ip route replace %s dev %s", netip.PrefixFrom(a, a.BitLen()), z.Link), "")
			}
		}
	}
	return out
}

// freeAddr returns the first host address of a zone's subnet that no service
// has.
func freeAddr(s *deception.State, p netip.Prefix) netip.Addr {
	for a := p.Masked().Addr().Next(); p.Contains(a); a = a.Next() {
		if !slices.ContainsFunc(s.Services, func(v deception.Service) bool { return v.Addr4 == a || v.Addr6 == a }) {
			return a
		}
	}
	return p.Masked().Addr().Next()
}

// gateway returns the address of this host that the zone's services have as
// their gateway.
func (f *Facts) gateway(z *deception.Zone, family netip.Addr) netip.Addr {
	l := f.Link(z.Link)
	for _, subnet := range z.Subnets {
		if subnet.Addr().Is4() != family.Is4() {
			continue
		}
		if l != nil {
			for _, a := range l.Addrs {
				if subnet.Contains(a.Addr()) {
					return a.Addr()
				}
			}
		}
		return freeAddr(f.State, subnet)
	}
	return netip.Addr{}
}

// judgeServices tells from the probes whether services answer, and whether
// their answers to strangers come to this host.
func judgeServices(f *Facts) []Finding {
	var out []Finding
	for _, z := range f.zones() {
		broken := Problems(judgeZone(f, z)) > 0
		for i := range f.State.Services {
			s := &f.State.Services[i]
			if s.Zone != z.Name {
				continue
			}
			found := judgeService(f, s, &z)
			if broken && Problems(found) > 0 {
				continue // most likely by what is wrong with the zone
			}
			out = append(out, found...)
		}
	}
	return out
}

func judgeService(f *Facts, s *deception.Service, z *deception.Zone) []Finding {
	var out []Finding
	good, worldBad := 0, map[bool]bool{} // by whether it is IPv4
	for i := range f.Services {
		p := &f.Services[i]
		_, near := subnetOf(f.State, p.From)
		if p.Service != s.Name || near && worldBad[p.Target.Addr().Is4()] {
			continue // one way back is wrong; the way of the world comes first
		}
		found, bad := judgeProbe(f, p, s, z)
		if !bad {
			good++
			continue
		}
		worldBad[p.Target.Addr().Is4()] = worldBad[p.Target.Addr().Is4()] || !near
		// One cause shows at many ports.
		if !slices.ContainsFunc(out, func(o Finding) bool { return o.What == found.What }) {
			out = append(out, found)
		}
	}
	if len(out) == 0 && good > 0 {
		out = append(out, Finding{Check: "service", Subject: s.Name, Severity: OK, What: "answers, and its answers to strangers come to this host"})
	}
	return out
}

// judgeProbe returns a finding where the probe tells of something bad.
func judgeProbe(f *Facts, p *ServiceProbe, s *deception.Service, z *deception.Zone) (Finding, bool) {
	out := Finding{Check: "service", Subject: s.Name, Severity: Problem, On: fmt.Sprintf("the machine of service %s (%s)", s.Name, s.Addr(p.Target.Addr()))}
	came := len(p.Links) > 0
	switch {
	case p.Sent != nil:
		out.What = fmt.Sprintf("%s cannot be asked: %v", p.what(), p.Sent)
		out.Why, out.On = "decoynet cannot reach it either", ""
		out.Fix = "ip route get " + p.Target.Addr().String()
	case came && !slices.Contains(p.Links, z.Link):
		out.What = fmt.Sprintf("its answers come in at %s, not at %s", strings.Join(p.Links, ", "), z.Link)
		out.Why = "answers are waited for, and the zone contained, at its link only"
		out.Fix, out.On = fmt.Sprintf("zone %s: link: %s", z.Name, p.Links[0]), OnDocument
	case came && p.Answer == Refuses || !came && p.Own == Refuses:
		out.What = fmt.Sprintf("%s refuses connections", p.what())
		out.Why = "decoys' ports that lead there are closed"
		out.Fix = fmt.Sprintf("start the server (who listens: ss -lntup 'sport = :%d')", p.Target.Port())
	case came && (p.Delivered || f.Running == nil):
		return Finding{}, false
	case came:
		return judgeUndelivered(f, p, z)
	case p.Own == NoAnswer && !p.Alias:
		out.What = fmt.Sprintf("%s does not answer: %s", p.what(), p.OwnErr)
		out.Why = "decoys' ports that lead there are closed"
		out.Fix = "start the machine, or open its firewall for " + p.what()
		if p.Target.Port() == 0 {
			out.Severity, out.What = Note, fmt.Sprintf("%s has no TCP port and does not say when a UDP port is closed: where its answers go cannot be told", p.Target.Addr())
			out.Why, out.Fix, out.On = "", "", ""
		}
	case p.Alias && p.Own == NoAnswer:
		return judgeAlias(f, p, s), true
	default:
		return judgeAstray(f, p, s, z), true
	}
	return out, true
}

func (p *ServiceProbe) what() string {
	if p.Target.Port() == 0 {
		return p.Target.Addr().String()
	}
	transport := deception.TCP
	if p.UDP {
		transport = deception.UDP
	}
	return "port " + deception.Port(transport, p.Target.Port()).String() + " of " + p.Target.Addr().String()
}

// judgeAstray is for a service that answers this host and not strangers.
func judgeAstray(f *Facts, p *ServiceProbe, s *deception.Service, z *deception.Zone) Finding {
	gateway := f.gateway(z, p.Target.Addr())
	out := Finding{
		Check: "service", Subject: s.Name, Severity: Problem,
		What: fmt.Sprintf("%s answers this host, but its answers to strangers (%s) go elsewhere", p.Target.Addr(), kind(f.State, p.From)),
		Why:  "its way to intruders must be this host: connections through decoys hang",
	}
	if len(p.Passed) > 0 {
		out.What += fmt.Sprintf(" (seen at %s on their way to another machine)", strings.Join(p.Passed, ", "))
	}
	command := "ip route replace default via " + gateway.String()
	if subnet, ok := subnetOf(f.State, p.From); ok {
		// It has a way of its own into the segment's network.
		command = fmt.Sprintf("ip route replace %s via %s", subnet, gateway)
	}
	if gateway.Is6() {
		command = strings.Replace(command, "ip route", "ip -6 route", 1)
	}
	out.Fix, out.On = inside(s, command), on(s, p)
	return out
}

// kind says what sort of stranger the address stands for.
func kind(state *deception.State, from netip.Addr) string {
	if subnet, ok := subnetOf(state, from); ok {
		return "in " + subnet.String()
	}
	return "of the world"
}

func subnetOf(state *deception.State, a netip.Addr) (netip.Prefix, bool) {
	for _, s := range state.Segments {
		for _, n := range s.Subnets {
			if n.Prefix.Contains(a) {
				return n.Prefix, true
			}
		}
	}
	return netip.Prefix{}, false
}

// inside writes a command so that it runs in the service's namespace, where the
// document names that.
func inside(s *deception.Service, command string) string {
	switch {
	case s.Netns == "":
		return command
	case strings.Contains(s.Netns, "/"):
		return "nsenter --net=" + s.Netns + " " + command
	}
	return "nsenter --net=" + netns.RunDir + "/" + s.Netns + " " + command
}

func on(s *deception.Service, p *ServiceProbe) string {
	if s.Netns != "" {
		return ""
	}
	return fmt.Sprintf("the machine of service %s (%s)", s.Name, s.Addr(p.Target.Addr()))
}

// judgeAlias is for a service that does not answer at its alias addresses.
func judgeAlias(f *Facts, p *ServiceProbe, s *deception.Service) Finding {
	prefix, _ := s.AliasPrefix(p.Target.Addr())
	command := fmt.Sprintf("ip route add local %s dev lo", prefix)
	if prefix.Addr().Is6() {
		command = strings.Replace(command, "ip route", "ip -6 route", 1)
	}
	out := Finding{
		Check: "service", Subject: s.Name, Severity: Problem,
		What: fmt.Sprintf("does not answer at its alias %s", p.Target),
		Why:  "each decoy reaches it at an alias of its own; its server must listen on all addresses",
		Fix:  inside(s, command), On: on(s, p),
	}
	if f.Running == nil {
		out.Severity = Note
		out.What += "; decoynet, which lays the routes, does not run"
		out.Fix, out.On = "", ""
	}
	return out
}

// judgeUndelivered is for an answer that came in at the zone's link and did not
// reach its socket. Filters and reverse path filtering have checks of their
// own; what is left is the rule that delivers it.
func judgeUndelivered(f *Facts, p *ServiceProbe, z *deception.Zone) (Finding, bool) {
	family := "IPv4"
	if p.Target.Addr().Is6() {
		family = "IPv6"
	}
	rule := func(o string) bool {
		return strings.HasPrefix(o, family+" rule") && strings.Contains(o, " iif "+z.Link+" lookup ")
	}
	out := Finding{
		Check: "service", Subject: p.Service, Severity: Problem,
		What: fmt.Sprintf("answers of %s come in at %s and do not reach decoynet", p.Target.Addr(), z.Link),
		Why:  "connections through decoys hang",
	}
	switch {
	case !slices.ContainsFunc(f.OurRules, rule):
		out.What += fmt.Sprintf(": the %s routing rule of %s is gone", family, z.Link)
		out.Fix = "decoynet reload"
	case filtered(f, z, p.Target.Addr()) || reversePathAt(f, z.Link) == "1" && p.Target.Addr().Is4():
		return Finding{}, false // said by their own checks
	default:
		out.What += "; something on this host drops them"
		out.Fix = "nft list ruleset; ip rule; nstat -az TcpExtIPReversePathFilter"
	}
	return out, true
}
