package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"decoynet/internal/lab"
)

// card reads what an interface of the machine really has, as ip(8) tells it.
func card(ctx context.Context, m *lab.Machine, nic string) (host, error) {
	out, err := m.Run(ctx, "ip", "-j", "address", "show", "dev", nic)
	if err != nil {
		return host{}, err
	}
	var links []struct {
		Address string
		Info    []struct {
			Local netip.Addr
			Scope string
		} `json:"addr_info"`
	}
	if err := json.Unmarshal([]byte(out), &links); err != nil || len(links) != 1 {
		return host{}, fmt.Errorf("read the addresses of %s: %d links, %w", m, len(links), err)
	}
	h := host{Name: m.Name(), MAC: links[0].Address}
	for _, a := range links[0].Info {
		if a.Scope == "global" {
			h.Addrs = append(h.Addrs, a.Local)
		}
	}
	return h, nil
}

// scene reads what the drawing shows.
func (s *Stage) scene(ctx context.Context, p *plan) (scene, error) {
	sc := scene{LAN: "lan", Zone: "linux", Branch: "branch"}
	sc.BranchPrefix = []netip.Prefix{lab.BranchLAN4, lab.BranchLAN6}
	sc.LANPrefix = []netip.Prefix{lab.OfficeLAN4, lab.OfficeLAN6}
	sc.ZonePrefix = []netip.Prefix{lab.OfficeZone4, lab.OfficeZone6}
	var errs []error
	read := func(m *lab.Machine, nic string) host {
		h, err := card(ctx, m, nic)
		errs = append(errs, err)
		return h
	}
	sc.Intruder, sc.Production, sc.Gateway = read(s.Intruder, "eth0"), read(s.Production, "eth0"), read(s.Gateway, "eth0")
	sc.BranchIntruder, sc.CRM = read(s.Branch.Intruder, "eth0"), read(s.Branch.Server, "eth0")
	sc.Outside, sc.Inside = read(s.Branch.Router, "eth0"), read(s.Branch.Router, "eth1")
	sc.CRM.Ports = fmt.Sprintf("its own: %d %d", crmPort, crmAdminPort)
	sc.Bridge = read(s.Gateway, s.Zone.Bridge())
	sc.Bridge.Name = s.Zone.Bridge()
	zone := read(s.Linux, "eth0")
	for _, v := range []struct {
		server *lab.Server
		at     lab.Pair
		ports  string
	}{
		{s.Web, lab.OfficeWeb, "80 443"},
		{s.Redis, lab.OfficeRedis, "6379"},
		{s.SSH.Server, lab.OfficeSSH, "22"},
		{s.UDP, lab.OfficeUDP, "161/udp"},
	} {
		h := host{Name: v.server.Name(), Ports: v.ports}
		for _, a := range zone.Addrs {
			if a == v.at.V4 || a == v.at.V6 {
				h.Addrs = append(h.Addrs, a)
			}
		}
		sc.Servers = append(sc.Servers, h)
	}
	st, err := s.status(ctx)
	if err := errors.Join(append(errs, err)...); err != nil {
		return sc, fmt.Errorf("look at the network: %w", err)
	}
	sc.Decoys, sc.BranchDecoys = p.decoyGroups(), p.hostDecoys(crmNode)
	if st.Inspect.wanted() && st.Inspect.Suricata.Version != "" {
		sc.Sensor = "Suricata " + st.Inspect.Suricata.Version
	}
	for _, g := range st.Segments {
		sc.DecoysAt = "all at " + g.MAC
		sc.Remark = "decoynet, steering by " + g.Steering
	}
	return sc, nil
}

// owners prepares the question who answers for which address, of which the
// intruder's card knows the answer.
func (sc *scene) owners(p *plan, claims map[netip.Addr][]mac) owners {
	o := owners{Machines: map[netip.Addr]mac{}, Claims: claims}
	parse := func(text string) mac {
		hw, err := net.ParseMAC(text)
		if err != nil || len(hw) != 6 {
			return mac{}
		}
		return mac(hw)
	}
	o.Segment = parse(strings.TrimPrefix(sc.DecoysAt, "all at "))
	o.Decoys = p.addresses("")
	known := map[netip.Addr]bool{}
	ask := func(a netip.Addr) {
		if !known[a] {
			known[a] = true
			o.All = append(o.All, a)
		}
	}
	for _, h := range []host{sc.Gateway, sc.Production, sc.Outside} {
		for _, a := range h.Addrs {
			// Nobody needed the machines' IPv6 addresses.
			if a.Is4() || len(claims[a]) > 0 {
				o.Machines[a] = parse(h.MAC)
			}
		}
	}
	for a := lab.OfficeLAN4.Addr().Next(); lab.OfficeLAN4.Contains(a.Next()); a = a.Next() {
		if a != lab.OfficeIntruder.V4 {
			ask(a)
		}
	}
	for _, a := range o.Decoys {
		ask(a)
	}
	for a := range claims {
		if !a.IsLinkLocalUnicast() { // those are each machine's own affair
			ask(a)
		}
	}
	return o
}
