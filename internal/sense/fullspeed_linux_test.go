package sense

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/wire"
	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
)

const (
	intruderAddr = "192.0.2.66"
	decoys       = "10.66.0.0/16" // all of them decoys without an open port
)

// station is a machine with 65,536 decoys that senses, and an intruder.
type station struct {
	node, intruder *lab.Machine
	ns             *netns.NS
	mac            string // the node's

	tap    *wire.Tap
	sensor *Aggregator

	mu     sync.Mutex // guards the rest
	frames int
	counts map[deception.SessionID]uint64
	latest []*deception.Probe
}

func newStation(t *testing.T) *station {
	t.Helper()
	l := labtest.New(t)
	lan := l.Switch("lan")
	s := &station{node: l.Machine("node"), intruder: l.Machine("intruder"), counts: map[deception.SessionID]uint64{}}
	s.node.Plug(lan, "eth0", "192.0.2.5/24", "2001:db8:2::5/64")
	s.intruder.Plug(lan, "eth0", intruderAddr+"/24", "2001:db8:2::66/64")
	s.intruder.Route(decoys, "192.0.2.5")
	labtest.Built(t, l)
	s.run(t, s.node, "ip", "route", "add", "local", decoys, "dev", "lo")
	s.mac = strings.TrimSpace(s.run(t, s.node, "cat", "/sys/class/net/eth0/address"))
	s.run(t, s.intruder, "ping", "-n", "-c", "1", "-W", "5", "10.66.0.1")

	var err error
	if s.ns, err = netns.Open(s.node.NetnsPath()); err != nil {
		t.Fatal(err)
	}
	s.sensor = New(Config{Node: "node", Emit: s.emit})
	if s.tap, err = wire.Open(wire.Config{NS: s.ns, Handle: s.handle}); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(250 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case now := <-ticker.C:
				s.sensor.Tick(now)
			}
		}
	}()
	t.Cleanup(func() {
		close(stop)
		<-stopped
		if err := s.tap.Close(); err != nil {
			t.Error(err)
		}
		if err := s.ns.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *station) run(t *testing.T, m *lab.Machine, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := m.Run(ctx, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// handle is what an agent does with frames, without looking at its decoys.
func (s *station) handle(frames []wire.Frame) {
	contacts := make([]Contact, 0, 512)
	for i := range frames {
		f := &frames[i]
		if kind, ok := f.Kind.Contact(); ok {
			contacts = append(contacts, Contact{
				Segment: "office", At: f.At, Source: f.Source, SourceMAC: f.SourceMAC, Kind: kind, Target: f.Target, Port: f.Port,
			})
		}
	}
	s.sensor.Observe(contacts)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.frames += len(contacts)
}

func (s *station) emit(p *deception.Probe) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[p.ID] = p.Count()
	s.latest = append(s.latest, p)
}

// told returns the last word on each probe since the last call.
func (s *station) told() map[deception.SessionID]*deception.Probe {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[deception.SessionID]*deception.Probe{}
	for _, p := range s.latest {
		out[p.ID] = p
	}
	s.latest = nil
	return out
}

// received is what the kernel counts at the node's card.
func (s *station) received(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(s.run(t, s.node, "cat", "/sys/class/net/eth0/statistics/rx_packets")))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// cost is what the work of a while has taken of this process.
type cost struct {
	frames, dropped uint64
	cpu, wall       time.Duration
}

func (c cost) String() string {
	perFrame := time.Duration(0)
	if c.frames > 0 {
		perFrame = c.cpu / time.Duration(c.frames)
	}
	return fmt.Sprintf("%d frames in %v (%.0f/s), %.1f %% of a core, %v a frame, %d dropped (%.2f %%)",
		c.frames, c.wall.Round(time.Millisecond), float64(c.frames)/c.wall.Seconds(), 100*c.cpu.Seconds()/c.wall.Seconds(), perFrame,
		c.dropped, 100*float64(c.dropped)/float64(max(c.frames, 1)))
}

// measure runs fn and returns what sensing has cost meanwhile.
func (s *station) measure(fn func()) cost {
	frames, dropped := s.tap.Stats()
	began, cpu := time.Now(), processTime()
	fn()
	c := cost{wall: time.Since(began), cpu: processTime() - cpu}
	c.frames, c.dropped = s.tap.Stats()
	c.frames -= frames
	c.dropped -= dropped
	return c
}

// processTime is the processor time that this process has used.
func processTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Real scanners at full speed, each bounded in count or time: sensing costs less
// than half a core, and what they did is told as what it was. Run it with -v for
// the figures.
func TestScannersAtFullSpeed(t *testing.T) {
	s := newStation(t)
	t.Logf("idle: %v", s.measure(func() { time.Sleep(2 * time.Second) }))
	for _, c := range []struct {
		name   string
		tool   []string
		limit  time.Duration // when it is stopped
		least  uint64        // frames
		forged bool
		kind   deception.ScanKind
	}{
		{"masscan of a /16, 4 ports", []string{
			"masscan", decoys, "-p", "80-83", "--rate", "10000000", "--wait", "0", "--adapter", "eth0",
			"--adapter-ip", intruderAddr, "--adapter-port", "61000", "--router-mac", "MAC",
		}, 30 * time.Second, 200_000, false, deception.ScanHorizontal},
		{"nmap of a /20, one port", []string{"nmap", "-n", "-Pn", "-sS", "-p", "80", "-T5", "--min-rate", "100000", "--max-retries", "0", "10.66.0.0/20"}, 30 * time.Second, 4000, false, deception.ScanHorizontal},
		{"nmap of all ports", []string{"nmap", "-n", "-Pn", "-sS", "-p-", "-T5", "--max-retries", "0", "10.66.7.7"}, 30 * time.Second, 60_000, false, deception.ScanPort},
		{"hping3, one target", []string{"hping3", "--flood", "-S", "-p", "22", "10.66.0.9"}, time.Second, 10_000, false, deception.ScanContact},
		{"hping3, forged sources", []string{"hping3", "--flood", "-S", "-p", "22", "--rand-source", "10.66.0.9"}, time.Second, 10_000, true, deception.ScanContact},
		{"hping3, forged datagrams to all", []string{"hping3", "--flood", "--udp", "-p", "161", "--rand-source", "--rand-dest", "-I", "eth0", "10.66.x.x"}, time.Second, 10_000, true, deception.ScanHorizontal},
		{"as fast as this machine sends", []string{"env", floodEnv + "=eth0 MAC", os.Args[0]}, 30 * time.Second, 12_000, true, deception.ScanHorizontal},
	} {
		t.Run(c.name, func(t *testing.T) {
			for i, arg := range c.tool {
				c.tool[i] = strings.Replace(arg, "MAC", s.mac, 1)
			}
			arrived := s.received(t)
			cost := s.measure(func() {
				ctx, cancel := context.WithTimeout(t.Context(), c.limit)
				defer cancel()
				out, err := s.intruder.Run(ctx, c.tool[0], c.tool[1:]...)
				if err != nil && ctx.Err() == nil {
					t.Errorf("%v\n%s", err, out)
				}
				time.Sleep(200 * time.Millisecond) // for the ring's last block
			})
			t.Log(c.name+":", cost)
			if cost.frames < c.least || cost.frames > uint64(s.received(t)-arrived) {
				t.Errorf("%d frames were seen, of %d that arrived", cost.frames, s.received(t)-arrived)
			}
			if cost.cpu > cost.wall/2 {
				t.Errorf("sensing took %v of processor time in %v", cost.cpu, cost.wall)
			}
			s.sensor.Flush(time.Now())
			var from, apart, all uint64
			kind := deception.ScanContact
			for _, p := range s.told() {
				all += p.Count()
				switch {
				case p.End.IsZero():
					t.Errorf("a probe is not over after Flush: %+v", p)
				case !p.Source.IsValid():
					from += p.Sources
					kind = p.Kind
				case p.Source == netip.MustParseAddr(intruderAddr):
					kind = p.Kind
				default:
					apart++
				}
			}
			t.Logf("%d contacts are told, of %d sources and %d more together", all, apart+1, from)
			if kind != c.kind || c.forged != (from > 10_000) {
				t.Errorf("told as %s, %d sources together; want %s", kind, from, c.kind)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if uint64(s.frames) != all {
				t.Errorf("%d contacts were handed over, %d told", s.frames, all)
			}
			s.frames = 0
		})
	}
	memory, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(memory)) {
		if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "VmHWM") {
			t.Log(strings.TrimSpace(line))
		}
	}
}
