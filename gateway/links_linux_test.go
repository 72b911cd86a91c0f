package gateway

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/health"
	"decoynet/internal/lab"
	"decoynet/internal/proxyheader"
)

// fakeEgress is another program at an egress's address.
type fakeEgress struct {
	net.Listener
	at     netip.AddrPort
	wg     sync.WaitGroup
	serve  func(*net.TCPConn)
	mu     sync.Mutex // guards the rest
	asked  []proxyheader.Header
	knocks int // connections that ended without a header
}

func newFakeEgress(t *testing.T, serve func(*net.TCPConn)) *fakeEgress {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeEgress{Listener: l, at: l.Addr().(*net.TCPAddr).AddrPort(), serve: serve}
	f.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.wg.Go(func() { f.talk(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		f.wg.Wait()
	})
	return f
}

func (f *fakeEgress) talk(c *net.TCPConn) {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	b := make([]byte, proxyheader.MaxSize)
	n, err := c.Read(b)
	f.mu.Lock()
	if err != nil {
		f.knocks++
		f.mu.Unlock()
		return
	}
	h, _, err := proxyheader.Parse(b[:n])
	if err == nil {
		f.asked = append(f.asked, h)
	}
	f.mu.Unlock()
	f.serve(c)
}

func farState(at netip.AddrPort) *deception.State {
	return &deception.State{
		Node:  "hq",
		Zones: []deception.Zone{{Name: "far", Node: "vm1", Egress: &deception.Egress{Node: "vm1", Listen: at}}},
		Services: []deception.Service{{
			Name: "web", Zone: "far", Addr4: netip.MustParseAddr("10.1.0.2"), Ports: []deception.PortRange{tcpPort(80)},
		}},
	}
}

var webPort = health.Port{Service: "web", Transport: deception.TCP, Address: netip.MustParseAddrPort("10.1.0.2:80")}

func watch(t *testing.T, state *deception.State) *Links {
	t.Helper()
	l := NewLinks(LinksConfig{Node: "hq"})
	t.Cleanup(l.Close)
	l.Watch(t.Context(), state)
	return l
}

func eventually(t *testing.T, l *Links, what string, ok func(st LinkStatus, up bool) bool) {
	t.Helper()
	err := lab.Eventually(t.Context(), patience, func() error {
		if st := l.Status(); len(st) != 1 || !ok(st[0], l.Up(webPort)) {
			return fmt.Errorf("%s: %+v, up %v", what, st, l.Up(webPort))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// What other programs do with our question: their ports count as up while they
// accept, and they are not asked again and again.
func TestLinksToForeigners(t *testing.T) {
	for name, serve := range map[string]func(*net.TCPConn){
		"closes":       func(c *net.TCPConn) {},
		"is silent":    func(c *net.TCPConn) { io.Copy(io.Discard, c) },
		"speaks first": func(c *net.TCPConn) { io.WriteString(c, "SSH-2.0-OpenSSH_9.2\r\n"); io.Copy(io.Discard, c) },
		"says much":    func(c *net.TCPConn) { io.WriteString(c, strings.Repeat("x", healthSize+1)); io.Copy(io.Discard, c) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeEgress(t, serve)
			l := watch(t, farState(f.at))
			eventually(t, l, "a foreign egress", func(st LinkStatus, up bool) bool { return st.Connected && st.Foreign && up })
			err := lab.Eventually(t.Context(), patience, func() error {
				f.mu.Lock()
				defer f.mu.Unlock()
				if f.knocks < 2 {
					return fmt.Errorf("looked at %d times", f.knocks)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			f.mu.Lock()
			if len(f.asked) != 1 || !f.asked[0].Local || f.asked[0].Node != "hq" {
				t.Errorf("was asked %+v, want LOCAL once", f.asked)
			}
			f.mu.Unlock()
			if l.lost(f.at) {
				t.Error("a foreign egress counts as lost")
			}
			f.Close()
			l.suspect(f.at)
			eventually(t, l, "one that is gone", func(st LinkStatus, up bool) bool { return !st.Connected && st.Err != "" && !up })
		})
	}
}

// An egress of ours that does not know us resets: nothing is up, whatever it
// accepts.
func TestLinksRefused(t *testing.T) {
	f := newFakeEgress(t, func(c *net.TCPConn) { c.SetLinger(0) })
	l := watch(t, farState(f.at))
	eventually(t, l, "one that resets", func(st LinkStatus, up bool) bool {
		return !st.Connected && !up && strings.Contains(st.Err, "egress.from")
	})
}

// The word of an egress counts, also for ports that the document brings only
// later, until it falls silent.
func TestLinksHear(t *testing.T) {
	const report = `{"ports":[{"service":"web","transport":"tcp","address":"10.1.0.2:80","up":%v,"error":"x"},` +
		`{"service":"web","transport":"tcp","address":"10.1.0.2:81","up":true}]}` + "\n"
	say := make(chan string)
	f := newFakeEgress(t, func(c *net.TCPConn) {
		for line := range say {
			if _, err := io.WriteString(c, line); err != nil {
				return
			}
		}
		io.Copy(io.Discard, c)
	})
	// A heart that beats, until the end.
	var beats sync.WaitGroup
	stop := make(chan struct{})
	beats.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Millisecond):
			}
			select {
			case <-stop:
				return
			case say <- "{}\n":
			}
		}
	})
	first := make(chan struct{})
	go func() { say <- fmt.Sprintf(report, true); close(first) }()
	state := farState(f.at)
	l := watch(t, state)
	<-first
	eventually(t, l, "a port that is up", func(st LinkStatus, up bool) bool { return st.Connected && !st.Foreign && up })
	state.Services[0].Ports = append(state.Services[0].Ports, tcpPort(81), tcpPort(82))
	l.Watch(t.Context(), state)
	later := webPort
	later.Address = netip.MustParseAddrPort("10.1.0.2:81")
	if !l.Up(later) {
		t.Error("a port that the egress had spoken of before the document did is not up")
	}
	later.Address = netip.MustParseAddrPort("10.1.0.2:82")
	if st := l.States()[later]; st.Up || !strings.Contains(st.Err, "does not know it") {
		t.Errorf("a port that the egress does not speak of: %+v", st)
	}
	say <- fmt.Sprintf(report, false)
	eventually(t, l, "a port that is down", func(st LinkStatus, up bool) bool { return st.Connected && !up })
	say <- fmt.Sprintf(report, true)
	eventually(t, l, "a port that is up again", func(st LinkStatus, up bool) bool { return st.Connected && up })
	if l.lost(f.at) {
		t.Error("an egress that speaks counts as lost")
	}
	close(stop)
	beats.Wait()
	eventually(t, l, "one that fell silent", func(st LinkStatus, up bool) bool {
		return !st.Connected && !up && strings.Contains(st.Err, "said nothing for 3s")
	})
	close(say)
	l.Watch(t.Context(), &deception.State{})
	if len(l.Status()) != 0 || l.Up(webPort) {
		t.Error("an egress that is in no document any more is still known")
	}
}

// A nil Links knows nothing and hurts nobody.
func TestNoLinks(t *testing.T) {
	var l *Links
	l.Watch(t.Context(), farState(netip.MustParseAddrPort("127.0.0.1:1")))
	l.suspect(netip.MustParseAddrPort("127.0.0.1:1"))
	if l.Up(webPort) || len(l.States()) != 0 || l.Status() != nil || l.lost(netip.MustParseAddrPort("127.0.0.1:1")) {
		t.Error("it knows something")
	}
	l.Close()
}
