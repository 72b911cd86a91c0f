package tunnel

import (
	"io"
	"os"
	"time"
)

// SetReadDeadline makes Read return os.ErrDeadlineExceeded from t on; the zero
// time takes that back.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	if t.IsZero() || s.ended {
		return nil // a timer that runs will find nothing to do
	}
	if s.alarm == nil {
		s.alarm = time.AfterFunc(time.Until(t), s.expire)
	} else {
		s.alarm.Reset(time.Until(t))
	}
	return nil
}

// expire wakes the readers if their time is over.
func (s *Stream) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.expiredLocked() {
		s.readable.Broadcast()
	}
}

func (s *Stream) expiredLocked() bool {
	return !s.deadline.IsZero() && !time.Now().Before(s.deadline)
}

// Read reads what has arrived, at least one byte, or one datagram (what of it
// does not fit p is lost, as with UDP). It returns io.EOF after the peer's
// CloseWrite, a *ResetError after a reset by either end, with EndGateway if the
// connection broke, and os.ErrDeadlineExceeded.
//
// Only what was read makes room for more from the peer, and the room is told
// with the next Read: who reads into p and passes it on before reading again
// carries the pace of the receiver back to the sender.
func (s *Stream) Read(p []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	if len(p) == 0 && !s.datagrams {
		return 0, nil
	}
	if s.rest.head == nil {
		if err := s.await(len(p)); err != nil {
			return 0, err
		}
	}
	n := 0
	for b := s.rest.head; b != nil && (n < len(p) || b.len() == 0); b = s.rest.head {
		k := copy(p[n:], b.data())
		n += k
		if b.r += k; b.len() == 0 {
			s.rest.pop().free()
		}
	}
	if s.datagrams {
		s.eaten += datagramCost
		for b := s.rest.pop(); b != nil; b = s.rest.pop() {
			s.eaten += b.len()
			b.free()
		}
	}
	s.eaten += n
	return n, nil
}

// await waits until there is something to read and puts it into rest: a
// datagram, or whole buffers that fit want bytes, at least one. The caller holds
// reading.
func (s *Stream) await(want int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.consumeLocked()
	for {
		switch {
		case s.expiredLocked():
			return os.ErrDeadlineExceeded
		case s.whole > 0 || s.arrived.head != nil && !s.datagrams:
			s.takeLocked(want)
			return nil
		case s.reset != nil:
			return s.reset
		case s.finArrived:
			return io.EOF
		}
		s.readable.Wait()
	}
}

// takeLocked moves what await found.
func (s *Stream) takeLocked(want int) {
	held := 0
	for b := s.arrived.head; b != nil; b = s.arrived.head {
		if !s.datagrams && held > 0 && b.len() > want {
			break
		}
		want -= b.len()
		held += len(b.b)
		s.rest.push(s.arrived.pop())
		if s.datagrams && !b.more {
			s.whole--
			break
		}
	}
	s.heldNow.Add(-int64(held))
	s.conn.hold(-held)
}

// consumeLocked tells the peer that it may send what was read since, where that
// is much.
func (s *Stream) consumeLocked() {
	n := s.eaten
	s.eaten = 0
	if n == 0 || s.finArrived || s.reset != nil || s.ended {
		return
	}
	var now time.Duration
	if s.in.due(n) {
		now = clock()
	}
	trip := time.Duration(s.conn.trip.low.Load())
	if grant := s.in.take(n, now, trip, s.conn.extend); grant > 0 {
		s.grant += grant
		s.scheduleLocked()
	}
}

// deliver queues the data of a frame. It copies what is little, and takes the
// reader's buffer where the data is most of it. It returns ErrProtocol for what
// the peer was not allowed to send.
func (s *Stream) deliver(in *scanner, f frame) error {
	n, more := len(f.payload), f.flags&flagMore != 0
	cost := n
	switch {
	case s.datagrams && !more:
		cost += datagramCost
	case !s.datagrams && more:
		return violation("a piece of a datagram for stream %#x, which carries bytes", s.id)
	case n == 0:
		return violation("a data frame without data for stream %#x", s.id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended:
		return nil
	case s.finArrived:
		return violation("data for stream %#x after its end", s.id)
	case !s.in.arrived(cost):
		return violation("%d bytes for stream %#x, which was allowed %d", n, s.id, s.in.credit)
	case s.piece+n > MaxDatagram && s.datagrams:
		return violation("a datagram of more than %d bytes for stream %#x", MaxDatagram, s.id)
	case s.discard:
		return nil
	}
	s.keepLocked(in, f.payload, more)
	if s.datagrams {
		if s.piece += n; more {
			return nil
		}
		s.piece = 0
		s.whole++
	}
	s.readable.Signal()
	return nil
}

func (s *Stream) keepLocked(in *scanner, payload []byte, more bool) {
	b := in.detach(payload)
	if b == nil {
		tail := s.arrived.tail
		if tail != nil && tail.room() >= len(payload) && (!s.datagrams || tail.more) {
			tail.fill(payload)
			tail.more = more
			return
		}
		b = getBuffer(len(payload))
		b.fill(payload)
	}
	b.more = more
	s.arrived.push(b)
	s.heldNow.Add(int64(len(b.b)))
	s.conn.hold(len(b.b))
}

// finished notes that the peer sends nothing more.
func (s *Stream) finished() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	if s.finArrived || s.piece > 0 {
		return violation("a second end of stream %#x, or one within a datagram", s.id)
	}
	s.finArrived = true
	s.grant = 0
	s.readable.Broadcast()
	if s.finSent {
		s.endLocked()
	}
	return nil
}
