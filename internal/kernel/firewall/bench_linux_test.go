package firewall

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/kernel/conntrack"
)

// BenchmarkConnect compares one connection (connect, the service speaks first,
// the intruder closes) that is plainly routed through the same namespaces with
// the kernel path, with and without a listener for its events. Ratios count:
// intruder, service and kernel share the machine.
func BenchmarkConnect(b *testing.B) {
	b.Run("routed", func(b *testing.B) {
		l := newPathLab(b)
		l.gw.exec("ip rule del pref 14250; ip route add 192.168.32.0/24 via 100.64.0.2")
		benchmarkConnect(b, l, "10.1.0.2:80")
	})
	for _, mode := range []struct {
		name   string
		reply  Reply
		listen bool
	}{{"mark", ReplyByMark, false}, {"alias", ReplyByAlias, false}, {"alias+events", ReplyByAlias, true}} {
		b.Run(mode.name, func(b *testing.B) {
			l := newPathLab(b)
			if _, err := ApplyZones(context.Background(), l.gw, []ZoneRules{linuxZone}); err != nil {
				b.Fatal(err)
			}
			k := l.path(mode.reply)
			k.Redirects = k.Redirects[:0]
			var targets []string
			for i := range 2 {
				decoy := netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("192.168.32.%d", 100+i)), 80)
				service := netip.MustParseAddrPort("10.1.0.2:80")
				if mode.reply == ReplyByAlias {
					service = netip.AddrPortFrom(netip.MustParseAddr(fmt.Sprintf("10.9.0.%d", i+1)), 80)
				}
				k.Redirects = append(k.Redirects, Redirect{deception.TCP, decoy, service})
				targets = append(targets, decoy.String())
			}
			l.apply(b, k)
			l.intruder.knows("eth0", l.seg, "lan0", "192.168.32.101")
			if mode.listen {
				ctx, cancel := context.WithCancel(context.Background())
				defer cancel()
				tracker := conntrack.NewTracker()
				var facts []conntrack.Fact
				listener, err := conntrack.Listen(ctx, l.seg, func(e conntrack.Event) { facts = tracker.Observe(facts[:0], e) })
				if err != nil {
					b.Fatal(err)
				}
				defer func() { cancel(); _ = listener.Wait() }()
			}
			benchmarkConnect(b, l, targets...)
		})
	}
}

func benchmarkConnect(b *testing.B, l *pathLab, targets ...string) {
	l.svc.listenTCP(":80", false, func(c net.Conn) { _, _ = c.Write([]byte("hello\n")); _, _ = c.Read(make([]byte, 1)) })
	var failed, next atomic.Int64
	var wg sync.WaitGroup
	before := processorTime(b)
	b.ResetTimer()
	for range 32 {
		wg.Go(func() {
			if err := l.intruder.Do(func() error {
				d := net.Dialer{Timeout: patience}
				d.SetMultipathTCP(false)
				buf := make([]byte, 16)
				for {
					i := next.Add(1)
					if i > int64(b.N) {
						return nil
					}
					c, err := d.Dial("tcp", targets[i%int64(len(targets))])
					if err != nil {
						failed.Add(1)
						continue
					}
					if _, err := c.Read(buf); err != nil {
						failed.Add(1)
					}
					_ = c.Close()
				}
			}); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	if n := failed.Load(); n > 0 {
		b.Errorf("%d connections failed", n)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conn/s")
	// Steadier than the rate where others use the processors too.
	b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(b.N), "cpu-us/conn")
}

func processorTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
