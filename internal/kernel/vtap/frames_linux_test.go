package vtap

import (
	"bufio"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/netns/netnstest"
)

// MAC addresses as those of a session (see package frame).
const (
	intruderMAC = "02:00:00:00:00:01"
	decoyMAC    = "06:00:00:00:00:02"
)

// packet is an IPv4 packet to be framed.
type packet struct {
	to, from string // MAC addresses
	tags     []uint16
	src, dst string
	proto    byte
	payload  []byte
}

func (p packet) frame(t *testing.T) []byte {
	t.Helper()
	var out []byte
	for _, s := range []string{p.to, p.from} {
		mac, err := net.ParseMAC(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, mac...)
	}
	for _, tag := range p.tags {
		out = binary.BigEndian.AppendUint16(out, 0x8100)
		out = binary.BigEndian.AppendUint16(out, tag)
	}
	out = binary.BigEndian.AppendUint16(out, 0x0800)
	src, dst := netip.MustParseAddr(p.src).As4(), netip.MustParseAddr(p.dst).As4()
	ip := []byte{0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, p.proto, 0, 0}
	ip = append(append(ip, src[:]...), dst[:]...)
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(p.payload)))
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	return append(append(out, ip...), p.payload...)
}

func checksum(b []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// echo is an ICMP echo request.
func echo(sequence byte) []byte {
	b := []byte{8, 0, 0, 0, 0x77, 0x77, 0, sequence, 'd', 'e', 'c', 'o'}
	binary.BigEndian.PutUint16(b[2:], checksum(b))
	return b
}

// datagram is a UDP datagram without a checksum.
func datagram(port uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, 40000)
	b = binary.BigEndian.AppendUint16(b, port)
	return append(b, 0, 12, 0, 0, 'd', 'e', 'c', 'o')
}

// capture is a tcpdump that runs.
type capture struct {
	mu    sync.Mutex
	lines []string
}

// listen starts tcpdump on an interface of the namespace and waits until it hears.
func listen(t *testing.T, ns *netns.NS, dev string, args ...string) *capture {
	t.Helper()
	cmd, cancel := netnstest.Command(t, ns, append([]string{"tcpdump", "-n", "-e", "-l", "--immediate-mode", "-i", dev}, args...)...)
	t.Cleanup(cancel)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	notes, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := &capture{}
	var readers sync.WaitGroup
	ready := make(chan struct{})
	readers.Go(func() {
		for once, s := false, bufio.NewScanner(notes); s.Scan(); {
			if !once && strings.Contains(s.Text(), "listening on") {
				once = true
				close(ready)
			}
		}
	})
	readers.Go(func() {
		for s := bufio.NewScanner(out); s.Scan(); {
			c.mu.Lock()
			c.lines = append(c.lines, s.Text())
			c.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		readers.Wait()
		_ = cmd.Wait() // it was told to end
	})
	select {
	case <-ready:
	case <-time.After(10 * time.Second):
		t.Fatalf("tcpdump does not listen on %s", dev)
	}
	return c
}

func (c *capture) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.lines, "\n")
}

func (c *capture) has(text string) bool { return strings.Contains(c.String(), text) }
