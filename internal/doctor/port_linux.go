package doctor

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/frame"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/survey"
)

// portSnap is as much of a frame as is looked at: enough for what switches say.
const portSnap = 1024

// sampleOf frames to single hosts one is counted, unless it can be an answer.
const sampleOf = 16

// Ancillary loads of a packet filter (linux/filter.h).
const (
	loadAncillary = 0xfffff000 // SKF_AD_OFF
	loadKind      = loadAncillary + 4
	loadRandom    = loadAncillary + 56
)

// arriving lets pass what comes in for groups, ARP, ICMP, neighbour
// advertisements, and a sample of everything else: a trunk may be busy.
var arriving = []unix.SockFilter{
	/* 0 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: loadKind},
	/* 1 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.PACKET_OUTGOING, Jt: 14}, // 16
	/* 2 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 0},
	/* 3 */ {Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: 1, Jt: 13}, // 17
	/* 4 */ {Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 12},
	/* 5 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: etherARP, Jt: 11}, // 17
	/* 6 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: etherIPv6, Jt: 3}, // 10
	/* 7 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: etherIPv4, Jf: 6}, // 14
	/* 8 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: etherHeader + 9},
	/* 9 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: protoICMP, Jt: 7, Jf: 4}, // 17, 14
	/* 10 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: etherHeader + 6},
	/* 11 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: protoICMPv6, Jf: 2}, // 14
	/* 12 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: etherHeader + 40},
	/* 13 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 136, Jt: 3}, // 17
	/* 14 */ {Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: loadRandom},
	/* 15 */ {Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: sampleOf - 1, Jf: 1}, // 17
	/* 16 */ {Code: unix.BPF_RET | unix.BPF_K, K: 0},
	/* 17 */ {Code: unix.BPF_RET | unix.BPF_K, K: portSnap},
}

// port is a NIC that VLAN segments have as their parent. Tags are written into
// the frames and read from what the kernel says of them, so that no VLAN device
// is needed: neither this kernel's module nor a namespace.
type port struct {
	nic  *survey.Link
	file *os.File
	raw  syscall.RawConn
	done sync.WaitGroup

	pace pace

	mu      sync.Mutex // guards all below
	counter *counter
	asked   map[hostKey]bool // answers of nobody else are kept
	answers map[answerKey]net.HardwareAddr
	owners  map[hostKey]net.HardwareAddr // who says to have an address
	echoes  map[uint16]echoReply         // by identifier
	ours    map[string]bool              // MAC addresses that no answer comes from
}

// answerKey tells answers apart: from whom, to which MAC address and IP address.
type answerKey struct {
	vlan     uint16
	from, to netip.Addr
	mac      [6]byte
}

type hostKey struct {
	vlan uint16
	addr netip.Addr
}

// openPort listens at the NIC for every frame, whoever it is for: the NIC filters
// by MAC address, and some by VLAN, unless it is promiscuous. It is no longer so
// when the socket is closed.
func openPort(ns *netns.NS, nic *survey.Link, segments []*deception.Segment, ours []net.HardwareAddr) (*port, error) {
	file, err := packetSocket(ns, unix.SOCK_RAW, nic.Index, unix.ETH_P_ALL, arriving)
	if err != nil {
		return nil, err
	}
	p := &port{
		nic: nic, file: file, counter: newCounter(segments), asked: map[hostKey]bool{}, answers: map[answerKey]net.HardwareAddr{},
		owners: map[hostKey]net.HardwareAddr{}, echoes: map[uint16]echoReply{}, ours: map[string]bool{},
	}
	for _, m := range ours {
		p.ours[m.String()] = true
	}
	if p.raw, err = file.SyscallConn(); err == nil {
		err = errors.Join(err, p.control(func(fd int) error {
			all := unix.PacketMreq{Ifindex: int32(nic.Index), Type: unix.PACKET_MR_PROMISC}
			return errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
				unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &all))
		}))
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("listen at %s for all frames: %w", nic.Name, err)
	}
	p.done.Go(p.hear)
	return p, nil
}

func (p *port) control(fn func(fd int) error) error {
	var failed error
	err := p.raw.Control(func(fd uintptr) { failed = fn(int(fd)) })
	return errors.Join(err, failed)
}

// close ends the listening and returns the census.
func (p *port) close() *counter {
	var missed uint64
	_ = p.control(func(fd int) error { // a count that is not known is not shown
		stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err == nil {
			missed = uint64(stats.Drops)
		}
		return err
	})
	p.file.Close()
	p.done.Wait()
	p.counter.census.Missed = missed
	return p.counter
}

func (p *port) hear() {
	frame, side := make([]byte, portSnap), make([]byte, 128)
	for {
		var n, m int
		var errRead error
		err := p.raw.Read(func(fd uintptr) bool {
			n, m, _, _, errRead = unix.Recvmsg(int(fd), frame, side, 0)
			return !errors.Is(errRead, unix.EAGAIN)
		})
		if err != nil {
			return // closed
		}
		if errRead != nil {
			continue // the link went down: said once, and none comes
		}
		p.take(frame[:n], tagOf(side[:m]))
	}
}

// tagOf reads the tag that the kernel has taken off (packet(7), PACKET_AUXDATA).
func tagOf(side []byte) uint16 {
	messages, err := unix.ParseSocketControlMessage(side)
	if err != nil {
		return 0
	}
	const status, tci, size = 0, 16, 20 // of struct tpacket_auxdata
	for _, m := range messages {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA && len(m.Data) >= size &&
			binary.NativeEndian.Uint32(m.Data[status:])&unix.TP_STATUS_VLAN_VALID != 0 {
			return binary.NativeEndian.Uint16(m.Data[tci:]) & tagMask
		}
	}
	return 0
}

// take counts a frame and keeps what it answers.
func (p *port) take(frame []byte, vlan uint16) {
	if len(frame) < etherHeader {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ours[net.HardwareAddr(frame[6:12]).String()] {
		return // of another segment on this machine, or come back by a loop
	}
	p.counter.see(frame, vlan)
	to := netip.Addr{}
	a, mac, ok := parseARP(frame)
	if ok {
		to = netip.AddrFrom4([4]byte(frame[etherHeader+24 : etherHeader+28]))
	} else {
		a, mac, ok = parseAdvertisement(frame)
	}
	if ok && p.asked[hostKey{vlan, a}] {
		p.owners[hostKey{vlan, a}], p.answers[answerKey{vlan, a, to, [6]byte(frame[:6])}] = mac, mac
	}
	if e, ok := parseEchoReply(frame); ok {
		p.echoes[e.id] = e
	}
}

// portTick is the time between two frames that are sent at a port. All of its
// VLANs may have one router, which polices how many questions reach it.
const portTick = 2 * time.Millisecond

// pace spaces the frames that are sent at a port.
type pace struct {
	mu   sync.Mutex // guards next
	next time.Time
}

func (p *pace) wait(ctx context.Context) error {
	p.mu.Lock()
	at := p.next
	if now := time.Now(); at.Before(now) {
		at = now
	}
	p.next = at.Add(portTick)
	p.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(at)):
		return nil
	}
}

// send sends a frame with a tag.
func (p *port) send(ctx context.Context, vlan uint16, frame []byte) error {
	if err := p.pace.wait(ctx); err != nil {
		return err
	}
	to := &unix.SockaddrLinklayer{Protocol: swapped(tagCustomer), Ifindex: p.nic.Index, Halen: 6}
	copy(to.Addr[:], frame)
	var failed error
	err := p.raw.Write(func(fd uintptr) bool {
		failed = unix.Sendto(int(fd), tagged(frame, vlan), 0, to)
		return !errors.Is(failed, unix.EAGAIN)
	})
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("send at %s with the tag %d: %w", p.nic.Name, vlan, err)
	}
	return nil
}

// question asks for an address's MAC address.
type question struct {
	vlan   uint16
	from   net.HardwareAddr // the frame's source
	reply  net.HardwareAddr // whom the answer is to be sent to
	sender netip.Addr       // who asks; the zero address for nobody
	target netip.Addr
}

// tries is how often a question is sent while it stays without an answer.
const tries = 3

func (q *question) frame() []byte {
	var b []byte
	if q.target.Is4() {
		b = frame.ARPRequest(frame.MAC(q.reply), q.sender, q.target)
	} else {
		b = frame.Solicitation(frame.MAC(q.reply), linkLocal(q.reply), q.target)
	}
	copy(b[6:12], q.from)
	return b
}

// ask returns who answered to the MAC address that is to be answered; nil where
// nobody did.
func (p *port) ask(ctx context.Context, q question) (net.HardwareAddr, error) {
	key := answerKey{vlan: q.vlan, from: q.target, mac: [6]byte(q.reply)}
	if q.target.Is4() {
		if key.to = q.sender; !q.sender.IsValid() {
			key.to = netip.IPv4Unspecified()
		}
	}
	p.mu.Lock()
	p.asked[hostKey{q.vlan, q.target}] = true
	delete(p.answers, key)
	p.mu.Unlock()
	var mac net.HardwareAddr
	for range tries {
		if err := p.send(ctx, q.vlan, q.frame()); err != nil {
			return nil, err
		}
		until(ctx, linger, func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			mac = p.answers[key]
			return mac != nil
		})
		if mac != nil {
			return bytes.Clone(mac), nil
		}
	}
	return nil, ctx.Err()
}

// taken asks for addresses as duplicate address detection does, rounds times, and
// returns who has them.
func (p *port) taken(ctx context.Context, vlan uint16, from net.HardwareAddr, targets []netip.Addr, rounds int) (map[netip.Addr]net.HardwareAddr, error) {
	out := map[netip.Addr]net.HardwareAddr{}
	look := func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, t := range targets {
			if mac := p.owners[hostKey{vlan, t}]; mac != nil {
				out[t] = mac
			}
		}
		return len(out) == len(targets)
	}
	p.mu.Lock()
	for _, t := range targets {
		p.asked[hostKey{vlan, t}] = true
	}
	p.mu.Unlock()
	for range rounds {
		for _, t := range targets {
			ask := frame.ARPRequest
			if t.Is6() {
				ask = frame.Solicitation
			}
			if out[t] != nil {
				continue
			}
			if err := p.send(ctx, vlan, ask(frame.MAC(from), nobody(t), t)); err != nil {
				return out, err
			}
		}
		until(ctx, linger, look)
	}
	return out, ctx.Err()
}

// ping sends a ping and returns its answer.
func (p *port) ping(ctx context.Context, vlan uint16, from, to net.HardwareAddr, sender, target netip.Addr, id uint16, size int) (echoReply, bool, error) {
	if err := p.send(ctx, vlan, ethernet(from, to, echoRequest(sender, target, id, size))); err != nil {
		return echoReply{}, false, err
	}
	var e echoReply
	ok := false
	until(ctx, linger, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		e, ok = p.echoes[id]
		return ok
	})
	return e, ok, ctx.Err()
}

// heard returns the hosts of the VLAN that were heard.
func (p *port) heard(vlan uint16) []netip.Addr {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.counter.hosts[vlan])
}
