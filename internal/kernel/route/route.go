// Package route realises the addresses, routes and rules of one network
// namespace: a segment's (decoys, subnets, gateway) or the host's (delivery to
// transparent sockets, the way back of the kernel path).
//
// IPv4 decoys are local routes through lo ("AnyIP"), no interface addresses:
// one route can own a whole prefix, the kernel answers ARP and ping for it, and
// tens of thousands load in a fraction of a second. IPv6 decoys have to be
// interface addresses: neighbour solicitations are answered for those (and for
// proxy entries of routers) only, see ndisc_recv_ns in the kernel.
//
// Everything carries Protocol as its origin (rtm_protocol, FRA_PROTOCOL,
// IFA_PROTO). That is how Apply, Flush and Owned tell what is ours; the rest of
// the namespace is never touched.
package route

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Protocol is the origin that marks routes, rules and addresses as ours.
const Protocol = 142

// Routing tables and rule priorities that are ours.
const (
	TableMain  = 254 // the kernel's own
	TableLocal = 255 // the kernel's own
	// TableZone delivers what comes out of a zone to local sockets.
	TableZone = 14200

	tableKernelPath = 14300

	PriorityMin = 14200
	PriorityMax = 14299
)

// TableKernelPath returns the table that leads back into the n-th segment.
func TableKernelPath(n int) uint32 { return tableKernelPath + uint32(n) }

// Type is what a route does with a packet. The values are the kernel's.
type Type uint8

// The types of routes. The zero Type is Unicast.
const (
	Unicast Type = 1 // RTN_UNICAST: send it on
	Local   Type = 2 // RTN_LOCAL: it is for us
	Throw   Type = 9 // RTN_THROW: not in this table, ask the next rule; IPv4 only
)

// Family selects IPv4 or IPv6.
type Family uint8

// The families. The zero Family means that of the addresses given, or both.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Route is one route. Exactly these are compared with the kernel's; what is left
// out here (preferred source, metrics, MTU) is left to the kernel's default.
type Route struct {
	Dst    netip.Prefix // 0.0.0.0/0 or ::/0 for a default route
	Via    netip.Addr   // next hop; zero where Dst is on the link itself
	Dev    string       // empty: Desired.Link, and lo for Local
	Table  uint32       // 0: main, and local for Local
	Type   Type         // 0: Unicast
	Metric uint32       // 0: the kernel's default of the family
	Onlink bool         // Via is reached through Dev whatever the other routes say
}

// Rule sends packets to a table. Zero fields do not select.
type Rule struct {
	Family   Family
	Priority uint32
	IIF      string
	Mark     uint32
	Mask     uint32 // 0 with a Mark: all bits
	From, To netip.Prefix
	Table    uint32
}

// Desired is the whole state of ours in one namespace.
type Desired struct {
	// Link carries the LAN: addresses of Addrs6, subnets and gateways.
	Link string
	// Local4 are the IPv4 decoys.
	Local4 []netip.Prefix
	// Addrs6 are the IPv6 decoys. They are usable at once: duplicate address
	// detection is the business of whoever claims them.
	Addrs6 []netip.Addr
	// Connected are the subnets on Link.
	Connected []netip.Prefix
	// Gateways are the next hops of the default routes, at most one a family.
	Gateways []netip.Addr
	Routes   []Route
	Rules    []Rule
}

// Status is what stands after an Apply, and what that Apply did.
type Status struct {
	Routes, Addrs, Rules int // of ours, in the kernel now
	Added, Removed       int // by this Apply
	// Failed are the objects that are not as desired.
	Failed []Failure
}

// Failure is one object that could not be made or removed.
type Failure struct {
	Object string // as ip(8) would write it
	Err    error
}

// Error writes the failure for a person.
func (f Failure) Error() string { return f.Object + ": " + f.Err.Error() }

// Unwrap returns the cause.
func (f Failure) Unwrap() error { return f.Err }

// ErrForeign says that an object of somebody else stands where ours should be.
var ErrForeign = errors.New("one that is not ours stands in its place")

// shown is how many failures an error spells out: with a link down every one of
// 50,000 routes fails for the same reason.
const shown = 8

// Err joins the failures into one error of bounded length, or nil. errors.Is
// sees the causes of those spelled out.
func (s *Status) Err() error {
	if len(s.Failed) == 0 {
		return nil
	}
	errs := make([]error, 0, shown+1)
	for i, f := range s.Failed {
		if i == shown {
			errs = append(errs, fmt.Errorf("and %d more", len(s.Failed)-shown))
			break
		}
		errs = append(errs, f)
	}
	return errors.Join(errs...)
}

// routeEntry is a route in the kernel's terms. Two are the same route if they
// are equal.
type routeEntry struct {
	Dst    netip.Prefix
	Table  uint32
	Metric uint32
	Type   Type
	Dev    int // ifindex
	Via    netip.Addr
	Onlink bool
}

// slot is where a route stands: the kernel's own key, of which IPv4 and IPv6
// hold one route unless told to append.
type slot struct {
	Dst    netip.Prefix
	Table  uint32
	Metric uint32
}

func (r routeEntry) slot() slot { return slot{r.Dst, r.Table, r.Metric} }

func (r routeEntry) compare(o routeEntry) int {
	return cmp.Or(
		// Subnets before gateways, since a gateway that is not onlink needs its
		// subnet; everything else by address.
		cmp.Compare(boolRank(r.Via.IsValid()), boolRank(o.Via.IsValid())),
		cmp.Compare(r.Table, o.Table),
		r.Dst.Addr().Compare(o.Dst.Addr()),
		cmp.Compare(r.Dst.Bits(), o.Dst.Bits()),
		cmp.Compare(r.Metric, o.Metric),
		cmp.Compare(r.Type, o.Type),
		cmp.Compare(r.Dev, o.Dev),
		r.Via.Compare(o.Via),
		cmp.Compare(boolRank(r.Onlink), boolRank(o.Onlink)),
	)
}

func boolRank(b bool) int {
	if b {
		return 1
	}
	return 0
}

// describe writes the route as ip(8) does.
func (r routeEntry) describe(dev func(int) string) string {
	var b strings.Builder
	switch r.Type {
	case Local:
		b.WriteString("local ")
	case Throw:
		b.WriteString("throw ")
	}
	b.WriteString(r.Dst.String())
	if r.Via.IsValid() {
		b.WriteString(" via " + r.Via.String())
	}
	if name := dev(r.Dev); name != "" && r.Type != Throw {
		b.WriteString(" dev " + name)
	}
	fmt.Fprintf(&b, " table %s", tableName(r.Table))
	if r.Metric != 0 && !(r.Dst.Addr().Is6() && r.Metric == metric6) {
		fmt.Fprintf(&b, " metric %d", r.Metric)
	}
	if r.Onlink {
		b.WriteString(" onlink")
	}
	return b.String()
}

func tableName(t uint32) string {
	switch t {
	case TableMain:
		return "main"
	case TableLocal:
		return "local"
	}
	return fmt.Sprint(t)
}

// ruleEntry is a rule in the kernel's terms.
type ruleEntry struct {
	Family   Family
	Priority uint32
	IIF      string
	Mark     uint32
	Mask     uint32
	From, To netip.Prefix // zero: all
	Table    uint32
	Action   uint8 // FR_ACT_*: ours are all toTable
}

const toTable = 1 // FR_ACT_TO_TBL

func (r ruleEntry) compare(o ruleEntry) int {
	return cmp.Or(
		cmp.Compare(r.Priority, o.Priority),
		cmp.Compare(r.Family, o.Family),
		strings.Compare(r.describe(), o.describe()),
	)
}

// describe writes the rule as ip(8) does.
func (r ruleEntry) describe() string {
	var b strings.Builder
	fmt.Fprintf(&b, "IPv%d rule %d:", r.Family, r.Priority)
	if r.From.IsValid() {
		b.WriteString(" from " + r.From.String())
	} else {
		b.WriteString(" from all")
	}
	if r.To.IsValid() {
		b.WriteString(" to " + r.To.String())
	}
	if r.Mark != 0 || r.Mask != 0 {
		fmt.Fprintf(&b, " fwmark %#x/%#x", r.Mark, r.Mask)
	}
	if r.IIF != "" {
		b.WriteString(" iif " + r.IIF)
	}
	if r.Action != toTable {
		fmt.Fprintf(&b, " action %d", r.Action)
	} else {
		b.WriteString(" lookup " + tableName(r.Table))
	}
	return b.String()
}

// addrEntry is an IPv6 address of an interface.
type addrEntry struct {
	Addr netip.Addr
	Bits int
	Dev  int
}

func (a addrEntry) compare(o addrEntry) int {
	return cmp.Or(a.Addr.Compare(o.Addr), cmp.Compare(a.Bits, o.Bits), cmp.Compare(a.Dev, o.Dev))
}

func (a addrEntry) describe(dev func(int) string) string {
	return fmt.Sprintf("address %s dev %s", netip.PrefixFrom(a.Addr, a.Bits), dev(a.Dev))
}
