package steer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
)

// isOpen dials, and tells an accepted connection from a refused one.
func isOpen(t testing.TB, n *namespace, to netip.AddrPort) bool {
	t.Helper()
	conn, err := dial(n, "tcp", to.String())
	if err == nil {
		conn.Close()
		return true
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("dial %s: %v", to, err)
	}
	return false
}

// Random groups with nested prefixes, changed again and again: what real dials
// find open must be what the plain lookup in Go says, which proves that the
// order of prefixes in the kernel is the one in Go.
func TestNestedPrefixesOnTheWire(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		seed := uint64(time.Now().UnixNano())
		rnd := rand.New(rand.NewPCG(seed, 0))
		l := newLAN(t)
		s := l.steer(t, Config{Mode: mode})
		serve(t, s)
		ports := []uint16{22, 80, 8080, 65535}
		bases := []netip.Addr{netip.MustParseAddr("198.18.0.0"), netip.MustParseAddr("2001:db8:1::")}
		address := func() netip.Addr { return deception.Nth(bases[rnd.IntN(2)], uint64(rnd.IntN(64))) }
		for step := range 12 {
			taken := map[netip.Prefix]bool{}
			var groups []Group
			for id := range uint32(1 + rnd.IntN(5)) {
				g := Group{ID: id}
				for range 1 + rnd.IntN(8) {
					a := address()
					p := netip.PrefixFrom(a, a.BitLen()-rnd.IntN(7)).Masked()
					if !taken[p] {
						taken[p] = true
						g.Prefixes = append(g.Prefixes, p)
					}
				}
				for range rnd.IntN(4) {
					g.Ports = append(g.Ports, deception.Port(deception.TCP, ports[rnd.IntN(len(ports))]))
				}
				groups = append(groups, g)
			}
			apply(t, s, groups...)
			open := 0
			for range 80 {
				to := netip.AddrPortFrom(address(), ports[rnd.IntN(len(ports))])
				want := oracle(groups, to.Addr(), deception.TCP, to.Port())
				if got := isOpen(t, l.intruder, to); got != want {
					t.Fatalf("seed %d step %d: %s open: %v, want %v, with %v", seed, step, to, got, want, groups)
				}
				if want {
					open++
				}
			}
			t.Logf("step %d: %d groups, %d of 80 dials accepted", step, len(groups), open)
		}
	})
}

// The whole of one group and none of another changes, while dials go on: no dial
// may ever be refused at an address that is open before and after.
func TestNoGapDuringChange(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		l := newLAN(t)
		s := l.steer(t, Config{Mode: mode})
		serve(t, s)
		// One prefix, or the same addresses one by one; in one group, or in
		// another with other ports around the one that stays.
		single := Group{ID: 2, Ports: group(0, "80 90-100").Ports}
		for a := netip.MustParseAddr("198.18.1.0"); a.As4()[2] == 1; a = a.Next() {
			single.Prefixes = append(single.Prefixes, netip.PrefixFrom(a, 32))
		}
		states := [][]Group{
			{group(1, "198.18.1.0/24 80 22")},
			{single},
			{group(1, "198.18.1.0/24 80"), group(2, "198.18.1.7 198.18.1.8 80 8080")},
			{group(1, "198.18.0.0/16 443"), group(2, "198.18.1.0/24 80 443")},
		}
		apply(t, s, states[0]...)
		done := make(chan error, 1)
		changes := 0
		go func() {
			var err error
			for end := time.Now().Add(1500 * time.Millisecond); (changes < 20 || time.Now().Before(end)) && err == nil; changes++ {
				_, err = s.Apply(context.Background(), states[(changes+1)%len(states)])
			}
			done <- err
		}()
		dials := 0
		for {
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
				if dials < 20 {
					t.Errorf("only %d dials during %d changes", dials, changes)
				}
				t.Logf("%d dials during %d changes", dials, changes)
				return
			default:
			}
			dials++
			if to := netip.MustParseAddrPort(fmt.Sprintf("198.18.1.%d:80", dials%256)); !isOpen(t, l.intruder, to) {
				t.Errorf("%s was refused", to)
			}
			if to := netip.MustParseAddrPort(fmt.Sprintf("198.18.1.%d:21", dials%256)); isOpen(t, l.intruder, to) {
				t.Errorf("%s was accepted", to)
			}
		}
	})
}

// A group that does not fit is named and left out, the others are applied, and
// what it held can be used again.
func TestFull(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		l := newLAN(t)
		s, err := open(l.decoys, Config{Mode: mode}, limits{prefixes: 4, slots: 3, members: 100})
		if err != nil {
			t.Fatal(err)
		}
		v := serve(t, s)
		defer func() { v.halt(); s.Close() }()
		a, b := group(1, "192.0.2.101 192.0.2.102 80"), group(2, "192.0.2.103 192.0.2.104 192.0.2.105 80")
		c, d := group(3, "192.0.2.106 22"), group(4, "192.0.2.107 22 1000 2000")
		st, err := s.Apply(context.Background(), []Group{a, b, c, d})
		if !errors.Is(err, ErrFull) || fmt.Sprint(st.Failed) != "[2 4]" || st.Groups != 3 || st.Prefixes != 4 || st.Ports != 2 {
			t.Errorf("status %+v, error %v", st, err)
		}
		connect(t, l.intruder, "192.0.2.101:80")
		connect(t, l.intruder, "192.0.2.106:22")
		refused(t, l.intruder, "tcp", "192.0.2.103:80")
		refused(t, l.intruder, "tcp", "192.0.2.107:22")
		apply(t, s, b)
		connect(t, l.intruder, "192.0.2.103:80")
		refused(t, l.intruder, "tcp", "192.0.2.101:80")
	})
}

// Where the kernel itself runs out, in the middle of a change, the group at
// fault is named, the others are applied, and the next Apply goes on from there.
func TestKernelMapFull(t *testing.T) {
	l := newLAN(t)
	s, err := open(l.decoys, Config{Mode: deception.SteeringSKLookup}, limits{prefixes: 4, slots: 2}) // maps of 8 and 4
	if err != nil {
		t.Fatal(err)
	}
	v := serve(t, s)
	defer func() { v.halt(); s.Close() }()
	s.lim = defaultLimits
	web := group(1, "198.18.0.1 198.18.0.2 80")
	apply(t, s, web)

	many := Group{ID: 2, Ports: group(0, "22").Ports}
	for i := range 20 {
		many.Prefixes = append(many.Prefixes, netip.PrefixFrom(deception.Nth(netip.MustParseAddr("198.18.7.0"), uint64(i)), 32))
	}
	st, err := s.Apply(context.Background(), []Group{web, many})
	if !errors.Is(err, ErrFull) || fmt.Sprint(st.Failed) != "[2]" || st.Prefixes != 8 {
		t.Errorf("too many prefixes: %+v, %v", st, err)
	}
	connect(t, l.intruder, "198.18.0.2:80")
	st, err = s.Apply(context.Background(), []Group{web, group(3, "198.18.0.3 1 1001 2001 3001 4001 5001")})
	if !errors.Is(err, ErrFull) || fmt.Sprint(st.Failed) != "[3]" || st.Prefixes != 2 {
		t.Errorf("too many ports: %+v, %v", st, err)
	}
	connect(t, l.intruder, "198.18.0.1:80")
	refused(t, l.intruder, "tcp", "198.18.0.3:1")
	refused(t, l.intruder, "tcp", "198.18.7.0:22")

	apply(t, s, group(1, "198.18.0.1 198.18.0.2 81"), group(3, "198.18.0.3 1 1001"))
	connect(t, l.intruder, "198.18.0.1:81")
	connect(t, l.intruder, "198.18.0.3:1001")
	refused(t, l.intruder, "tcp", "198.18.0.1:80")
	if st := apply(t, s); st.Groups+st.Prefixes+st.Ports != 0 || len(s.state.ports) != 0 {
		t.Errorf("left after removing all: %+v, ports %v", st, s.state.ports)
	}
}

// Kernels before 5.6 take one entry a call.
func TestWithoutBatches(t *testing.T) {
	l := newLAN(t)
	s := l.steer(t, Config{Mode: deception.SteeringSKLookup})
	serve(t, s)
	s.backend.(*skLookup).noBatch = true
	apply(t, s, group(1, "192.0.2.100 2001:db8::d:1 80"), group(2, "198.18.0.0/16 22"))
	connect(t, l.intruder, "192.0.2.100:80")
	connect(t, l.intruder, "[2001:db8::d:1]:80")
	apply(t, s, group(2, "198.18.0.0/16 23"))
	connect(t, l.intruder, "198.18.1.1:23")
	refused(t, l.intruder, "tcp", "198.18.1.1:22")
	refused(t, l.intruder, "tcp", "192.0.2.100:80")
}

// manyAddresses is 65,536 single addresses in 256 groups of 10 ports, such that
// no two neighbours are of one group.
func manyAddresses(change uint32) []Group {
	groups := make([]Group, 256)
	for i := range groups {
		groups[i] = group(uint32(i), "21 22 23 80 443 445 3306 3389 53/udp 161/udp")
	}
	first := netip.MustParseAddr("198.18.0.0")
	for n := range uint32(1 << 16) {
		g := &groups[(n+change)%256]
		g.Prefixes = append(g.Prefixes, netip.PrefixFrom(deception.Nth(first, uint64(n)), 32))
	}
	return groups
}

func TestManyAddresses(t *testing.T) {
	eachMode(t, func(t *testing.T, mode deception.Steering) {
		l := newLAN(t)
		s := l.steer(t, Config{Mode: mode})
		serve(t, s)
		groups := append(manyAddresses(0), group(1000, "198.19.0.1 1-65535"))
		scattered := mode != deception.SteeringIPTables // 256 addresses with all ports are 16 million members
		if scattered {
			groups[77].Ports = group(0, "1-65535").Ports
		}
		begin, used := time.Now(), cpuTime(t)
		st := apply(t, s, groups...)
		t.Logf("loaded in %s, %s of CPU: %+v", time.Since(begin), cpuTime(t)-used, st)
		want := 256*10 + 65535
		to := []string{"198.18.0.0:21", "198.18.255.255:3389", "198.18.128.1:445", "198.19.0.1:1", "198.19.0.1:65535"}
		if scattered {
			want += 65535 - 10
			to = append(to, "198.18.3.77:9999", "198.18.200.77:65535")
		}
		if st.Prefixes != 65537 || st.Ports != want {
			t.Errorf("status %+v", st)
		}
		for _, to := range to {
			connect(t, l.intruder, to)
		}
		for _, to := range []string{"198.18.3.76:9999", "198.18.3.78:9999", "198.18.0.0:24", "198.19.0.0:80"} {
			refused(t, l.intruder, "tcp", to)
		}
	})
}

func BenchmarkApply(b *testing.B) {
	for _, mode := range Mechanisms {
		s := func() *Steering {
			ns := newNamespace(b)
			s, err := Open(ns, Config{Mode: mode})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { s.Close() })
			return s
		}()
		for _, load := range []struct {
			name     string
			from, to []Group
		}{
			{"65536-addresses", nil, manyAddresses(0)},
			{"65536-addresses-move", manyAddresses(0), manyAddresses(1)},
			{"65536-addresses-same-again", manyAddresses(0), manyAddresses(0)},
			{"65536-addresses-one-port", manyAddresses(0), onePort(manyAddresses(0))},
			{"65536-addresses-removed", manyAddresses(0), nil},
			{"65535-ports", nil, []Group{group(1, "198.18.0.0/16 1-65535")}},
		} {
			b.Run(string(mode)+"/"+load.name, func(b *testing.B) {
				var cpu time.Duration
				for b.Loop() {
					b.StopTimer()
					apply(b, s, load.from...)
					b.StartTimer()
					begin := cpuTime(b)
					apply(b, s, load.to...)
					cpu += cpuTime(b) - begin
				}
				// On a machine with other work to do, the figure that compares.
				b.ReportMetric(float64(cpu.Milliseconds())/float64(b.N), "cpu-ms/op")
			})
		}
	}
}

// BenchmarkOpen is what a segment costs at start: steering and its first decoys.
func BenchmarkOpen(b *testing.B) {
	decoys := []Group{group(1, "192.0.2.0/28 2001:db8::/124 22 80 443"), group(2, "192.0.2.64/28 445 3389 53/udp 161/udp")}
	for _, mode := range Mechanisms {
		b.Run(string(mode), func(b *testing.B) {
			var cpu time.Duration
			for b.Loop() {
				b.StopTimer()
				ns, err := newScratch()
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				begin := cpuTime(b)
				s, err := Open(ns, Config{Mode: mode})
				if err != nil {
					b.Fatal(err)
				}
				apply(b, s, decoys...)
				cpu += cpuTime(b) - begin
				b.StopTimer()
				if err := errors.Join(s.Close(), unix.Close(ns.fd)); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

func onePort(groups []Group) []Group {
	groups[5].Ports = groups[5].Ports[1:]
	return groups
}

// cpuTime is what this process has used, in user space and in the kernel.
func cpuTime(t testing.TB) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
