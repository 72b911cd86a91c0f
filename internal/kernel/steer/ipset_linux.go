package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/kernel/nft"
)

// What <linux/netfilter/ipset/ip_set.h> numbers and golang.org/x/sys does not.
const (
	ipsetProtocol = 6 // every kernel's; 7 changed nothing that is used here
	ipsetRevision = 1 // of hash:net,port, the oldest that today's kernels have

	ipsetCreate  = 2
	ipsetDestroy = 3
	ipsetAdd     = 9
	ipsetDel     = 10
	ipsetHeader  = 12

	attrProtocol = 1
	attrSetName  = 2
	attrTypeName = 3
	attrRevision = 4
	attrFamily   = 5
	attrData     = 7
	attrADT      = 8
	attrLineNo   = 9

	// within attrData
	attrIP      = 1
	attrCIDR    = 3
	attrPort    = 4
	attrPortTo  = 5
	attrProto   = 7
	attrMaxElem = 19

	errIPSetType = unix.Errno(4098) // no such type, or not this revision of it
	errIPSetBusy = unix.Errno(4100) // a rule refers to the set
	errIPSetFull = unix.Errno(4352)
)

// Netlink attributes that hold others, and those in network order, say so.
const (
	nested = unix.NLA_F_NESTED
	netBig = unix.NLA_F_NET_BYTEORDER
)

// ipset is one set of prefixes and ports, of one family.
type ipset struct {
	name   string
	family uint8
	// lengths are the prefix lengths that have a placeholder, see keepLength.
	lengths [129]bool
}

// ipsetConn speaks to the sets of one namespace.
type ipsetConn struct{ conn *netlink.Conn }

func dialIPSet(ns int) (*ipsetConn, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: ns})
	if err != nil {
		return nil, fmt.Errorf("connect to ipset: %w", err)
	}
	if err := conn.SetDeadline(time.Now().Add(nft.Timeout)); err != nil {
		conn.Close()
		return nil, fmt.Errorf("limit the wait for ipset: %w", err)
	}
	return &ipsetConn{conn}, nil
}

func (c *ipsetConn) close() { c.conn.Close() }

// request sends one command and waits for its answer.
func (c *ipsetConn) request(command int, set *ipset, flags netlink.HeaderFlags, body []byte) error {
	data := make([]byte, 0, 64+len(body))
	data = append(data, set.family, unix.NFNETLINK_V0, 0, 0)
	data = appendAttr(data, attrProtocol, ipsetProtocol)
	data = appendAttr(data, attrSetName, append([]byte(set.name), 0)...)
	data = append(data, body...)
	_, err := c.conn.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_IPSET<<8 | command),
			Flags: netlink.Request | netlink.Acknowledge | flags,
		},
		Data: data,
	})
	// The kernel's own errors for sets are numbers that nobody else has words for.
	switch {
	case errors.Is(err, errIPSetFull):
		return fmt.Errorf("%w: %w", ErrFull, err)
	case errors.Is(err, errIPSetType):
		return fmt.Errorf("the kernel has no sets of type hash:net,port: %w", err)
	case errors.Is(err, errIPSetBusy):
		return fmt.Errorf("a rule refers to the set: %w", err)
	}
	return err
}

func (c *ipsetConn) create(set *ipset, maxElem uint32) error {
	var body []byte
	body = appendAttr(body, attrTypeName, append([]byte("hash:net,port"), 0)...)
	body = appendAttr(body, attrRevision, ipsetRevision)
	body = appendAttr(body, attrFamily, set.family)
	body = appendNested(body, attrData, func(b []byte) []byte {
		return appendAttr(b, attrMaxElem|netBig, binary.BigEndian.AppendUint32(nil, maxElem)...)
	})
	if err := c.request(ipsetCreate, set, netlink.Excl, body); err != nil {
		return fmt.Errorf("create set %s: %w", set.name, err)
	}
	return nil
}

// has tells whether there is such a set, of whatever type. No other question is
// as cheap: even to destroy what is not there takes a grace period of RCU.
func (c *ipsetConn) has(set *ipset) bool { return c.request(ipsetHeader, set, 0, nil) == nil }

// destroy removes the set if it is there. A rule that was deleted through
// nftables lets go of its set a little later.
func (c *ipsetConn) destroy(set *ipset) error {
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		err := c.request(ipsetDestroy, set, 0, nil)
		switch {
		case err == nil || errors.Is(err, unix.ENOENT):
			return nil
		case !errors.Is(err, errIPSetBusy):
			return fmt.Errorf("destroy set %s: %w", set.name, err)
		case time.Now().After(end):
			return fmt.Errorf("destroy set %s: look for it with iptables-save: %w", set.name, err)
		}
	}
}

// write adds members to the set or deletes them, all of one message. Adding what
// is there and deleting what is not are no errors.
func (c *ipsetConn) write(command int, set *ipset, members []member) error {
	body := make([]byte, 0, 64*(len(members)+1))
	body = appendAttr(body, attrLineNo, 0, 0, 0, 0) // a list is not taken without
	body = appendNested(body, attrADT, func(b []byte) []byte {
		for i := range members {
			b = appendMember(b, &members[i])
		}
		return b
	})
	if err := c.request(command, set, 0, body); err != nil {
		return fmt.Errorf("write set %s: %w", set.name, err)
	}
	return nil
}

func appendMember(b []byte, m *member) []byte {
	return appendNested(b, attrData, func(b []byte) []byte {
		addr := m.prefix.Addr()
		b = appendNested(b, attrIP, func(b []byte) []byte {
			if addr.Is4() {
				a := addr.As4()
				return appendAttr(b, 1|netBig, a[:]...)
			}
			a := addr.As16()
			return appendAttr(b, 2|netBig, a[:]...)
		})
		b = appendAttr(b, attrCIDR, byte(m.prefix.Bits()))
		b = appendAttr(b, attrPort|netBig, byte(m.ports.First>>8), byte(m.ports.First))
		if m.ports.Last != m.ports.First {
			b = appendAttr(b, attrPortTo|netBig, byte(m.ports.Last>>8), byte(m.ports.Last))
		}
		return appendAttr(b, attrProto, byte(m.ports.Transport))
	})
}

// keepLength returns a member that keeps a prefix length in the set.
//
// A lookup walks the list of lengths that the set holds, without a lock. When the
// last member of a length goes, the longer half of that list moves up by one, and
// a walk at that moment passes over a length: a bound port would be refused. So
// each length keeps a member that no packet matches: the rules are for TCP and
// UDP, it is for UDP-Lite.
func keepLength(p netip.Prefix) member {
	loopback := loopback4
	if p.Addr().Is6() {
		loopback = netip.IPv6Loopback()
	}
	return member{
		piece{netip.PrefixFrom(loopback, p.Bits()).Masked(), 0},
		deception.PortRange{Transport: unix.IPPROTO_UDPLITE},
	}
}

// appendAttr appends a netlink attribute, padded to four bytes.
func appendAttr(b []byte, kind uint16, value ...byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// appendNested appends an attribute that holds those that fill appends.
func appendNested(b []byte, kind uint16, fill func([]byte) []byte) []byte {
	at := len(b)
	b = fill(appendAttr(b, kind|nested))
	binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
	return b
}
