package vtap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
)

const device = "/dev/net/tun"

// Tap is a tap device that frames are written to. Its methods may be called from
// any goroutine.
type Tap struct {
	ns   *netns.NS
	name string

	mu    sync.Mutex // guards the rest
	fd    int        // -1 while not attached
	index int        // of the device that fd is attached to
	stats Stats
}

// New returns a Tap of that name in the namespace, which stays the caller's and
// must outlive it. Nothing is made before Apply.
func New(ns *netns.NS, name string) *Tap {
	return &Tap{ns: ns, name: name, fd: -1, stats: Stats{Name: name}}
}

// Apply makes the device, adopts the one that an earlier process left, or mends
// what has been changed about it. A repeat changes nothing. It says in words what
// it changed. A link of that name that is not ours is left as it is, and the
// error wraps ErrForeign; ErrBusy where another process has the device.
func (t *Tap) Apply(ctx context.Context) (changes []string, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	changes, err = t.apply()
	if err != nil {
		return changes, fmt.Errorf("tap device %s: %w", t.name, err)
	}
	return changes, nil
}

func (t *Tap) apply() (changes []string, err error) {
	// The kernel would put a number in the place of a % sign.
	if t.name == "" || len(t.name) >= unix.IFNAMSIZ || strings.ContainsAny(t.name, "/%: \t\n") {
		return nil, fmt.Errorf("bad name; 1 to %d letters and digits", unix.IFNAMSIZ-1)
	}
	h, err := t.ns.Handle()
	if err != nil {
		return nil, err
	}
	l, err := find(h, t.name)
	if err != nil {
		return nil, err
	}
	if l != nil && !ours(l) {
		return nil, fmt.Errorf("%w: choose another name, or delete it (ip link del %s)", ErrForeign, t.name)
	}
	made := l == nil
	if made || t.fd < 0 || l.Attrs().Index != t.index {
		if l, err = t.attach(h, made); err != nil {
			return nil, err
		}
		if made {
			changes = append(changes, t.name+" made")
		}
	}
	mended, err := t.configure(h, l)
	changes = append(changes, mended...)
	if err == nil {
		// Last, so that one which was not made to the end goes with the process.
		err = persist(t.fd)
	}
	if err != nil {
		t.detach()
	}
	return changes, err
}

// find returns the link of that name, or nil.
func find(h *netlink.Handle, name string) (netlink.Link, error) {
	l, err := h.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for it: %w", err)
	}
	return l, nil
}

func ours(l netlink.Link) bool {
	tap, ok := l.(*netlink.Tuntap)
	return ok && tap.Mode == netlink.TUNTAP_MODE_TAP && l.Attrs().Alias == link.Alias
}

// attach opens the device, which it makes where it is to, and marks it as ours.
func (t *Tap) attach(h *netlink.Handle, made bool) (netlink.Link, error) {
	t.detach()
	fd, err := openTap(t.ns, t.name, made)
	if err != nil {
		return nil, err
	}
	l, err := h.LinkByName(t.name)
	if err == nil && made {
		err = h.LinkSetAlias(l, link.Alias)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mark it: %w", err), unix.Close(fd))
	}
	t.fd, t.index = fd, l.Attrs().Index
	t.stats.Open = true
	return l, nil
}

// openTap opens the tap device of that name. What is to be made must not be there
// yet: the kernel would attach us to somebody else's.
func openTap(ns *netns.NS, name string, made bool) (fd int, err error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return -1, fmt.Errorf("name it: %w", err)
	}
	flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if made {
		flags |= unix.IFF_TUN_EXCL
	}
	request.SetUint16(flags)
	err = ns.Do(func() error { // the device is made where the file was opened
		if fd, err = unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
			return &os.PathError{Op: "open", Path: device, Err: err}
		}
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			return errors.Join(os.NewSyscallError("TUNSETIFF", err), unix.Close(fd))
		}
		return nil
	})
	switch {
	case errors.Is(err, unix.EBUSY):
		return -1, fmt.Errorf("%w; is another decoynet running here?", ErrBusy)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return -1, fmt.Errorf("open it: %w (CAP_NET_ADMIN is needed)", err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return -1, fmt.Errorf("tap devices are %w: %w (modprobe tun)", ErrNotSupported, err)
	case err != nil:
		return -1, fmt.Errorf("open it: %w", err)
	}
	return fd, nil
}

// configure sets what differs. The device is up last: by then nothing of the stack
// is left that could say or hear anything.
func (t *Tap) configure(h *netlink.Handle, l netlink.Link) (changes []string, err error) {
	mac, err := net.ParseMAC(macAddress)
	if err != nil {
		return nil, err
	}
	set := func(done bool, what string, do func() error) {
		if done || err != nil {
			return
		}
		if err = do(); err != nil {
			err = fmt.Errorf("set %s: %w", what, err)
			return
		}
		changes = append(changes, t.name+": "+what)
	}
	a := l.Attrs()
	set(a.HardwareAddr.String() == macAddress, "MAC address "+macAddress, func() error { return h.LinkSetHardwareAddr(l, mac) })
	// Before IPv6, which leaves a link of less than 1,280 and comes back with its defaults.
	set(a.MTU == MTU, fmt.Sprintf("MTU %d", MTU), func() error { return h.LinkSetMTU(l, MTU) })
	set(a.RawFlags&unix.IFF_NOARP != 0, "ARP off", func() error { return h.LinkSetARPOff(l) })
	if err != nil {
		return changes, err
	}
	// Booted with ipv6.disable=1 there is no such key.
	key := "net/ipv6/conf/" + t.name + "/disable_ipv6"
	if err := t.ns.Sysctl(map[string]string{key: "1"}); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return changes, err
	}
	addresses, err := netns.Dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return changes, fmt.Errorf("list its addresses: %w", err)
	}
	set(len(addresses) == 0, "no addresses", func() error { return flush(h, l, addresses) })
	set(a.RawFlags&unix.IFF_UP != 0, "up", func() error { return h.LinkSetUp(l) })
	return changes, err
}

// flush takes away addresses that somebody gave the device: with one, the machine
// would have a route to a network that is not there.
func flush(h *netlink.Handle, l netlink.Link, addresses []netlink.Addr) error {
	var errs []error
	for i := range addresses {
		errs = append(errs, h.AddrDel(l, &addresses[i]))
	}
	return errors.Join(errs...)
}

func persist(fd int) error {
	if err := unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1); err != nil {
		return fmt.Errorf("keep it: %w", os.NewSyscallError("TUNSETPERSIST", err))
	}
	return nil
}

// detach lets the device go; t.mu is held.
func (t *Tap) detach() {
	if t.fd >= 0 {
		_ = unix.Close(t.fd) // nothing is waiting in it
	}
	t.fd, t.index, t.stats.Open = -1, 0, false
}

// Frame writes one frame, Ethernet header and all. The time is not the kernel's to
// know: readers take that of the arrival.
func (t *Tap) Frame(_ int64, frame []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	// Locally administered and for one station, in the first octet's low bits.
	if len(frame) < 14 || frame[0]&3 != 2 {
		t.stats.Refused++
		return fmt.Errorf("write to tap device %s: %w", t.name, ErrRefused)
	}
	err := t.write(frame)
	t.stats.Err = err
	if err != nil {
		t.stats.Failed++
		return fmt.Errorf("write to tap device %s: %w", t.name, err)
	}
	t.stats.Frames++
	t.stats.Bytes += uint64(len(frame))
	return nil
}

func (t *Tap) write(frame []byte) error {
	if t.fd < 0 {
		return ErrClosed
	}
	for {
		_, err := unix.Write(t.fd, frame)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EIO):
			return fmt.Errorf("the device is down: %w", err)
		case errors.Is(err, unix.EBADFD):
			return fmt.Errorf("the device was deleted: %w", err)
		}
		return os.NewSyscallError("write", err)
	}
}

// Flush does nothing: no frame waits here.
func (t *Tap) Flush() error { return nil }

// Stats returns what was written.
func (t *Tap) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.stats
}

// Close lets the device go. It stays where it is, see Remove.
func (t *Tap) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.detach()
	return nil
}

// Owned lists the tap devices of ours in the namespace.
func Owned(ns *netns.NS) ([]string, error) {
	h, err := ns.Handle()
	if err != nil {
		return nil, err
	}
	links, err := netns.Dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var names []string
	for _, l := range links {
		if ours(l) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

// Remove deletes every tap device of ours in the namespace but those named, and
// returns the names of those that went.
func Remove(ctx context.Context, ns *netns.NS, keep ...string) (removed []string, err error) {
	names, err := Owned(ns)
	if err != nil {
		return nil, err
	}
	h, err := ns.Handle()
	if err != nil {
		return nil, err
	}
	kept := make(map[string]bool, len(keep))
	for _, name := range keep {
		kept[name] = true
	}
	var errs []error
	for _, name := range names {
		if kept[name] {
			continue
		}
		if err := ctx.Err(); err != nil {
			return removed, errors.Join(append(errs, err)...)
		}
		l, err := find(h, name)
		if err == nil && l != nil && ours(l) {
			err = h.LinkDel(l)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove tap device %s: %w", name, err))
			continue
		}
		removed = append(removed, name)
	}
	return removed, errors.Join(errs...)
}
