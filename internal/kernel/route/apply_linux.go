package route

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/kernel/netns"
)

// rounds bounds how often Apply looks again at what it did. Where a route
// replaces another of ours in its slot the kernel may refuse the new one while
// the old one stands (IPv6 tells them apart by next hop only), and a description
// of what to remove may fit more than one object; see plan.lookAgain.
const rounds = 3

// Apply makes the namespace's routes, rules and addresses of ours as desired and
// removes those of ours that are not. It is idempotent: nothing is written where
// all stands already. One object that fails does not stop the others; the error
// is then Status.Err. Any other error says that the kernel could not be asked.
func Apply(ctx context.Context, ns *netns.NS, d Desired) (Status, error) {
	c, err := dial(ns)
	if err != nil {
		return Status{}, err
	}
	defer c.close()
	devs, err := devices(ns)
	if err != nil {
		return Status{}, err
	}
	want, unresolved := resolve(d, devs.index)
	link, _ := devs.index(d.Link)

	var status Status
	for round := 1; ; round++ {
		have, err := read(c, link)
		if err != nil {
			return status, fmt.Errorf("read the routes of %s: %w", ns, err)
		}
		p := diff(have, want)
		x := &execution{ctx: ctx, conn: c, devs: devs}
		err = x.carryOut(have, p)
		status.Added += x.added
		status.Removed += x.removed
		status.Failed = append(slices.Clone(unresolved), x.failed...)
		status.Routes = len(have.routes) + x.routes
		status.Addrs = len(have.addrs) + x.addrs
		status.Rules = len(have.rules) + x.rules
		if err != nil {
			return status, fmt.Errorf("change the routes of %s: %w", ns, err)
		}
		if !p.lookAgain || round == rounds {
			return status, status.Err()
		}
	}
}

// Flush removes every route, rule and address of ours from the namespace, in all
// tables and both families, and nothing else. Addresses are told by their origin
// alone, which kernels before 5.18 do not keep; there they go with their link.
func Flush(ctx context.Context, ns *netns.NS) error {
	_, err := Apply(ctx, ns, Desired{})
	return err
}

// Owned lists the routes, rules and addresses of ours in the namespace as ip(8)
// would write them, sorted.
func Owned(ns *netns.NS) ([]string, error) {
	c, err := dial(ns)
	if err != nil {
		return nil, err
	}
	defer c.close()
	devs, err := devices(ns)
	if err != nil {
		return nil, err
	}
	have, err := read(c, 0)
	if err != nil {
		return nil, fmt.Errorf("read the routes of %s: %w", ns, err)
	}
	var out []string
	for _, r := range slices.SortedFunc(maps.Keys(have.rules), ruleEntry.compare) {
		out = append(out, r.describe())
	}
	for _, r := range slices.SortedFunc(maps.Keys(have.routes), routeEntry.compare) {
		out = append(out, r.describe(devs.name))
	}
	for _, a := range slices.SortedFunc(maps.Keys(have.addrs), addrEntry.compare) {
		out = append(out, a.describe(devs.name))
	}
	return out, nil
}

// Held lists the decoy addresses that are the namespace's now, sorted: what an
// earlier Apply made, by whatever process.
func Held(ns *netns.NS) ([]deception.AddrRange, error) {
	c, err := dial(ns)
	if err != nil {
		return nil, err
	}
	defer c.close()
	have, err := read(c, 0)
	if err != nil {
		return nil, fmt.Errorf("read the addresses of %s: %w", ns, err)
	}
	var out []deception.AddrRange
	for r := range have.routes {
		if r.Type == Local && r.Table == TableLocal {
			out = append(out, deception.RangeOf(r.Dst))
		}
	}
	for a := range have.addrs {
		out = append(out, deception.AddrRange{From: a.Addr, To: a.Addr})
	}
	return deception.SortRanges(out), nil
}

// device is what has to be known of an interface.
type device struct {
	index int
	name  string
	alias string
	up    bool
}

// deviceTable finds interfaces by name and by index.
type deviceTable struct {
	byName  map[string]device
	byIndex map[int]device
}

func devices(ns *netns.NS) (*deviceTable, error) {
	h, err := ns.Handle()
	if err != nil {
		return nil, err
	}
	links, err := netns.Dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the links of %s: %w", ns, err)
	}
	t := &deviceTable{byName: map[string]device{}, byIndex: map[int]device{}}
	for _, l := range links {
		a := l.Attrs()
		d := device{index: a.Index, name: a.Name, alias: a.Alias, up: a.RawFlags&unix.IFF_UP != 0}
		t.byName[d.name], t.byIndex[d.index] = d, d
	}
	return t, nil
}

func (t *deviceTable) index(name string) (int, bool) {
	d, ok := t.byName[name]
	return d.index, ok
}

func (t *deviceTable) name(index int) string {
	if d, ok := t.byIndex[index]; ok {
		return d.name
	}
	return fmt.Sprintf("if%d", index)
}

// read asks the kernel for what is ours. link is the interface of our IPv6
// addresses, for kernels that do not keep their origin.
func read(c *conn, link int) (*state, error) {
	var (
		routes []routeEntry
		rules  []ruleEntry
		held   []heldAddr
	)
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		known := len(routes)
		err := c.dump(unix.RTM_GETROUTE, routeFilter(family), func() { routes = routes[:known] },
			func(kind uint16, data []byte) {
				if kind == unix.RTM_NEWROUTE {
					routes = append(routes, parseRoute(data, family)...)
				}
			})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		known = len(rules)
		err = c.dump(unix.RTM_GETRULE, append([]byte{family}, make([]byte, 11)...), func() { rules = rules[:known] },
			func(kind uint16, data []byte) {
				if r, ours := parseRule(data, family); ours && kind == unix.RTM_NEWRULE {
					rules = append(rules, r)
				}
			})
		if err != nil {
			return nil, fmt.Errorf("list rules: %w", err)
		}
	}
	body := make([]byte, unix.SizeofIfAddrmsg)
	body[0] = unix.AF_INET6
	err := c.dump(unix.RTM_GETADDR, body, func() { held = held[:0] },
		func(kind uint16, data []byte) {
			if a, ok := parseAddr(data); ok && kind == unix.RTM_NEWADDR {
				held = append(held, a)
			}
		})
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	s := newState(len(routes))
	for _, r := range routes {
		s.routes[r] = struct{}{}
	}
	for _, r := range rules {
		s.rules[r] = struct{}{}
	}
	for _, a := range ourAddrs(held, link) {
		s.addrs[a] = struct{}{}
	}
	return s, nil
}

// execution carries out one plan and keeps the account of it.
type execution struct {
	ctx  context.Context
	conn *conn
	devs *deviceTable

	added, removed       int
	routes, addrs, rules int // by how much each grew
	failed               []Failure
}

const (
	addNew    = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	addBeside = unix.NLM_F_CREATE | unix.NLM_F_APPEND
)

func (x *execution) carryOut(have *state, p *plan) error {
	addr := func(a addrEntry) string { return a.describe(x.devs.name) }
	route := func(r routeEntry) string { return r.describe(x.devs.name) }
	steps := []func() error{
		func() error { return x.addAddrs(have, p.addAddrs) },
		func() error { return change(x, unix.RTM_NEWROUTE, addNew, p.addRoutes, appendRoute, route, &x.routes) },
		func() error {
			return change(x, unix.RTM_NEWROUTE, addBeside, p.addBeside, appendRoute, route, &x.routes)
		},
		func() error {
			return change(x, unix.RTM_NEWRULE, addNew, p.addRules, appendRule, ruleEntry.describe, &x.rules)
		},
		func() error {
			return change(x, unix.RTM_DELRULE, 0, p.delRules, appendRule, ruleEntry.describe, &x.rules)
		},
		func() error { return change(x, unix.RTM_DELROUTE, 0, p.delRoutes, appendRoute, route, &x.routes) },
		func() error { return change(x, unix.RTM_DELADDR, 0, p.delAddrs, appendAddr, addr, &x.addrs) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// change sends one kind of change for all objects of a list. For deletion the
// kernel takes the same message as for addition, as a description.
func change[T any](x *execution, kind uint16, flags int, list []T,
	encode func([]byte, T) []byte, describe func(T) string, count *int,
) error {
	if len(list) == 0 {
		return nil
	}
	adding := flags&unix.NLM_F_CREATE != 0
	refused, err := x.conn.run(x.ctx, kind, flags, len(list), func(b []byte, i int) []byte {
		return encode(b, list[i])
	})
	if err != nil {
		return err
	}
	for _, i := range slices.Sorted(maps.Keys(refused)) {
		cause := refused[i]
		switch {
		case adding && errors.Is(cause, unix.EEXIST):
			cause = fmt.Errorf("%w: %w", ErrForeign, cause)
		case !adding && gone(cause):
			// Somebody was faster; it counts as removed.
			delete(refused, i)
			continue
		}
		x.failed = append(x.failed, Failure{Object: describe(list[i]), Err: cause})
	}
	done := len(list) - len(refused)
	if adding {
		x.added += done
		*count += done
	} else {
		x.removed += done
		*count -= done
	}
	return nil
}

// gone tells whether the kernel says that there is no such object (any more).
func gone(err error) bool {
	return errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) ||
		errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV)
}
