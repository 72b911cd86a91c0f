package tunnel

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
)

// TestChurn opens, writes, half-closes, resets and abandons streams at random at
// both ends, bytes and datagrams, for a while. Whatever the order in which the
// ends of a stream cross on the way: no end may take the other's frames for a
// breach of the protocol, and nothing may be left.
func TestChurn(t *testing.T) {
	act := func(s *Stream, random *rand.Rand) {
		p := make([]byte, 40_000)
		for range random.IntN(12) {
			switch random.IntN(7) {
			case 0, 1, 2:
				if _, err := s.Write(p[:1+random.IntN(1<<random.IntN(15))]); err != nil && !isReset(err) && !errors.Is(err, errWritten) {
					t.Errorf("write: %v", err)
				}
			case 3, 4:
				s.SetReadDeadline(time.Now().Add(time.Duration(random.IntN(3)) * time.Millisecond))
				s.Read(p[:1+random.IntN(len(p))])
			case 5:
				s.CloseWrite()
			case 6:
				if random.IntN(3) == 0 {
					s.Reset(deception.EndReason(1 + random.IntN(int(deception.EndDenied))))
				}
			}
		}
		switch random.IntN(3) {
		case 0:
			s.Close()
		case 1:
			s.CloseWrite()
			s.SetReadDeadline(time.Now().Add(patience))
			for {
				if _, err := s.Read(p); err != nil {
					if err != io.EOF && !isReset(err) {
						t.Errorf("read: %v", err)
					}
					break
				}
			}
			s.Close()
		default:
			s.Reset(deception.EndIdle)
		}
	}
	st := newSite(t, func(_ string, s *Stream) {
		act(s, rand.New(rand.NewPCG(uint64(s.Header()[0]), uint64(s.Header()[1]))))
	})
	c := st.client()
	eventually(t, "connected", func() bool { return connected(c, "gw1") })
	conns := onlyGateway(t, c)
	over := time.Now().Add(2 * time.Second)
	within(t, "churn", func() {
		var all sync.WaitGroup
		for i := range 32 {
			all.Go(func() {
				random := rand.New(rand.NewPCG(uint64(i), 1))
				for time.Now().Before(over) {
					s, err := c.Open(context.Background(), []byte{byte(random.Uint32()), byte(random.Uint32())}, random.IntN(4) == 0)
					if err != nil {
						t.Errorf("open: %v", err)
						return
					}
					act(s, random)
				}
			})
		}
		all.Wait()
	})
	for _, cn := range conns {
		if err := cn.reason(); err != nil {
			t.Errorf("a connection ended: %v", err)
		}
	}
	eventually(t, "nothing is left", func() bool {
		s := st.server.Status()
		left := int64(c.Status()[0].Streams) + s.Held
		for _, p := range s.Peers {
			left += int64(p.Streams)
		}
		for _, cn := range conns {
			left += cn.held.Load() + cn.extra.Load()
		}
		return left == 0
	})
	if s := st.server.Status(); s.Broken != 0 {
		t.Errorf("%d connections were closed for a breach of the protocol", s.Broken)
	}
}

func isReset(err error) bool {
	var reset *ResetError
	return errors.As(err, &reset)
}
