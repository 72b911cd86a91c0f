package route

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// bulkAddrs is from how many new addresses on it pays to take the link down for
// the time of adding them.
const bulkAddrs = 256

// ourAlias is the alias of links that are ours to take down.
const ourAlias = "decoynet"

// addAddrs adds the plan's addresses. While an interface is up the kernel goes
// through all its multicast groups, one a decoy, for each address that is added
// (ipv6_find_idev calls ipv6_mc_up, which schedules a report for each): 4,096
// addresses take more than six seconds of CPU time, under the lock that every
// other change of the network configuration needs. On a link that is down they
// take a twentieth of one second. So a link of ours that carries nothing yet is
// taken down for the first load.
func (x *execution) addAddrs(have *state, list []addrEntry) error {
	add := func() error {
		return change(x, unix.RTM_NEWADDR, addNew, list, appendAddr,
			func(a addrEntry) string { return a.describe(x.devs.name) }, &x.addrs)
	}
	if len(list) < bulkAddrs || len(have.addrs) > 0 {
		return add()
	}
	link := list[0].Dev
	dev := x.devs.byIndex[link]
	if dev.alias != ourAlias || !dev.up {
		return add()
	}
	idle, err := carriesNothing(x.conn, link)
	if err != nil || !idle {
		return errors.Join(err, add())
	}
	if err := x.setUp(link, false); err != nil {
		return err
	}
	return errors.Join(add(), x.setUp(link, true))
}

// setUp sets the up flag of a link. It does so also after the context is
// cancelled: a link taken down must come up again.
func (x *execution) setUp(link int, up bool) error {
	var flags uint32
	if up {
		flags = unix.IFF_UP
	}
	err := x.conn.one(unix.RTM_NEWLINK, func(b []byte) []byte {
		b = append(b, unix.AF_UNSPEC, 0, 0, 0)
		b = native.AppendUint32(b, uint32(link))
		b = native.AppendUint32(b, flags)
		return native.AppendUint32(b, unix.IFF_UP) // the flags to change
	})
	if err != nil {
		return fmt.Errorf("take %s down to load addresses, and up again: %w", x.devs.name(link), err)
	}
	return nil
}

// carriesNothing tells whether no route goes through the link but those that
// the kernel makes by itself and that come back with the link.
func carriesNothing(c *conn, link int) (bool, error) {
	idle := true
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		body := make([]byte, unix.SizeofRtMsg)
		body[0] = family
		body = attribute32(body, unix.RTA_OIF, uint32(link))
		err := c.dump(unix.RTM_GETROUTE, body, func() { idle = true }, func(kind uint16, data []byte) {
			if kind != unix.RTM_NEWROUTE || len(data) < unix.SizeofRtMsg || data[5] == unix.RTPROT_KERNEL {
				return
			}
			attributes(data[unix.SizeofRtMsg:], func(kind uint16, v []byte) {
				switch kind {
				case unix.RTA_OIF:
					idle = idle && int(u32(v)) != link
				case unix.RTA_MULTIPATH:
					for _, hop := range parseHops(routeEntry{}, v) {
						idle = idle && hop.Dev != link
					}
				}
			})
		})
		if err != nil {
			return false, fmt.Errorf("list routes: %w", err)
		}
		if !idle {
			return false, nil
		}
	}
	return true, nil
}
