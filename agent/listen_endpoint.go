package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"decoynet/deception"
)

// part is one socket of an endpoint.
type part interface {
	// close closes the socket and, where they live on it, its flows.
	close()
	flows() int
}

// endpoint is a port that is to be listened on, and what stands of it: one
// socket, or one an address where a single one cannot be had. Its fields are
// guarded by Listen.mu.
type endpoint struct {
	listen *Listen
	key    endpointKey
	decoy  string
	parts  map[netip.Addr]part

	problem  string // why it is not open in full, empty where it is
	inUse    bool   // by another process, as was reported
	usedAt   string // where, in words
	usedText string // the problem that this is
}

// attempt is what all endpoints of one round share.
type attempt struct {
	ctx    context.Context
	local  map[bool][]netip.Addr // the machine's addresses, by "is IPv4"
	owners *socketOwners
}

// addresses returns the machine's addresses of the family of a.
func (t *attempt) addresses(a netip.Addr) ([]netip.Addr, error) {
	if t.local == nil {
		local, err := localAddresses()
		if err != nil {
			return nil, err
		}
		t.local = map[bool][]netip.Addr{}
		for _, a := range local {
			t.local[a.Is4()] = append(t.local[a.Is4()], a)
		}
	}
	return t.local[a.Is4()], nil
}

// errSplit is returned by a listen function where one socket cannot do for all
// addresses, because this system does not tell which of them a datagram was for.
var errSplit = errors.New("one socket for each address")

// open opens what is missing.
//
// A port that must be open at every address is one socket. Where another process
// has the port at one of them only (a resolver at 127.0.0.53), that socket cannot
// be had, and each of the other addresses gets its own.
func (e *endpoint) open(t *attempt) {
	if _, whole := e.parts[e.key.addr]; whole {
		return
	}
	if len(e.parts) == 0 {
		err := e.openWhole(t)
		split := e.key.every() && (errors.Is(err, errSplit) || portInUse(err) && maySplit)
		if !split {
			e.settle(t, err)
			return
		}
	}
	e.settle(t, e.openEach(t))
}

// openWhole opens the one socket that the key names.
func (e *endpoint) openWhole(t *attempt) error {
	at := netip.AddrPortFrom(e.key.addr, e.key.port)
	if !e.key.every() && !e.listen.holds(e.key) {
		if err := checkFree(t.ctx, e.key.network(), at); err != nil {
			return &listenError{at, err}
		}
	}
	return e.listenAt(t, e.key.addr)
}

// openEach opens a socket for each of the machine's addresses.
func (e *endpoint) openEach(t *attempt) error {
	addrs, err := t.addresses(e.key.addr)
	if err != nil {
		return fmt.Errorf("list this machine's addresses: %w", err)
	}
	for addr, p := range e.parts {
		if !slices.Contains(addrs, addr) { // the machine has it no more
			p.close()
			delete(e.parts, addr)
		}
	}
	var errs []error
	for _, addr := range addrs {
		if _, open := e.parts[addr]; !open {
			errs = append(errs, e.listenAt(t, addr))
		}
	}
	return errors.Join(errs...)
}

// listenAt opens one socket. Its error names the address.
func (e *endpoint) listenAt(t *attempt, addr netip.Addr) error {
	at := netip.AddrPortFrom(addr, e.key.port)
	listen := e.listen.listenTCP
	if e.key.transport == deception.UDP {
		listen = e.listen.listenUDP
	}
	p, err := listen(t.ctx, e.key.network(), at)
	if err != nil {
		return &listenError{at, err}
	}
	e.parts[addr] = p
	return nil
}

// listenError says at which address a port could not be opened.
type listenError struct {
	at  netip.AddrPort
	err error
}

func (e *listenError) Error() string { return fmt.Sprintf("%s: %v", e.at, e.err) }
func (e *listenError) Unwrap() error { return e.err }

// settle makes of what an attempt met the endpoint's problem, and an event where
// another process began or ceased to be the cause.
func (e *endpoint) settle(t *attempt, err error) {
	switch {
	case err != nil && e.key.every() && noFamily(err):
		err = nil // the machine has no such addresses
	case portInUse(err):
		e.settleInUse(t, err)
		return
	}
	if e.inUse && err == nil {
		e.inUse = false
		text := fmt.Sprintf("port %s is free now and belongs to decoy %s", e.key, e.decoy)
		e.listen.cfg.Log.Info(text)
		e.listen.event(deception.EventPortTaken, e, text)
	}
	e.problem = ""
	if err != nil {
		e.problem = fmt.Sprintf("decoy %s cannot have port %s: %s", e.decoy, e.key, explain(err))
	}
}

// settleInUse reports, once, that another process has the port.
func (e *endpoint) settleInUse(t *attempt, err error) {
	at := failedAt(err)
	where := e.key.where()
	if e.key.every() && len(e.parts) > 0 { // the other addresses are open
		where = joinAddrs(at)
	}
	if e.inUse && e.usedAt == where {
		e.problem = e.usedText
		return
	}
	if t.owners == nil {
		t.owners = newSocketOwners()
	}
	by := "another process of this machine"
	for _, one := range at {
		if name := t.owners.find(e.key.transport, one); name != "" {
			by = name
			break
		}
	}
	e.problem = fmt.Sprintf("port %s of decoy %s is in use on %s by %s; decoynet leaves it alone and takes it as soon as it is free: "+
		"stop that service, or take the port out of the decoy", portName(e.key.transport, e.key.port), e.decoy, where, by)
	e.usedAt, e.usedText = where, e.problem
	if !e.inUse {
		e.inUse = true
		e.listen.cfg.Log.Warn(e.problem)
		e.listen.event(deception.EventPortInUse, e, e.problem)
	}
}

// failedAt returns the addresses of a joined error at which the port is in use.
func failedAt(err error) []netip.AddrPort {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var out []netip.AddrPort
		for _, one := range joined.Unwrap() {
			out = append(out, failedAt(one)...)
		}
		return out
	}
	var at *listenError
	if errors.As(err, &at) && portInUse(err) {
		return []netip.AddrPort{at.at}
	}
	return nil
}

func joinAddrs(list []netip.AddrPort) string {
	words := make([]string, len(list))
	for i, a := range list {
		words[i] = a.Addr().String()
	}
	return strings.Join(words, ", ")
}

// close closes every socket of the endpoint.
func (e *endpoint) close() {
	for _, p := range e.parts {
		p.close()
	}
	clear(e.parts)
}

// localAddresses returns the unicast addresses of this machine's interfaces that
// are up. IPv6 link-local ones have a zone.
func localAddresses() ([]netip.Addr, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	seen := map[netip.Addr]struct{}{}
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away meanwhile
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue
			}
			addr := p.Addr().Unmap()
			if addr.Is6() && addr.IsLinkLocalUnicast() {
				addr = addr.WithZone(i.Name)
			}
			seen[addr] = struct{}{}
		}
	}
	return slices.SortedFunc(maps.Keys(seen), netip.Addr.Compare), nil
}

// broadcasts returns the broadcast addresses of the machine's IPv4 subnets.
func broadcasts() map[netip.Addr]struct{} {
	out := map[netip.Addr]struct{}{netip.AddrFrom4([4]byte{255, 255, 255, 255}): {}}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return out
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && p.Addr().Is4() && p.Bits() < 31 { // RFC 3021: a /31 has none
			out[deception.LastAddr(p)] = struct{}{}
		}
	}
	return out
}
