package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/internal/frame"
	"decoynet/internal/kernel/netns"
)

// wire asks for neighbours at one link, under one MAC address, past the
// kernel's own tables.
type wire struct {
	mac     net.HardwareAddr
	arp, nd *os.File
	ignore  map[string]bool // MAC addresses of ours
	// unicast counts only frames that were sent to mac: what everybody is sent
	// says nothing about whether mac is reached.
	unicast bool

	mu      sync.Mutex // guards answers
	answers map[netip.Addr]net.HardwareAddr
}

// openWire opens the link of that index in the namespace. Frames from a MAC
// address in ignore are not heard.
func openWire(ns *netns.NS, index int, mac net.HardwareAddr, ignore []net.HardwareAddr) (*wire, error) {
	w := &wire{mac: mac, ignore: map[string]bool{}, answers: map[netip.Addr]net.HardwareAddr{}}
	for _, m := range ignore {
		w.ignore[m.String()] = true
	}
	var err error
	// Where the link is a trunk, the kernel shows frames of VLANs that it has no
	// device for without their tags, and as if they were for another host.
	if w.arp, err = packetSocket(ns, unix.SOCK_RAW, index, etherARP, []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: loadKind},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.PACKET_OTHERHOST, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}); err != nil {
		return nil, err
	}
	// Neighbour advertisements only: a busy link has more IPv6 than that.
	if w.nd, err = packetSocket(ns, unix.SOCK_RAW, index, etherIPv6, []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: loadKind},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.PACKET_OTHERHOST, Jt: 5},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 20},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: protoICMPv6, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: etherHeader + 40},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 136, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}); err != nil {
		w.arp.Close()
		return nil, err
	}
	// Answers to duplicate address detection go to all nodes, which a link
	// without IPv6 of its own does not listen to.
	raw, err := w.nd.SyscallConn()
	if err != nil {
		w.close()
		return nil, fmt.Errorf("listen to all nodes: %w", err)
	}
	group := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_MULTICAST, Alen: 6, Address: [8]byte{0x33, 0x33, 0, 0, 0, 1}}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptPacketMreq(int(fd), unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &group)
	})
	if err = errors.Join(err, failed); err != nil {
		w.close()
		return nil, fmt.Errorf("listen to all nodes: %w", err)
	}
	return w, nil
}

// packetSocket opens a packet socket at a link, or, for index 0, at all links.
// It is bound only after the filter is set, so that it never holds anything
// else.
func packetSocket(ns *netns.NS, typ, index int, protocol uint16, filter []unix.SockFilter) (*os.File, error) {
	fd, err := ns.Socket(unix.AF_PACKET, typ|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if filter != nil {
		program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("set packet filter: %w", err)
		}
	}
	// Not more than the machine allows; what does not fit is lost and the
	// probe repeated.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swapped(protocol), Ifindex: index}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind packet socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "packet socket"), nil
}

// swapped is a protocol number in network byte order.
func swapped(v uint16) uint16 { return v<<8 | v>>8 }

func (w *wire) close() {
	w.arp.Close()
	w.nd.Close()
}

// Pace of questions: not so fast that a switch's storm control takes notice.
const (
	perTick = 10
	tick    = 10 * time.Millisecond
	linger  = 300 * time.Millisecond // for the last answers of a round
)

// ask sends the questions, rounds times over to those who have not answered, and
// returns who did. sender is the address that a question is asked under, which
// may be the zero one.
func (w *wire) ask(ctx context.Context, targets []netip.Addr, sender func(netip.Addr) netip.Addr, rounds int) (map[netip.Addr]net.HardwareAddr, error) {
	var readers sync.WaitGroup
	readers.Go(func() { w.hear(w.arp, parseARP) })
	readers.Go(func() { w.hear(w.nd, parseAdvertisement) })
	var err error
	for round := 0; round < rounds && err == nil; round++ {
		if err = w.send(ctx, w.unanswered(targets), sender); err == nil {
			until(ctx, linger, func() bool { return len(w.unanswered(targets)) == 0 })
		}
	}
	for _, f := range []*os.File{w.arp, w.nd} {
		if errDeadline := f.SetReadDeadline(time.Now()); errDeadline != nil {
			f.Close() // so that the reader ends
		}
	}
	readers.Wait()
	for _, f := range []*os.File{w.arp, w.nd} {
		_ = f.SetReadDeadline(time.Time{}) // it fails where the file was closed
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.answers
	w.answers = map[netip.Addr]net.HardwareAddr{}
	return out, err
}

func (w *wire) unanswered(targets []netip.Addr) []netip.Addr {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(targets), func(t netip.Addr) bool { _, ok := w.answers[t]; return ok })
}

func (w *wire) send(ctx context.Context, targets []netip.Addr, sender func(netip.Addr) netip.Addr) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for n, t := range targets {
		if n%perTick == perTick-1 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-ticker.C:
			}
		}
		var err error
		if t.Is4() {
			_, err = w.arp.Write(frame.ARPRequest(frame.MAC(w.mac), sender(t), t))
		} else {
			_, err = w.nd.Write(frame.Solicitation(frame.MAC(w.mac), sender(t), t))
		}
		if err != nil {
			return fmt.Errorf("ask for %s: %w", t, err)
		}
	}
	return nil
}

func (w *wire) hear(f *os.File, parse func([]byte) (netip.Addr, net.HardwareAddr, bool)) {
	var b [512]byte
	for {
		n, err := f.Read(b[:])
		if err != nil {
			return // the deadline, or the link went down
		}
		addr, mac, ok := parse(b[:n])
		if !ok || w.ignore[mac.String()] || w.unicast && !bytes.Equal(b[:6], w.mac) {
			continue
		}
		w.mu.Lock()
		w.answers[addr] = mac
		w.mu.Unlock()
	}
}

// nobody is the sender of probes, which claims no address.
func nobody(target netip.Addr) netip.Addr {
	if target.Is4() {
		return netip.Addr{}
	}
	return netip.IPv6Unspecified()
}
