package wire

import (
	"bytes"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"decoynet/deception"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/netns/netnstest"
)

// captured keeps packets.
type captured struct {
	mu      sync.Mutex // guards the rest
	packets []Captured
}

func (c *captured) handle(p *Captured) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := *p
	kept.IP = bytes.Clone(p.IP)
	c.packets = append(c.packets, kept)
}

// holding counts the packets that hold the bytes.
func (c *captured) holding(b string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, p := range c.packets {
		if bytes.Contains(p.IP, []byte(b)) {
			n++
		}
	}
	return n
}

func openCapture(t *testing.T, ns *netns.NS, link string, c CaptureConfig) *captured {
	t.Helper()
	into := &captured{}
	c.NS, c.Handle = ns, into.handle
	if err := ns.Do(func() error {
		card, err := net.InterfaceByName(link)
		c.Link = card.Index
		return err
	}); err != nil {
		t.Fatal(err)
	}
	capture, err := OpenCapture(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := capture.Close(); err != nil {
			t.Error(err)
		}
		if _, dropped := capture.Stats(); dropped > 0 {
			t.Errorf("%d packets dropped", dropped)
		}
	})
	return into
}

// Every packet comes once, wherever it is captured: at a bridge that forwards it,
// at one whose own host sends and receives it, at a port, at loopback.
func TestCaptureOnce(t *testing.T) {
	lan := netnstest.NewLAN(t)
	netnstest.IP(t, lan.Wire, "link set lo up")
	netnstest.IP(t, lan.Wire, "addr add 192.0.2.1/24 dev br0")
	take := Selection{Ports: []deception.PortRange{deception.Port(deception.UDP, 9999)}}
	at := map[string]*captured{
		"bridge":   openCapture(t, lan.Wire, "br0", CaptureConfig{Take: take, Promiscuous: true}),
		"port":     openCapture(t, lan.Wire, "host", CaptureConfig{Take: take}),
		"card":     openCapture(t, lan.Host, "eth0", CaptureConfig{Take: take}),
		"loopback": openCapture(t, lan.Wire, "lo", CaptureConfig{Take: take, Incoming: true}),
	}
	said := 0
	for _, c := range []struct {
		from, to *netns.NS
		address  string
		seen     []string
	}{
		{lan.Intruder, lan.Host, netnstest.HostAddr4, []string{"bridge", "port", "card"}},
		{lan.Intruder, lan.Host, "[" + netnstest.HostAddr6 + "]", []string{"bridge", "port", "card"}},
		{lan.Wire, lan.Host, netnstest.HostAddr4, []string{"bridge", "port", "card"}},
		{lan.Intruder, lan.Wire, "192.0.2.1", []string{"bridge"}},
		{lan.Wire, lan.Wire, "127.0.0.1", []string{"loopback"}},
	} {
		var words []string
		exchange(t, c.from, c.to, c.address, func() string {
			said++
			words = append(words, fmt.Sprintf("datagram %04d", said))
			return words[len(words)-1]
		})
		for name, capture := range at {
			want := 0
			if strings.Contains(fmt.Sprint(c.seen), name) {
				want = 1
			}
			for _, w := range words {
				netnstest.Eventually(t, fmt.Sprintf("%q to %s is seen %d times at the %s", w, c.address, want, name), func() bool { return capture.holding(w) >= want })
				if got := capture.holding(w); got != want {
					t.Errorf("%q to %s was captured %d times at the %s, want %d", w, c.address, got, name, want)
				}
			}
		}
	}
}

// exchange sends datagrams and as many answers.
func exchange(t *testing.T, from, to *netns.NS, address string, word func() string) {
	t.Helper()
	var server net.PacketConn
	var client net.Conn
	if err := to.Do(func() (err error) {
		server, err = net.ListenPacket("udp", address+":9999")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if err := from.Do(func() (err error) {
		client, err = net.Dial("udp", address+":9999")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	b := make([]byte, 100)
	for range 5 {
		_, err1 := client.Write([]byte(word()))
		_, peer, err2 := server.ReadFrom(b)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		_, err1 = server.WriteTo([]byte(word()), peer)
		_, err2 = client.Read(b)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
	}
}

// A super-segment comes whole, with what the kernel would have a card do.
func TestCaptureOffload(t *testing.T) {
	lan := netnstest.NewLAN(t)
	c := openCapture(t, lan.Wire, "br0", CaptureConfig{Take: Selection{}, Promiscuous: true})
	var l net.Listener
	if err := lan.Host.Do(func() (err error) {
		l, err = net.Listen("tcp", netnstest.HostAddr4+":80")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var client net.Conn
	if err := lan.Intruder.Do(func() (err error) {
		client, err = net.Dial("tcp", netnstest.HostAddr4+":80")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() { _, _ = client.Write(make([]byte, 2<<20)) }()
	for got, b := 0, make([]byte, 1<<20); got < 2<<20; {
		n, err := server.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		got += n
	}
	netnstest.Eventually(t, "a super-segment", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, p := range c.packets {
			if len(p.IP) > 20_000 && p.Segment == 1448 && p.Unsummed {
				return true
			}
		}
		return false
	})
}
