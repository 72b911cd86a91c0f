package doctor_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/doctor"
	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
)

// router is a VLAN of the switch below, with a gateway in it.
type router struct {
	addr netip.Addr
	mac  net.HardwareAddr

	silent   bool // the VLAN is not carried at all
	firstMAC bool // port security: frames of any other source than the NIC's are dropped
	toNIC    bool // a hypervisor: frames to any other MAC address than the NIC's are dropped
	leases   bool // ARP inspection: senders with an address are dropped, none has a lease
	largest  int  // largest IP packet that passes; 0: any
	mtu      int  // of the gateway, whose answers come in fragments; 0: any
	alsoHas  netip.Addr
}

// trunk is a decoy host whose eth1 is plugged into a switch's trunk port. The
// switch is written in Go: frames with tags need no VLAN device then, which not
// every kernel has.
type trunk struct {
	t        *testing.T
	gw, core *lab.Machine
	nic      net.HardwareAddr
	port     *os.File

	mu      sync.Mutex // guards routers and seen
	routers map[uint16]*router
	seen    [][]byte // frames that came to the switch
}

func newTrunk(t *testing.T) *trunk {
	t.Helper()
	l := labtest.New(t)
	s := &trunk{t: t, gw: l.Machine("gw"), core: l.Machine("core"), routers: map[uint16]*router{}}
	labtest.Built(t, l)
	s.run(s.core, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
	s.run(s.gw, "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
	s.run(s.core, fmt.Sprintf("ip link add port1 type veth peer name eth1 netns %d && ip link set port1 mtu 9000 up", s.gw.PID()))
	s.run(s.gw, "ip link set eth1 up && ip address add 10.99.0.5/24 dev eth1")
	var err error
	if s.nic, err = net.ParseMAC(strings.TrimSpace(s.run(s.gw, "cat /sys/class/net/eth1/address"))); err != nil {
		t.Fatal(err)
	}
	err = s.core.Do(func() error {
		link, err := net.InterfaceByName("port1")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		s.port = os.NewFile(uintptr(fd), "port1")
		// In the frame, where the switch wants it, the tag stays only so long as
		// nobody asks for it apart: the kernel takes it off and tells by auxdata.
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: link.Index}))
	})
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Go(s.forward)
	t.Cleanup(func() { s.port.Close(); done.Wait() })
	return s
}

func (s *trunk) run(m *lab.Machine, command string) string {
	s.t.Helper()
	out, err := m.Run(s.t.Context(), "sh", "-c", command)
	if err != nil {
		s.t.Fatalf("%s: %s: %v", m, command, err)
	}
	return out
}

// vlan gives the switch a VLAN with a gateway .1 in 198.18.N.0/24.
func (s *trunk) vlan(id uint16) *router {
	r := &router{addr: gatewayOf(id), mac: net.HardwareAddr{0, 0x1b, 0x54, 1, byte(id >> 8), byte(id)}}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.routers[id] = r
	return r
}

func gatewayOf(id uint16) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, byte(id), 1}) }

// change changes VLANs of the switch while it runs.
func (s *trunk) change(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn()
}

// state is a document with a segment and a decoy for each VLAN.
func state(ids ...uint16) *deception.State {
	out := &deception.State{}
	for _, id := range ids {
		name := fmt.Sprintf("vlan%d", id)
		gateway := gatewayOf(id)
		from := netip.AddrFrom4([4]byte{198, 18, byte(id), 100})
		to := netip.AddrFrom4([4]byte{198, 18, byte(id), 109})
		out.Segments = append(out.Segments, deception.Segment{
			Name: name, Parent: "eth1", VLAN: id, Subnets: []deception.Subnet{{Prefix: netip.PrefixFrom(gateway, 24).Masked(), Gateway: gateway}},
		})
		out.Decoys = append(out.Decoys, deception.Decoy{Name: name, Segment: name, Addresses: []deception.AddrRange{{From: from, To: to}}})
	}
	return out
}

// examine runs the doctor on the host, and leaves out what it says of this
// kernel and of things that the document lacks.
func (s *trunk) examine(document *deception.State, change ...func(*doctor.Subject)) []doctor.Finding {
	s.t.Helper()
	subject := doctor.Subject{State: document, Data: s.t.TempDir(), Listen: 300 * time.Millisecond}
	for _, c := range change {
		c(&subject)
	}
	began := time.Now()
	var facts *doctor.Facts
	err := s.gw.Do(func() (err error) {
		facts, err = doctor.Read(s.t.Context(), subject)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Logf("the doctor took %s", time.Since(began).Round(10*time.Millisecond))
	return slices.DeleteFunc(doctor.Judge(facts), func(f doctor.Finding) bool {
		return !slices.Contains([]string{"trunk", "vlan", "parent", "lan", "conflicts", "unread"}, f.Check)
	})
}

// only fails unless there is just that problem (or note), and returns it.
func (s *trunk) only(list []doctor.Finding, severity doctor.Severity, subject, part string) doctor.Finding {
	s.t.Helper()
	var bad []doctor.Finding
	for _, f := range list {
		if f.Severity != doctor.OK {
			bad = append(bad, f)
		}
	}
	if len(bad) != 1 || bad[0].Severity != severity || bad[0].Subject != subject || !strings.Contains(bad[0].What, part) {
		s.t.Fatalf("want one %s about %s with %q, have:\n%s", severity, subject, part, text(list))
	}
	s.t.Logf("\n%s", text(bad))
	return bad[0]
}

// forward is the switch.
func (s *trunk) forward() {
	raw, err := s.port.SyscallConn()
	if err != nil {
		s.t.Error(err)
		return
	}
	frame, side := make([]byte, 16384), make([]byte, 128)
	for {
		var n, m int
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, m, _, _, failed = unix.Recvmsg(int(fd), frame, side, 0)
			return !errors.Is(failed, unix.EAGAIN)
		})
		if err != nil {
			return // closed
		}
		if failed == nil {
			s.receive(bytes.Clone(frame[:n]), tagIn(side[:m]))
		}
	}
}

// tagIn reads struct tpacket_auxdata.
func tagIn(side []byte) uint16 {
	messages, err := unix.ParseSocketControlMessage(side)
	if err != nil || len(messages) == 0 || binary.NativeEndian.Uint32(messages[0].Data)&unix.TP_STATUS_VLAN_VALID == 0 {
		return 0
	}
	return binary.NativeEndian.Uint16(messages[0].Data[16:]) & 0xfff
}

func (s *trunk) receive(frame []byte, vlan uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, frame)
	r := s.routers[vlan]
	if r == nil || r.silent || r.firstMAC && !bytes.Equal(frame[6:12], s.nic) {
		return
	}
	var answers [][]byte
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0806:
		answers = r.arp(frame)
	case 0x0800:
		answers = r.echo(frame)
	case 0x86dd:
		answers = r.neighbour(frame)
	}
	for _, a := range answers {
		if !r.toNIC || bytes.Equal(a[:6], s.nic) || a[0]&1 != 0 {
			s.emit(vlan, a)
		}
	}
}

// emit sends a frame out of the trunk port; 0 is no tag.
func (s *trunk) emit(vlan uint16, frame []byte) {
	if vlan != 0 {
		frame = slices.Concat(frame[:12], []byte{0x81, 0, byte(vlan >> 8), byte(vlan)}, frame[12:])
	}
	if _, err := s.port.Write(frame); err != nil && !errors.Is(err, os.ErrClosed) && !errors.Is(err, io.EOF) {
		s.t.Errorf("send out of the trunk port: %v", err)
	}
}

var (
	everybody = net.HardwareAddr{255, 255, 255, 255, 255, 255}
	stranger  = net.HardwareAddr{0, 0x1b, 0x54, 9, 9, 9} // a host somewhere
)

// talk has fn emit frames again and again until quiet is called.
func (s *trunk) talk(fn func()) (quiet func()) {
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			fn()
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() { close(stop); <-ended }
}

// arp answers as RFC 826 has it: to the hardware address in the question.
func (r *router) arp(frame []byte) [][]byte {
	a := frame[14:]
	target := netip.AddrFrom4([4]byte(a[24:28]))
	if a[7] != 1 || target != r.addr && target != r.alsoHas || r.leases && !bytes.Equal(a[14:18], make([]byte, 4)) {
		return nil
	}
	return [][]byte{arpFrame(2, r.mac, target, a[8:14], netip.AddrFrom4([4]byte(a[14:18])))}
}

func arpFrame(op byte, mac net.HardwareAddr, sender netip.Addr, to net.HardwareAddr, target netip.Addr) []byte {
	b := slices.Concat(to, mac, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, op}, mac, sender.AsSlice(), to, target.AsSlice())
	return append(b, make([]byte, 60-len(b))...)
}

// gatewayOf6 is the address that a router answers for in IPv6.
func gatewayOf6(id uint16) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 6: byte(id >> 8), 7: byte(id), 15: 1})
}

// neighbour answers solicitations that name whom to answer (RFC 4861), which
// those of duplicate address detection do not.
func (r *router) neighbour(frame []byte) [][]byte {
	ip := frame[14:]
	if len(ip) < 72 || ip[6] != 58 || ip[40] != 135 || ip[64] != 1 || netip.AddrFrom16([16]byte(ip[48:64])) != gatewayOf6(uint16(r.mac[4])<<8|uint16(r.mac[5])) {
		return nil
	}
	target, to := ip[48:64], ip[66:72]
	body := slices.Concat([]byte{136, 0, 0, 0, 0xe0, 0, 0, 0}, target, []byte{2, 1}, r.mac)
	packet := slices.Concat([]byte{0x60, 0, 0, 0, 0, byte(len(body)), 58, 255}, target, ip[8:24], body) // the doctor reads no checksum
	return [][]byte{slices.Concat(to, r.mac, []byte{0x86, 0xdd}, packet)}
}

// echo answers pings, in fragments where the gateway's MTU is small.
func (r *router) echo(frame []byte) [][]byte {
	ip := frame[14:]
	size := int(binary.BigEndian.Uint16(ip[2:]))
	if ip[9] != 1 || ip[20] != 8 || ip[6]&0x40 == 0 || r.largest > 0 && size > r.largest || size > len(ip) {
		return nil
	}
	payload := bytes.Clone(ip[20:size])
	payload[0] = 0
	header := func(length, offset int, more bool) []byte {
		h := bytes.Clone(ip[:20])
		copy(h[12:16], ip[16:20])
		copy(h[16:20], ip[12:16])
		binary.BigEndian.PutUint16(h[2:], uint16(20+length))
		field := uint16(offset / 8)
		if more {
			field |= 0x2000
		}
		binary.BigEndian.PutUint16(h[6:], field)
		return h
	}
	ether := slices.Concat(frame[6:12], r.mac, []byte{8, 0})
	if r.mtu == 0 || size <= r.mtu {
		return [][]byte{slices.Concat(ether, header(len(payload), 0, false), payload)}
	}
	first := (r.mtu - 20) / 8 * 8
	return [][]byte{
		slices.Concat(ether, header(first, 0, true), payload[:first]),
		slices.Concat(ether, header(len(payload)-first, first, false), payload[first:]),
	}
}
