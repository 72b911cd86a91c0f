package wire

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/netns/netnstest"
)

// heard keeps the frames that a tap hands over.
type heard struct {
	mu     sync.Mutex // guards frames
	frames []Frame
}

func (h *heard) handle(frames []Frame) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.frames = append(h.frames, frames...)
}

func (h *heard) all() []Frame {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.frames)
}

// from counts the frames of one sender by kind.
func (h *heard) from(source netip.Addr) map[Kind]int {
	counts := map[Kind]int{}
	for _, f := range h.all() {
		if f.Source == source {
			counts[f.Kind]++
		}
	}
	return counts
}

func open(t *testing.T, c Config) *Tap {
	t.Helper()
	tap, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tap.Close(); err != nil {
			t.Error(err)
		}
	})
	return tap
}

func linkIndex(t *testing.T, ns *netns.NS, name string) int {
	t.Helper()
	index, err := strconv.Atoi(strings.TrimSpace(netnstest.Run(t, ns, "cat", "/sys/class/net/"+name+"/ifindex")))
	if err != nil {
		t.Fatal(err)
	}
	return index
}

// witness starts tcpdump on what comes in at eth0. The function that it returns
// waits for that many lines, and a little for more, and returns them all.
func witness(t *testing.T, ns *netns.NS, filter string) func(least int) []string {
	t.Helper()
	// In immediate mode its buffer holds frames of full size, 32 of them, unless
	// they are cut shorter.
	cmd, cancel := netnstest.Command(t, ns, "tcpdump", "-i", "eth0", "-Q", "in", "-n", "-e", "-l", "-s", "160", "-B", "8192", "--immediate-mode", filter)
	t.Cleanup(cancel)
	var out, said netnstest.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	netnstest.Eventually(t, "tcpdump listens", func() bool { return strings.Contains(said.String(), "listening on") })
	return func(least int) []string {
		t.Helper()
		lines := func() []string { return slices.Collect(strings.Lines(out.String())) }
		netnstest.Eventually(t, fmt.Sprintf("tcpdump sees %d frames", least), func() bool { return len(lines()) >= least })
		time.Sleep(3 * retire)
		return lines()
	}
}

// What programs that others wrote send is told, kind by kind, as often as
// tcpdump saw it.
func TestTapTellsWhatToolsSend(t *testing.T) {
	lan := netnstest.NewLAN(t)
	netnstest.IP(t, lan.Host, "-6 addr add 2001:db8::a/64 dev eth0 nodad")
	// Neighbours are known, so that the kernel's own questions do not come
	// between those of the tools.
	mac := func(ns *netns.NS) string {
		return strings.TrimSpace(netnstest.Run(t, ns, "cat", "/sys/class/net/eth0/address"))
	}
	netnstest.IP(t, lan.Intruder, "neigh replace 192.0.2.10 dev eth0 lladdr "+mac(lan.Host)+" nud permanent")
	netnstest.IP(t, lan.Host, "neigh replace 192.0.2.66 dev eth0 lladdr "+mac(lan.Intruder)+" nud permanent")

	for _, c := range []struct {
		name   string
		tool   []string
		filter string // tcpdump's
		kind   Kind
		least  int
		port   uint16
	}{
		{"arping", []string{"arping", "-c", "5", "-W", "0.01", "-I", "eth0", "192.0.2.10"}, "arp[6:2] == 1 and src 192.0.2.66", ARPRequest, 5, 0},
		{"arping from nobody", []string{"arping", "-0", "-c", "3", "-W", "0.01", "-I", "eth0", "192.0.2.77"}, "arp[6:2] == 1 and arp[14:4] == 0", ARPRequest, 3, 0},
		{"gratuitous arping", []string{"arping", "-P", "-U", "-c", "3", "-W", "0.01", "-S", "192.0.2.10", "-I", "eth0", "192.0.2.10"}, "arp[6:2] == 2", ARPReply, 3, 0},
		{"ping", []string{"ping", "-n", "-c", "5", "-i", "0.01", "192.0.2.10"}, "icmp[0] == 8", Echo, 5, 0},
		{"ping6", []string{"ping", "-n", "-c", "5", "-i", "0.01", "2001:db8::10"}, "icmp6 and ip6[40] == 128", Echo, 5, 0},
		{"ndisc6", []string{"ndisc6", "-1", "-r", "3", "-w", "50", "2001:db8::99", "eth0"}, "icmp6 and ip6[40] == 135 and ip6[48:4] == 0x20010db8 and ip6[60:4] == 0x99", Solicitation, 1, 0},
		{"hping3 syn", []string{"hping3", "-S", "-p", "81", "-c", "20", "-i", "u2000", "192.0.2.10"}, "tcp[13] & 0x12 == 2", SYN, 20, 81},
		{"hping3 udp", []string{"hping3", "--udp", "-p", "161", "-c", "20", "-i", "u2000", "192.0.2.10"}, "udp", Datagram, 20, 161},
		{"nping syn6", []string{"nping", "-6", "--tcp", "--flags", "syn", "-p", "443", "-c", "5", "--delay", "5ms", "2001:db8::10"}, "ip6[6] == 6 and ip6[53] & 0x12 == 2", SYN, 5, 443},
		{"nmap connect", []string{"nmap", "-n", "-Pn", "-sT", "-p", "1000-1099", "--max-retries", "0", "192.0.2.10"}, "tcp[13] & 0x12 == 2", SYN, 100, 0},
		{"nmap fragments", []string{"nmap", "-n", "-Pn", "-sS", "-f", "--mtu", "24", "-p", "1000-1009", "--max-retries", "0", "192.0.2.10"}, "ip[6:2] & 0x1fff == 0 and tcp[13] & 0x12 == 2", SYN, 10, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h heard
			open(t, Config{NS: lan.Host, Link: linkIndex(t, lan.Host, "eth0"), Handle: h.handle})
			seen := witness(t, lan.Host, c.filter)
			_, err := netnstest.Try(t, lan.Intruder, c.tool...)
			count := func() (n int) {
				for _, f := range h.all() {
					if f.Kind == c.kind && (c.port == 0 || f.Port == c.port) && !f.Target.IsLinkLocalUnicast() {
						n++
					}
				}
				return n
			}
			netnstest.Eventually(t, fmt.Sprintf("%d frames of kind %s (%v)", c.least, c.kind, err), func() bool { return count() >= c.least })
			lines := seen(count())
			if count() != len(lines) {
				t.Errorf("the tap told %d frames of kind %s, tcpdump %d: %.1000q", count(), c.kind, len(lines), lines)
			}
		})
	}
}

// What is of no kind stays in the kernel, and so does what the machine sends.
func TestTapLeavesTheRest(t *testing.T) {
	lan := netnstest.NewLAN(t)
	var h heard
	tap := open(t, Config{NS: lan.Host, Handle: h.handle})
	link := linkIndex(t, lan.Intruder, "eth0")
	sender := open(t, Config{NS: lan.Intruder, Link: link, Handle: func([]Frame) {}})

	seen := witness(t, lan.Host, "tcp or ether proto 0x88cc or icmp[0] != 8 or vlan")
	for _, flags := range []string{"-A", "-R", "-F", "-SA"} {
		netnstest.Try(t, lan.Intruder, "hping3", flags, "-p", "80", "-c", "50", "-i", "u500", netnstest.HostAddr4)
	}
	netnstest.Run(t, lan.Host, "ping", "-n", "-c", "20", "-i", "0.01", netnstest.IntruderAddr4) // echoes out, answers in
	netnstest.Try(t, lan.Host, "arping", "-c", "5", "-W", "0.01", "-I", "eth0", netnstest.IntruderAddr4)
	tagged := sample(t, "syn")
	tagged = slices.Concat(tagged[:12], []byte{0x81, 0, 0, 110}, tagged[12:])
	priority := slices.Concat(tagged[:14], []byte{0x60, 0}, tagged[16:]) // VLAN 0, priority 3
	for range 20 {
		if _, err := sender.SendMany(link, [][]byte{sample(t, "lldp"), sample(t, "later piece"), sample(t, "pong"), tagged}); err != nil {
			t.Fatal(err)
		}
	}
	if err := sender.Send(link, priority); err != nil { // the last, and the only one to be told
		t.Fatal(err)
	}
	syns := func() (n int) {
		for _, f := range h.all() {
			if f.Kind == SYN {
				n++
			}
		}
		return n
	}
	netnstest.Eventually(t, "the frame with a priority tag is told", func() bool { return syns() > 0 })

	var tags, other int
	for _, line := range seen(20 + 260) {
		if strings.Contains(line, "vlan 110") {
			tags++
		} else {
			other++
		}
	}
	if tags != 20 || other < 260 {
		t.Errorf("tcpdump saw %d tagged and %d other frames: the test sent less than it should", tags, other)
	}
	counts := map[Kind]int{}
	for _, f := range h.all() {
		if f.Kind != ARPRequest && f.Kind != Solicitation && f.Kind != Advertisement && f.Kind != ARPReply {
			counts[f.Kind]++
		}
		if f.Source == netip.MustParseAddr(netnstest.HostAddr4) || f.Source == netip.MustParseAddr(netnstest.HostAddr6) {
			t.Errorf("a frame of our own is told: %+v", f)
		}
	}
	if diff := cmp.Diff(map[Kind]int{SYN: 1}, counts); diff != "" {
		t.Errorf("frames that were told (-want +got):\n%s", diff)
	}
	// The kernel counts what passed its filter: nothing was sorted out later.
	if passed, dropped := tap.Stats(); int(passed) != len(h.all()) || dropped != 0 {
		t.Errorf("%d frames passed the filter, %d of them dropped; %d were told", passed, dropped, len(h.all()))
	}
}

// One tap hears every link of a namespace, later ones too, with one descriptor.
func TestTapHearsAllLinks(t *testing.T) {
	ns, far := netnstest.New(t, "node"), netnstest.New(t, "far")
	netnstest.IP(t, ns, "link set lo up")
	before := descriptorCount(t)
	var h heard
	open(t, Config{NS: ns, Handle: h.handle, Kinds: Only(ARPRequest)})
	if n := descriptorCount(t) - before; n != 1 {
		t.Errorf("a tap holds %d descriptors", n)
	}
	const links = 64
	sender := open(t, Config{NS: far, Handle: func([]Frame) {}, RingBytes: 1})
	var batch strings.Builder
	for i := range links {
		fmt.Fprintf(&batch, "link add v%d type veth peer name v%d netns %s\nlink set v%d up\n", i, i, ns.Name(), i)
	}
	ipBatch(t, far, batch.String())
	batch.Reset()
	for i := range links {
		fmt.Fprintf(&batch, "link set v%d up\n", i)
	}
	ipBatch(t, ns, batch.String())

	want := map[int]uint16{}
	for i := range links {
		want[linkIndex(t, ns, fmt.Sprint("v", i))] = uint16(i)
	}
	got := func() map[int]uint16 {
		out := map[int]uint16{}
		for _, f := range h.all() {
			if target := f.Target.As4(); target[0] == 10 {
				out[f.Link] = uint16(target[2])<<8 | uint16(target[3])
			}
		}
		return out
	}
	frames := map[int][]byte{}
	for i := range links {
		frame := sample(t, "arp request")
		copy(frame[38:], []byte{10, 0, byte(i >> 8), byte(i)})
		frames[linkIndex(t, far, fmt.Sprint("v", i))] = frame
	}
	netnstest.Eventually(t, "a question at every link", func() bool {
		for link, frame := range frames { // again: a fresh veth has no carrier at once
			if err := sender.Send(link, frame); err != nil {
				return false
			}
		}
		return maps.Equal(got(), want)
	})
}

func ipBatch(t *testing.T, ns *netns.NS, lines string) {
	t.Helper()
	cmd, cancel := netnstest.Command(t, ns, "ip", "-batch", "-")
	defer cancel()
	cmd.Stdin = strings.NewReader(lines)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ip -batch: %v\n%s", err, out)
	}
}

func descriptorCount(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A link that goes down and comes up again is heard again, and sent to.
func TestTapOutlivesLinkDown(t *testing.T) {
	lan := netnstest.NewLAN(t)
	var h heard
	link := linkIndex(t, lan.Host, "eth0")
	tap := open(t, Config{NS: lan.Host, Link: link, Handle: h.handle})
	for range 2 {
		netnstest.IP(t, lan.Host, "link set eth0 down")
		time.Sleep(pause) // for the tap to meet the error
		if err := tap.Send(link, sample(t, "arp request")); !errors.Is(err, unix.ENETDOWN) {
			t.Errorf("send while the link is down: %v", err)
		}
		netnstest.IP(t, lan.Host, "link set eth0 up")
		if err := tap.Send(link, sample(t, "arp request")); err != nil {
			t.Errorf("send when the link is up again: %v", err)
		}
		before := len(h.all())
		netnstest.Eventually(t, "frames after the link came back", func() bool {
			netnstest.Try(t, lan.Intruder, "arping", "-c", "1", "-W", "0.01", "-I", "eth0", netnstest.HostAddr4)
			return len(h.all()) > before
		})
	}
}

// What the ring has no room for is counted; the rest is told.
func TestTapCountsDrops(t *testing.T) {
	lan := netnstest.NewLAN(t)
	release := make(chan struct{})
	let := sync.OnceFunc(func() { close(release) })
	var h heard
	tap := open(t, Config{
		NS: lan.Host, Link: linkIndex(t, lan.Host, "eth0"), Kinds: Only(SYN), RingBytes: 2 * blockBytes,
		Handle: func(frames []Frame) {
			<-release
			h.handle(frames)
		},
	})
	t.Cleanup(let) // before the tap is closed
	link := linkIndex(t, lan.Intruder, "eth0")
	sender := open(t, Config{NS: lan.Intruder, Link: link, Handle: func([]Frame) {}})
	frame := sample(t, "syn")
	copy(frame, net.HardwareAddr{255, 255, 255, 255, 255, 255})
	const burst, bursts = 250, 40
	frames := slices.Repeat([][]byte{frame}, burst)
	for i := range bursts { // not more at once than the queue between the namespaces holds
		if _, err := sender.SendMany(link, frames); err != nil {
			t.Fatal(err)
		}
		netnstest.Eventually(t, "all are counted", func() bool {
			passed, _ := tap.Stats()
			return passed == uint64(burst*(i+1))
		})
	}
	_, dropped := tap.Stats()
	let()
	netnstest.Eventually(t, "the rest is told", func() bool { return len(h.all()) == burst*bursts-int(dropped) })
	if dropped == 0 {
		t.Errorf("a ring of %d KiB held %d frames", 2*blockBytes>>10, burst*bursts)
	}
}

// A frame that is sent comes out as it was given, and errors say where.
func TestSend(t *testing.T) {
	lan := netnstest.NewLAN(t)
	link := linkIndex(t, lan.Intruder, "eth0")
	var own heard
	tap := open(t, Config{NS: lan.Intruder, Handle: own.handle})
	seen := witness(t, lan.Host, "arp host 192.0.2.10 and ether src 02:00:00:00:00:42")
	if n, err := tap.SendMany(link, slices.Repeat([][]byte{sample(t, "arp request")}, 150)); n != 150 || err != nil {
		t.Fatalf("sent %d: %v", n, err)
	}
	var h heard
	open(t, Config{NS: lan.Host, Link: linkIndex(t, lan.Host, "eth0"), Handle: h.handle})
	if err := tap.Send(link, sample(t, "advertisement")); err != nil {
		t.Fatal(err)
	}
	netnstest.Eventually(t, "the advertisement arrives", func() bool { return h.from(netip.MustParseAddr("fe80::10"))[Advertisement] == 1 })
	if lines := seen(150); len(lines) != 150 {
		t.Errorf("tcpdump saw %d of 150 requests", len(lines))
	}
	for _, f := range own.all() {
		if f.Kind == ARPRequest && f.SourceMAC == [6]byte{2, 5: 0x42} {
			t.Errorf("the tap heard itself: %+v", f)
		}
	}
	for _, c := range []struct {
		link  int
		frame []byte
	}{{0, sample(t, "arp request")}, {link + 1000, sample(t, "arp request")}, {link, []byte{1, 2, 3}}} {
		if n, err := tap.SendMany(c.link, [][]byte{c.frame}); n != 0 || err == nil || !strings.Contains(err.Error(), lan.Intruder.Name()) {
			t.Errorf("%d bytes to link %d: sent %d, %v", len(c.frame), c.link, n, err)
		}
	}
}

// Close ends the tap in the midst of traffic, and what is called later is
// harmless.
func TestClose(t *testing.T) {
	lan := netnstest.NewLAN(t)
	link := linkIndex(t, lan.Intruder, "eth0")
	sender := open(t, Config{NS: lan.Intruder, Link: link, Handle: func([]Frame) {}})
	stop := make(chan struct{})
	var flood sync.WaitGroup
	flood.Go(func() {
		frames := slices.Repeat([][]byte{sample(t, "arp request")}, 64)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				_, _ = sender.SendMany(link, frames) // as fast as it goes
			}
		}
	})
	for range 10 {
		var h heard
		tap, err := Open(Config{NS: lan.Host, Handle: h.handle})
		if err != nil {
			t.Fatal(err)
		}
		netnstest.Eventually(t, "frames come", func() bool { return len(h.all()) > 0 })
		if err := tap.Close(); err != nil {
			t.Fatal(err)
		}
		n := len(h.all())
		passed, _ := tap.Stats()
		if err := tap.Close(); err != nil || passed < uint64(n) {
			t.Errorf("second Close: %v; %d frames passed, %d told", err, passed, n)
		}
		if err := tap.Send(1, sample(t, "arp request")); err == nil {
			t.Error("a closed tap sends")
		}
	}
	close(stop)
	flood.Wait()
	if _, err := Open(Config{NS: lan.Host, Link: 9999, Handle: func([]Frame) {}}); err == nil || !strings.Contains(err.Error(), "link 9999") {
		t.Errorf("open at no link: %v", err)
	}
}
