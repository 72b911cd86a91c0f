package route

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/netns/netnstest"
)

// decoyLAN is a LAN with a segment namespace on the host's eth0.
type decoyLAN struct {
	*netnstest.LAN
	seg *netns.NS
}

func newDecoyLAN(t *testing.T) *decoyLAN {
	t.Helper()
	l := &decoyLAN{LAN: netnstest.NewLAN(t), seg: netnstest.New(t, "seg")}
	if _, err := link.Apply(t.Context(), l.Host, l.seg, link.Desired{Segment: "office", Parent: "eth0"}); err != nil {
		t.Fatal(err)
	}
	return l
}

func ranges(t *testing.T, text ...string) []netip.Prefix {
	t.Helper()
	var out []netip.Prefix
	for _, s := range text {
		r, err := deception.ParseAddrRange(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r.Prefixes()...)
	}
	return out
}

func addrs6(from string, n int) []netip.Addr {
	out := make([]netip.Addr, n)
	for i := range out {
		out[i] = deception.Nth(netip.MustParseAddr(from), uint64(i))
	}
	return out
}

func office(t *testing.T) Desired {
	return Desired{
		Link:      "lan0",
		Local4:    ranges(t, "192.0.2.100-192.0.2.150", "192.0.2.247"),
		Addrs6:    addrs6("2001:db8::100", 16),
		Connected: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/64")},
		Gateways:  []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
	}
}

// settle waits until the link-local address has passed duplicate detection.
func (l *decoyLAN) settle(t *testing.T) {
	t.Helper()
	netnstest.Eventually(t, "lan0 has a link-local address", func() bool {
		out := netnstest.IP(t, l.seg, "-6 addr show dev lan0 scope link")
		return out != "" && !strings.Contains(out, "tentative")
	})
}

// apply must succeed and change as many objects as said.
func apply(t *testing.T, ns *netns.NS, d Desired, added, removed int) Status {
	t.Helper()
	s, err := Apply(t.Context(), ns, d)
	if err != nil {
		t.Fatal(err)
	}
	if s.Added != added || s.Removed != removed {
		t.Errorf("Apply added %d, removed %d; want %d and %d", s.Added, s.Removed, added, removed)
	}
	return s
}

// snapshot is all that ip(8) shows of the namespace's layer 3.
func snapshot(t *testing.T, ns *netns.NS) string {
	t.Helper()
	var b strings.Builder
	for _, line := range []string{
		"-4 route show table all", "-6 route show table all", "-4 rule", "-6 rule", "-4 addr", "-6 addr",
	} {
		fmt.Fprintf(&b, "# ip %s\n%s", line, netnstest.IP(t, ns, line))
	}
	return b.String()
}

func sortedLines(s string) []string {
	lines := strings.Split(s, "\n")
	slices.Sort(lines)
	return lines
}

// events runs fn and returns the changes that ip(8) saw meanwhile.
func events(t *testing.T, ns *netns.NS, fn func()) []string {
	t.Helper()
	cmd, cancel := netnstest.Command(t, ns, "ip", "monitor", "route", "rule", "address", "link")
	defer cancel()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 10_000)
	go func() {
		defer close(lines)
		buf, rest := make([]byte, 4096), ""
		for {
			n, err := out.Read(buf)
			rest += string(buf[:n])
			for {
				line, more, ok := strings.Cut(rest, "\n")
				if !ok {
					break
				}
				lines <- strings.TrimSpace(line)
				rest = more
			}
			if err != nil {
				return
			}
		}
	}()
	// A first sentinel tells that it listens, a last one that all was seen.
	var got []string
	until := func(prefix string, poke func()) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); ; {
			poke()
			select {
			case line := <-lines:
				if strings.HasPrefix(line, prefix) {
					return
				}
				if line != "" && !strings.Contains(line, "203.0.113.") {
					got = append(got, line)
				}
			case <-time.After(50 * time.Millisecond):
			}
			if time.Now().After(deadline) {
				t.Fatalf("ip monitor does not show %q, only:\n%s", prefix, strings.Join(got, "\n"))
			}
		}
	}
	until("blackhole 203.0.113.1", func() {
		netnstest.Try(t, ns, "ip", "route", "del", "203.0.113.1")
		netnstest.IP(t, ns, "route add blackhole 203.0.113.1")
	})
	got = nil
	fn()
	netnstest.IP(t, ns, "route add blackhole 203.0.113.2")
	until("blackhole 203.0.113.2", func() {})
	netnstest.IP(t, ns, "route del 203.0.113.1")
	netnstest.IP(t, ns, "route del 203.0.113.2")
	cmd.Process.Kill()
	cmd.Wait()
	return got
}

func (l *decoyLAN) arping(t *testing.T, addr string) bool {
	t.Helper()
	out, err := netnstest.Try(t, l.Intruder, "arping", "-C", "1", "-w", "1", "-i", "eth0", addr)
	return err == nil && strings.Contains(out, "bytes from")
}

func (l *decoyLAN) ndisc6(t *testing.T, addr string) bool {
	t.Helper()
	out, err := netnstest.Try(t, l.Intruder, "ndisc6", "-1", "-r", "1", "-w", "1000", addr, "eth0")
	return err == nil && strings.Contains(out, "Target link-layer address")
}

func (l *decoyLAN) ping(t *testing.T, addr string) bool {
	t.Helper()
	_, err := netnstest.Try(t, l.Intruder, "ping", "-n", "-c", "1", "-W", "1", addr)
	return err == nil
}

// refused tells whether a connection, or a datagram, from the intruder to a port
// that nobody listens on is refused at once.
func (l *decoyLAN) refused(t *testing.T, kind, addr string) bool {
	t.Helper()
	script := `
import socket, sys
fam = socket.AF_INET6 if ':' in sys.argv[2] else socket.AF_INET
s = socket.socket(fam, socket.SOCK_STREAM if sys.argv[1] == 'tcp' else socket.SOCK_DGRAM)
s.settimeout(2)
try:
    s.connect((sys.argv[2], 81))
    s.send(b'x'); s.recv(1)
except ConnectionRefusedError: print('refused')
except Exception as e: print(repr(e))
`
	return strings.TrimSpace(netnstest.Run(t, l.Intruder, "python3", "-c", script, kind, addr)) == "refused"
}
