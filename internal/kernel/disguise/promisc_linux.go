package disguise

import (
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
)

// promiscuity keeps a device of the machine's receiving all frames, by the
// membership of a packet socket (packet(7)). The kernel counts memberships apart
// from the flag that `ip link set promisc` sets, so nobody else's setting is
// touched, and ends ours with the process.
type promiscuity struct {
	place place
	fd    int
}

// receiveAll makes the device below take frames whatever their address. A device
// of ours keeps that as its flag: it costs no descriptor and outlives the process.
func (d *Disguise) receiveAll(want Desired, lower netlink.Link, st *Status) error {
	if lower.Attrs().Alias == link.Alias {
		handle, err := want.LowerNS.Handle()
		if err != nil {
			return err
		}
		// The flag that a person sees, not the kernel's count, in which others are.
		if lower.Attrs().RawFlags&unix.IFF_PROMISC == 0 {
			if err := handle.SetPromiscOn(lower); err != nil {
				return fmt.Errorf("make %s receive all frames: %w", lower.Attrs().Name, err)
			}
			st.Changes = append(st.Changes, lower.Attrs().Name+" receives all frames")
		}
		st.Promiscuous = true
		return nil
	}
	here := place{want.LowerNS, want.Lower}
	if d.promisc == nil || !d.promisc.place.is(here) {
		p, err := join(want.LowerNS, want.Lower)
		if err != nil {
			return fmt.Errorf("make %s receive all frames: %w", lower.Attrs().Name, err)
		}
		if err := d.letGo(); err != nil {
			return errors.Join(err, unix.Close(p.fd))
		}
		d.promisc = p
		st.Changes = append(st.Changes, lower.Attrs().Name+" receives all frames")
	}
	st.Promiscuous = true
	return nil
}

func join(ns *netns.NS, index int) (*promiscuity, error) {
	// Of protocol 0, which no frame has: nothing is queued on the socket.
	fd, err := ns.Socket(unix.AF_PACKET, unix.SOCK_RAW, 0)
	if err != nil {
		return nil, err
	}
	err = unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP,
		&unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_PROMISC})
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt", err)
	}
	return &promiscuity{place{ns, index}, fd}, nil
}

// receiveOwn undoes receiveAll.
func (d *Disguise) receiveOwn(ns *netns.NS, lower netlink.Link) error {
	errs := []error{d.letGo()}
	if a := lower.Attrs(); a.Alias == link.Alias && a.RawFlags&unix.IFF_PROMISC != 0 {
		handle, err := ns.Handle()
		if err == nil {
			err = handle.SetPromiscOff(lower)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// letGo ends the membership.
func (d *Disguise) letGo() error {
	if d.promisc == nil {
		return nil
	}
	err := unix.Close(d.promisc.fd)
	d.promisc = nil
	if err != nil {
		return fmt.Errorf("close packet socket: %w", err)
	}
	return nil
}

// Close gives up the descriptor that Disguise may hold. The filters stay.
func (d *Disguise) Close() error { return d.letGo() }
