package gateway

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"decoynet/deception"
	"decoynet/internal/kernel/firewall"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/route"
)

// Zones holds what the egress needs of the kernel: replies of services are
// delivered to our transparent sockets, nothing else gets out of a zone, and
// alias addresses lead to their service.
type Zones struct {
	host *netns.NS

	mu       sync.Mutex // serialises Apply and Close; guards the rest
	state    *deception.State
	services map[string]struct{} // namespaces of services that hold alias routes of ours
	problems []string
}

// ZoneStatus is what is true about one zone.
type ZoneStatus struct {
	Name          string   `json:"name"`
	Link          string   `json:"link"`
	Contained     bool     `json:"contained"`
	DeniedPackets uint64   `json:"denied_packets"`
	DeniedBytes   uint64   `json:"denied_bytes"`
	Problems      []string `json:"problems,omitempty"`
}

// rulePriority of a zone's link; kernel-path replies are looked at before.
const rulePriority = 14220

// NewZones returns the zones of the caller's namespace, none yet.
func NewZones() (*Zones, error) {
	host, err := netns.Current()
	if err != nil {
		return nil, fmt.Errorf("open the host's network namespace: %w", err)
	}
	return &Zones{host: host, state: &deception.State{}, services: map[string]struct{}{}}, nil
}

// Apply contains the zones of state that are behind links of this machine and
// lays alias routes in the namespaces of
// its services. Containment comes first, so that no route ever leads out of a
// zone that is not contained. The host's own routes are in HostRoutes, for the
// caller to apply together with those of other roles.
func (z *Zones) Apply(ctx context.Context, state *deception.State) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.state = state
	var rules []firewall.ZoneRules
	for _, zone := range state.Zones {
		if zone.IsLocal() {
			rules = append(rules, firewall.ZoneRules{Zone: zone.Name, Link: zone.Link, Allow: zone.Allow})
		}
	}
	var errs []error
	if _, err := firewall.ApplyZones(ctx, z.host, rules); err != nil {
		errs = append(errs, fmt.Errorf("contain zones: %w", err))
	}
	errs = append(errs, z.applyAliases(ctx, state))
	err := errors.Join(errs...)
	z.problems = nil
	if err != nil {
		z.problems = []string{err.Error()}
	}
	return err
}

// applyAliases makes alias prefixes local in the namespaces of their services,
// and takes them out of namespaces that have none any more.
func (z *Zones) applyAliases(ctx context.Context, state *deception.State) error {
	want := map[string][]route.Route{}
	for _, s := range state.Services {
		if zone := state.Zone(s.Zone); zone != nil && !zone.IsLocal() {
			continue
		}
		for _, p := range s.Aliases {
			if s.Netns != "" {
				want[s.Netns] = append(want[s.Netns], route.Route{Dst: p.Masked(), Type: route.Local, Dev: "lo"})
			}
		}
	}
	for name := range z.services {
		if _, still := want[name]; !still {
			want[name] = nil
		}
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(want)) {
		err := applyIn(ctx, name, route.Desired{Link: "lo", Routes: want[name]})
		if err != nil {
			errs = append(errs, fmt.Errorf("alias routes in namespace %s: %w", name, err))
		}
		if want[name] == nil {
			delete(z.services, name)
		} else {
			z.services[name] = struct{}{}
		}
	}
	return errors.Join(errs...)
}

func applyIn(ctx context.Context, name string, d route.Desired) error {
	ns, err := netns.Open(name)
	if err != nil {
		return err
	}
	_, err = route.Apply(ctx, ns, d)
	return errors.Join(err, ns.Close())
}

// HostRoutes returns what the host's namespace is to hold for the zones of
// state: what comes in at a zone's link is delivered here whatever its
// destination, for the transparent socket that waits for it.
func HostRoutes(state *deception.State) route.Desired {
	var d route.Desired
	if !slices.ContainsFunc(state.Zones, func(z deception.Zone) bool { return z.IsLocal() }) {
		return d
	}
	for _, all := range []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)} {
		d.Routes = append(d.Routes, route.Route{Dst: all, Dev: "lo", Table: route.TableZone, Type: route.Local})
	}
	for _, z := range state.Zones {
		if !z.IsLocal() {
			continue
		}
		for _, p := range z.Subnets {
			// Were the zone's own subnet delivered here too, the kernel would
			// answer ARP for every address in it (arp_process asks the same
			// tables), and services on one bridge would lose each other.
			// IPv6 asks the interface's addresses instead.
			if p.Addr().Is4() {
				d.Routes = append(d.Routes, route.Route{Dst: p, Table: route.TableZone, Type: route.Throw})
			}
		}
		for _, f := range []route.Family{route.IPv4, route.IPv6} {
			d.Rules = append(d.Rules, route.Rule{Family: f, Priority: rulePriority, IIF: z.Link, Table: route.TableZone})
		}
	}
	for _, s := range state.Services {
		zone := state.Zone(s.Zone)
		if !zone.IsLocal() {
			continue
		}
		for _, p := range s.Aliases {
			d.Routes = append(d.Routes, route.Route{Dst: p.Masked(), Via: s.Addr(p.Addr()), Dev: zone.Link})
		}
	}
	return d
}

// Status tells what is true about every zone.
func (z *Zones) Status(ctx context.Context) []ZoneStatus {
	z.mu.Lock()
	defer z.mu.Unlock()
	denied, err := firewall.Denied(ctx, z.host)
	var out []ZoneStatus
	for _, zone := range z.state.Zones {
		if !zone.IsLocal() {
			continue
		}
		st := ZoneStatus{Name: zone.Name, Link: zone.Link, Problems: slices.Clone(z.problems)}
		if err != nil {
			st.Problems = append(st.Problems, err.Error())
		}
		counter, ok := denied[zone.Name]
		st.Contained = ok && len(z.problems) == 0
		st.DeniedPackets, st.DeniedBytes = counter.Packets, counter.Bytes
		out = append(out, st)
	}
	return out
}

// Host returns the namespace that HostRoutes belongs to.
func (z *Zones) Host() *netns.NS { return z.host }

// Close takes back everything of ours in the host's and the services'
// namespaces: routes first, containment last.
func (z *Zones) Close(ctx context.Context) error {
	z.mu.Lock()
	defer z.mu.Unlock()
	_, err := route.Apply(ctx, z.host, route.Desired{Link: "lo"})
	errs := []error{err, z.applyAliases(ctx, &deception.State{})}
	errs = append(errs, firewall.Remove(z.host), z.host.Close())
	return errors.Join(errs...)
}

// Cleanup removes every route, rule and table that any run of decoynet left in
// the host's namespace, and the alias routes in the named namespaces of this
// machine. It needs no memory and no running process. It returns what it
// removed. Alias routes in a namespace without a name below netns.RunDir (a
// container's) go with the container, or with the next clean end.
func Cleanup(ctx context.Context) ([]string, error) {
	host, err := netns.Current()
	if err != nil {
		return nil, fmt.Errorf("open the host's network namespace: %w", err)
	}
	defer host.Close()
	removed, err := flush(ctx, host, "")
	errs := []error{err}
	tables, err := firewall.Owned(host)
	errs = append(errs, err)
	for _, t := range tables {
		removed = append(removed, fmt.Sprintf("nftables table %s %s", t.Family, t.Name))
	}
	errs = append(errs, firewall.Remove(host))
	names, err := netns.List("")
	errs = append(errs, err)
	for _, name := range names {
		ns, err := netns.Open(name)
		if errors.Is(err, netns.ErrNotNamespace) {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		gone, err := flush(ctx, ns, " in namespace "+name)
		removed = append(removed, gone...)
		errs = append(errs, err, ns.Close())
	}
	return removed, errors.Join(errs...)
}

func flush(ctx context.Context, ns *netns.NS, where string) ([]string, error) {
	owned, err := route.Owned(ns)
	if err != nil {
		return nil, err
	}
	for i := range owned {
		owned[i] += where
	}
	return owned, route.Flush(ctx, ns)
}
