//go:build unix

package tunnel

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/yamux"
)

// flow is what both multiplexers and a plain connection can do.
type flow interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// subject is a way to open flows to a server that handles each with the
// function that it was made with.
type subject struct {
	name  string
	start func(b *testing.B, serve func(flow)) (open func() (flow, error))
}

var subjects = []subject{{"tunnel", startTunnel}, {"yamux", startYamux}, {"tls", startPlain}}

func startTunnel(b *testing.B, serve func(flow)) func() (flow, error) {
	st := newSite(b, func(_ string, s *Stream) { serve(s) })
	c := st.client()
	return func() (flow, error) { return c.Open(context.Background(), make([]byte, 120), false) }
}

func startYamux(b *testing.B, serve func(flow)) func() (flow, error) {
	ca := newAuthority(b)
	l, err := tls.Listen("tcp", "127.0.0.1:0", ca.serverTLS(b, "hq"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	cfg := yamux.DefaultConfig()
	cfg.LogOutput = io.Discard
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			session, err := yamux.Server(raw, cfg)
			if err != nil {
				return
			}
			go func() {
				for {
					s, err := session.AcceptStream()
					if err != nil {
						return
					}
					go serve(yamuxFlow{s})
				}
			}()
		}
	}()
	var sessions []*yamux.Session
	for range defaultConnections {
		raw, err := tls.Dial("tcp", l.Addr().String(), ca.clientTLS(b, "crm-1")("hq"))
		if err != nil {
			b.Fatal(err)
		}
		session, err := yamux.Client(raw, cfg)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { session.Close() })
		sessions = append(sessions, session)
	}
	var turn atomic.Uint32
	return func() (flow, error) {
		s, err := sessions[int(turn.Add(1))%len(sessions)].OpenStream()
		if err != nil {
			return nil, err
		}
		_, err = s.Write(make([]byte, 120))
		return yamuxFlow{s}, err
	}
}

// yamuxFlow carries the header as the first bytes; yamux's Close is a FIN.
type yamuxFlow struct{ *yamux.Stream }

func (f yamuxFlow) CloseWrite() error { return f.Stream.Close() }
func (f yamuxFlow) Close() error      { return nil }

func startPlain(b *testing.B, serve func(flow)) func() (flow, error) {
	ca := newAuthority(b)
	l, err := tls.Listen("tcp", "127.0.0.1:0", ca.serverTLS(b, "hq"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { l.Close() })
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			go serve(raw.(*tls.Conn))
		}
	}()
	cfg := ca.clientTLS(b, "crm-1")("hq")
	return func() (flow, error) {
		c, err := tls.Dial("tcp", l.Addr().String(), cfg)
		if err != nil {
			return nil, err
		}
		_, err = c.Write(make([]byte, 120))
		return c, err
	}
}

// processorTime is what this process has used so far. On a machine that others
// use as well it says more than the time that went by.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkOpen opens flows, 64 at once, with a request of 100 bytes and an
// answer of 100 bytes each.
func BenchmarkOpen(b *testing.B) {
	for _, sub := range subjects {
		b.Run(sub.name, func(b *testing.B) {
			open := sub.start(b, func(f flow) {
				defer f.Close()
				var p [4096]byte
				for {
					if _, err := f.Read(p[:]); err != nil {
						f.CloseWrite()
						return
					}
					f.Write(p[:100])
				}
			})
			b.ReportAllocs()
			b.SetParallelism(32)
			b.ResetTimer()
			before := processorTime(b)
			b.RunParallel(func(pb *testing.PB) {
				var p [4096]byte
				for pb.Next() {
					f, err := open()
					if err != nil {
						b.Error(err)
						return
					}
					f.Write(p[:100])
					if _, err := f.Read(p[:]); err != nil {
						b.Error(err)
					}
					f.CloseWrite()
					for err == nil {
						_, err = f.Read(p[:])
					}
					f.Close()
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "flows/s")
			b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
		})
	}
}

// BenchmarkBulk sends as fast as it goes, 64 kB a Write as a relay does.
func BenchmarkBulk(b *testing.B) {
	const chunk = 64 << 10
	for _, flows := range []int{1, 64} {
		for _, sub := range subjects {
			b.Run(fmt.Sprintf("%s/%d", sub.name, flows), func(b *testing.B) {
				open := sub.start(b, func(f flow) {
					defer f.Close()
					p := make([]byte, chunk)
					for {
						if _, err := f.Read(p); err != nil {
							f.CloseWrite()
							return
						}
					}
				})
				b.SetBytes(chunk)
				var left atomic.Int64
				left.Store(int64(b.N))
				b.ResetTimer()
				before := processorTime(b)
				var all sync.WaitGroup
				for range flows {
					all.Go(func() {
						f, err := open()
						if err != nil {
							b.Error(err)
							return
						}
						p := make([]byte, chunk)
						for left.Add(-1) >= 0 {
							if _, err := f.Write(p); err != nil {
								b.Error(err)
								return
							}
						}
						f.CloseWrite()
						for err == nil {
							_, err = f.Read(p)
						}
						f.Close()
					})
				}
				all.Wait()
				b.ReportMetric(float64((processorTime(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
			})
		}
	}
}
