// Package steer hands every bound (decoy address, transport, port) of a
// segment's namespace to a few sockets of ours, with the original destination
// kept. What is not bound is left to the kernel, which refuses it as any host
// does.
//
// # The data
//
// Decoys come in groups: addresses that share one set of open ports. The kernel
// holds two tables:
//
//	address -> group            longest prefix wins, and it alone decides
//	group, transport, port      open or not
//
// so 65,536 addresses with 10 ports cost their prefixes plus 10 ports, not the
// product of the two. An address in a nested prefix has the ports of the inner
// group only, also where that group has none. Only ipset has no second table; see
// iptables below.
//
// # The mechanisms
//
// sk_lookup (Linux 5.9): a BPF program that the kernel asks for a listener when
// it found no established or connected socket. Prefixes are in an LPM trie, port
// sets in a hash of bitmaps of 512 ports, the sockets in a sockmap. The program
// hangs on the namespace by a link that is pinned, like the tables, in a BPF file
// system which is mounted nowhere: see pinDir. It ends with the process.
//
// TPROXY (Linux 4.19): an nftables table of ours in the namespace, an interval
// map of addresses and a hash set of ports. Nested prefixes are flattened to
// disjoint ranges first. Decoy addresses are local routes of the namespace, so a
// steered packet is delivered by the ordinary route lookup and needs no policy
// routing. A killed process leaves the table, whose rules then match nothing, and
// the next one replaces it.
//
// iptables (Linux 2.6.39 and the program): TPROXY too, by one rule a family and
// transport, which asks a set of prefixes and ports (hash:net,port). Flattened
// prefixes are multiplied by their groups' ports, all into one set: an address
// decides alone there as well, since no two prefixes of the set overlap.
//
// With TPROXY every packet to a bound port passes the two lookups. That is
// wanted: the expression itself prefers an established or connected socket, a
// SYN-cookie acknowledgement needs the listener again, and a SYN that meets a
// TIME_WAIT socket is given to the listener. (A "socket transparent accept" rule
// in front would hand such a SYN to the dying socket, which then looks for a
// listener at the decoy's own address, finds none, and refuses a legitimate
// reuse.)
//
// # The sockets
//
// They are all the descriptors that a segment takes: one can be had from them
// when it is needed of the namespace (SIOCGSKNS), and of what is pinned.
//
// All are dual-stack IPv6 sockets bound to ::ffff:127.0.0.1 and a port of the
// kernel's choice. Such an address is in no packet from a wire (it is martian),
// so nobody reaches the sockets but by steering; and a socket bound to a mapped
// address, unlike one bound to ::1, may be assigned to packets of both families.
//
// A socket of the caller's own for one UDP flow is bound to the decoy's address
// and connected to the intruder's. For IPv6 that needs IP_FREEBIND or
// IP_TRANSPARENT: unlike for IPv4, a local route alone does not make an address
// one that can be bound (inet6_bind). With iptables it needs IP_TRANSPARENT for
// both families: that TPROXY drops what belongs to a socket without.
//
// # Change
//
// Apply takes the whole desired state and writes the difference. Each (address,
// transport, port) goes from what it was to what it shall be in one step, with no
// state in between: see plan. Established connections are never touched.
package steer

import (
	"errors"
	"fmt"
	"net/netip"

	"decoynet/deception"
)

// Group is a set of addresses that share one set of open ports. ID names the
// group from one Apply to the next and in errors.
type Group struct {
	ID       uint32
	Prefixes []netip.Prefix
	Ports    []deception.PortRange
}

// Namespace is the network namespace of a segment.
type Namespace interface {
	FD() int               // descriptor of the namespace
	Do(func() error) error // runs the function inside it
	Name() string
}

// Mechanisms are all there are, the best first.
var Mechanisms = []deception.Steering{deception.SteeringSKLookup, deception.SteeringTPROXY, deception.SteeringIPTables}

// Config says how a namespace is steered.
type Config struct {
	Mode    deception.Steering // SteeringAuto where empty
	Sockets int                // TCP listeners, and as many UDP sockets; 1 where 0
	Backlog int                // of each listener; the kernel caps it at net.core.somaxconn; 4096 where 0
}

// Status is what the kernel holds after an Apply.
type Status struct {
	Mode     deception.Steering
	Groups   int
	Prefixes int
	Ports    int      // open ports, counted once per group
	Writes   int      // table entries written or deleted; 0 where nothing differed
	Failed   []uint32 // groups that are not what was asked for; the error says why
}

// Errors of this package.
var (
	// ErrNotSupported is matched by the error of Open where the kernel lacks
	// the mechanism; see NotSupportedError.
	ErrNotSupported = errors.New("steering is not supported by this kernel")
	// ErrFull is matched by the error of a group that has no room left.
	ErrFull = errors.New("steering table is full")
	// ErrInvalid is matched by the error of a group that makes no sense.
	ErrInvalid = errors.New("invalid steering group")
	// ErrClosed is returned by Apply after Close.
	ErrClosed = errors.New("steering is closed")
)

// NotSupportedError says which mechanism this kernel lacks. It matches
// ErrNotSupported.
type NotSupportedError struct {
	Mode    deception.Steering
	Minimum string // first kernel that has it
	Needs   string // what must be built into that kernel
	Err     error  // what the kernel answered
}

// Error implements error.
func (e *NotSupportedError) Error() string {
	return fmt.Sprintf("steering by %s needs Linux %s with %s: %v", e.Mode, e.Minimum, e.Needs, e.Err)
}

// Is makes the error match ErrNotSupported.
func (e *NotSupportedError) Is(target error) bool { return target == ErrNotSupported }

// Unwrap returns what the kernel answered.
func (e *NotSupportedError) Unwrap() error { return e.Err }

// GroupError says why a group is not what was asked for.
type GroupError struct {
	Group uint32
	Err   error
}

// Error implements error.
func (e *GroupError) Error() string { return fmt.Sprintf("steer group %d: %v", e.Group, e.Err) }

// Unwrap returns the cause.
func (e *GroupError) Unwrap() error { return e.Err }

// Support says what this kernel can do: nil, or why not.
type Support struct {
	SKLookup error
	TPROXY   error
	IPTables error
}

// Best returns the mechanism that SteeringAuto takes, "" where there is none.
func (s Support) Best() deception.Steering {
	switch {
	case s.SKLookup == nil:
		return deception.SteeringSKLookup
	case s.TPROXY == nil:
		return deception.SteeringTPROXY
	case s.IPTables == nil:
		return deception.SteeringIPTables
	}
	return ""
}
