package disguise

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/netns/netnstest"
	"decoynet/internal/kernel/route"
)

var dell = deception.MACPrefix{0x00, 0x14, 0x22}

const seed = 0x1234567890abcdef

// decoyLAN is a LAN with a segment on the host's eth0: decoys 192.0.2.100 to .131,
// 198.18.0.0/16 (which the intruder has on the link too) and 2001:db8::100 to
// ::107.
type decoyLAN struct {
	*netnstest.LAN
	seg   *netns.NS
	want  Desired
	looks Disguise
}

func newDecoyLAN(t testing.TB) *decoyLAN {
	t.Helper()
	l := &decoyLAN{LAN: netnstest.NewLAN(t), seg: netnstest.New(t, "seg")}
	t.Cleanup(func() {
		if err := l.looks.Close(); err != nil {
			t.Error(err)
		}
	})
	netnstest.IP(t, l.Intruder, "addr add 198.18.255.254/16 dev eth0")
	st, err := link.Apply(t.Context(), l.Host, l.seg, link.Desired{Segment: "office", Parent: "eth0"})
	if err != nil {
		t.Fatal(err)
	}
	l.want = Desired{
		Segment: "office", NS: l.seg, Link: st.Index, MAC: st.MAC,
		LowerNS: l.Host, Lower: st.ParentIndex,
	}
	l.claim(t)
	return l
}

// another builds a second segment on the same NIC.
func (l *decoyLAN) another(t testing.TB, name, decoys string) *decoyLAN {
	t.Helper()
	o := &decoyLAN{LAN: l.LAN, seg: netnstest.New(t, name)}
	st, err := link.Apply(t.Context(), l.Host, o.seg, link.Desired{Segment: name, Parent: "eth0"})
	if err != nil {
		t.Fatal(err)
	}
	o.want = Desired{Segment: name, NS: o.seg, Link: st.Index, MAC: st.MAC, LowerNS: l.Host, Lower: st.ParentIndex}
	d := route.Desired{Link: link.LANName, Local4: prefixes(decoys), Connected: prefixes("192.0.2.0/24")}
	if _, err := route.Apply(t.Context(), o.seg, d); err != nil {
		t.Fatal(err)
	}
	return o
}

// claim makes the decoys' addresses the segment's.
func (l *decoyLAN) claim(t testing.TB) {
	t.Helper()
	d := route.Desired{
		Link:      link.LANName,
		Local4:    prefixes("192.0.2.100/30", "192.0.2.104/29", "192.0.2.112/28", "198.18.0.0/17"),
		Connected: prefixes("192.0.2.0/24", "198.18.0.0/16", "2001:db8::/64"),
	}
	for i := range uint64(8) {
		d.Addrs6 = append(d.Addrs6, deception.Nth(netip.MustParseAddr("2001:db8::100"), i))
	}
	if _, err := route.Apply(t.Context(), l.seg, d); err != nil {
		t.Fatal(err)
	}
}

func prefixes(text ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(text))
	for i, s := range text {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

func (l *decoyLAN) apply(t testing.TB, policies ...Policy) Status {
	t.Helper()
	l.want.Policies = policies
	st, err := l.looks.Apply(t.Context(), l.want)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// everything is a policy for all decoys.
func everything() Policy {
	return Policy{Prefixes: prefixes("192.0.2.0/24", "198.18.0.0/16", "2001:db8::/64"), OUI: dell, Seed: seed}
}

// neighbour returns the MAC address that the intruder's kernel holds for an
// address, after it was asked for.
func (l *decoyLAN) neighbour(t testing.TB, addr string) string {
	t.Helper()
	ping := "ping"
	if _, err := netnstest.Try(t, l.Intruder, ping, "-n", "-c", "1", "-W", "2", addr); err != nil {
		t.Errorf("%s does not answer ping: %v", addr, err)
	}
	words := strings.Fields(netnstest.IP(t, l.Intruder, "neigh show to "+addr+" dev eth0"))
	for i, w := range words {
		if w == "lladdr" {
			return words[i+1]
		}
	}
	return strings.Join(words, " ")
}

// echo serves TCP and UDP on port 7 of all addresses in the segment.
func (l *decoyLAN) echo(t testing.TB) {
	t.Helper()
	var tcp net.Listener
	var udp net.PacketConn
	err := l.seg.Do(func() (err error) {
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		if tcp, err = lc.Listen(t.Context(), "tcp", ":7"); err == nil {
			udp, err = lc.ListenPacket(t.Context(), "udp4", "192.0.2.100:7")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	t.Cleanup(func() { tcp.Close(); udp.Close(); done.Wait() })
	done.Go(func() {
		for {
			conn, err := tcp.Accept()
			if err != nil {
				return
			}
			done.Go(func() {
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(20 * time.Second))
				// Not by splice, whose pipes are kept for the next time.
				io.Copy(struct{ io.Writer }{conn}, struct{ io.Reader }{conn})
			})
		}
	})
	done.Go(func() {
		for buf := make([]byte, 1500); ; {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			udp.WriteTo(buf[:n], from)
		}
	})
}

// talk sends n bytes to a decoy's echo service and reads them back.
func (l *decoyLAN) talk(t testing.TB, network, addr string, n int) {
	t.Helper()
	var conn net.Conn
	err := l.Intruder.Do(func() (err error) {
		d := net.Dialer{Timeout: 5 * time.Second}
		d.SetMultipathTCP(false)
		conn, err = d.Dial(network, net.JoinHostPort(addr, "7"))
		return err
	})
	if err != nil {
		t.Errorf("%s to %s: %v", network, addr, err)
		return
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(15 * time.Second))
	sent := strings.Repeat("decoy", n/5)
	var sending sync.WaitGroup
	sending.Go(func() { io.WriteString(conn, sent) })
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(bufio.NewReader(conn), got); err != nil || string(got) != sent {
		t.Errorf("%s to %s: what came back is not what was sent: %v", network, addr, err)
	}
	sending.Wait()
}

// frame is what a capture on the intruder's wire shows of one.
type frame struct {
	ether uint16
	src   string // MAC addresses
	dst   string
	from  netip.Addr // of IP; the sender in ARP
	raw   []byte
}

// capture collects the frames that the intruder receives.
type capture struct {
	fd     int
	done   sync.WaitGroup
	mu     sync.Mutex // guards frames
	frames []frame
}

func (l *decoyLAN) capture(t testing.TB) *capture {
	t.Helper()
	fd, err := l.Intruder.Socket(unix.AF_PACKET, unix.SOCK_RAW, int(htons(unix.ETH_P_ALL)))
	if err != nil {
		t.Fatal(err)
	}
	c := &capture{fd: fd}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}); err != nil {
		t.Fatal(err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
	stop := make(chan struct{})
	c.done.Go(func() {
		for buf := make([]byte, 1<<17); ; {
			n, from, err := unix.Recvfrom(fd, buf, 0)
			switch {
			case err == nil:
				if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype != unix.PACKET_OUTGOING {
					c.add(append([]byte{}, buf[:n]...))
				}
			case !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR):
				return
			default:
				select {
				case <-stop:
					return
				default:
				}
			}
		}
	})
	t.Cleanup(sync.OnceFunc(func() { close(stop); c.done.Wait(); unix.Close(fd) }))
	return c
}

func (c *capture) add(raw []byte) {
	f := frame{
		ether: uint16(raw[12])<<8 | uint16(raw[13]), raw: raw,
		dst: net.HardwareAddr(raw[:6]).String(), src: net.HardwareAddr(raw[6:12]).String(),
	}
	switch f.ether {
	case unix.ETH_P_IP:
		f.from = netip.AddrFrom4([4]byte(raw[26:30]))
	case unix.ETH_P_ARP:
		f.from = netip.AddrFrom4([4]byte(raw[28:32]))
	case unix.ETH_P_IPV6:
		f.from = netip.AddrFrom16([16]byte(raw[22:38]))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frames = append(c.frames, f)
}

func (c *capture) all() []frame {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]frame{}, c.frames...)
}

func htons(n uint16) uint16 { return n<<8 | n>>8 }

// fromDecoys checks each frame that a decoy sent: source address, and in ARP the
// sender's. It returns how many there were.
func (c *capture) fromDecoys(t testing.TB, p Policy) int {
	t.Helper()
	n := 0
	for _, f := range c.all() {
		if !p.holds(f.from) {
			continue
		}
		n++
		want := p.MAC(f.from).String()
		if f.src != want {
			t.Errorf("frame of type %04x from %s has source %s, want %s", f.ether, f.from, f.src, want)
		}
		if sender := net.HardwareAddr(f.raw[22:28]).String(); f.ether == unix.ETH_P_ARP && sender != want {
			t.Errorf("ARP of %s says %s, want %s", f.from, sender, want)
		}
	}
	return n
}

// holds tells whether an address is a decoy's under the policy, not the intruder's.
func (p *Policy) holds(a netip.Addr) bool {
	for _, prefix := range p.Prefixes {
		if prefix.Contains(a) && a.String() != netnstest.HostAddr4 && a.String() != netnstest.HostAddr6 {
			return true
		}
	}
	return false
}

func mac(p Policy, addr string) string { return fmt.Sprint(p.MAC(netip.MustParseAddr(addr))) }
