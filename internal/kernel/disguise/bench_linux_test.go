package disguise

import (
	"fmt"
	"io"
	"net"
	"testing"

	"decoynet/deception"
	"decoynet/internal/kernel/netns/netnstest"
)

// BenchmarkLooks compares a connection (connect, four bytes each way, close) and a
// megabyte to decoys that look as the node does with others. Ratios count: intruder,
// service and kernel share the machine.
func BenchmarkLooks(b *testing.B) {
	policy := func(oui deception.MACPrefix, p deception.Personality) []Policy {
		return []Policy{{Prefixes: everything().Prefixes, OUI: oui, Seed: seed, Personality: p}}
	}
	for _, c := range []struct {
		name     string
		policies []Policy
	}{
		{"plain", nil},
		{"mac", policy(dell, "")},
		{"mac+linux", policy(dell, deception.PersonalityLinux)},
		{"mac+windows", policy(dell, deception.PersonalityWindows)},
	} {
		l := newDecoyLAN(b)
		l.apply(b, c.policies...)
		l.echo(b)
		netnstest.Run(b, l.Intruder, "sysctl", "-qw", "net.ipv4.ip_local_port_range=1024 65000", "net.ipv4.tcp_tw_reuse=1")
		b.Run("connect/"+c.name, func(b *testing.B) { benchmark(b, l, 4) })
		b.Run("megabyte/"+c.name, func(b *testing.B) {
			b.SetBytes(2 << 20)
			benchmark(b, l, 1<<20)
		})
	}
}

func benchmark(b *testing.B, l *decoyLAN, size int) {
	data, back := make([]byte, size), make([]byte, size)
	err := l.Intruder.Do(func() error {
		dialer := net.Dialer{}
		dialer.SetMultipathTCP(false)
		for i := 0; b.Loop(); i++ {
			// Over many decoys, lest one wears the intruder's ports out.
			conn, err := dialer.Dial("tcp", fmt.Sprintf("198.18.0.%d:7", 1+i%200))
			if err != nil {
				return err
			}
			sent := make(chan error, 1)
			if size > 1000 {
				go func() { _, err := conn.Write(data); sent <- err }()
			} else {
				_, err := conn.Write(data)
				sent <- err
			}
			if _, err := io.ReadFull(conn, back); err != nil {
				return err
			}
			if err := <-sent; err != nil {
				return err
			}
			conn.(*net.TCPConn).SetLinger(0)
			conn.Close()
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}
