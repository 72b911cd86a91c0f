package tunnel

import (
	"encoding/binary"
)

const (
	// sendQueue is how much a stream keeps for the writer, in bytes, so that the
	// next data is read while the last is encrypted. A stream whose peer takes
	// nothing keeps stalledQueue.
	sendQueue     = 2 * maxFrame
	stalledQueue  = maxFrame
	datagramQueue = 256 << 10
	// copyOutside is from where on Write copies before it locks the stream.
	copyOutside = maxFrame / 2
)

// Write queues p for the peer, and waits while the peer takes no more. It
// returns a *ResetError after a reset by either end or, with EndGateway, if the
// connection broke, and an error after CloseWrite.
//
// On a stream of datagrams p is one (ErrDatagramSize: more than MaxDatagram
// bytes), and it is dropped and counted where a stream of bytes would wait.
func (s *Stream) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.datagrams {
		return s.writeDatagram(p)
	}
	n := 0
	for n < len(p) {
		piece := p[n:min(n+maxPayload, len(p))]
		var b *buffer
		if len(piece) >= copyOutside {
			b = sendBuffer(piece)
		}
		if err := s.enqueue(piece, b); err != nil {
			if b != nil {
				b.free()
			}
			return n, err
		}
		n += len(piece)
	}
	return n, nil
}

// sendBuffer copies p behind room for a frame's header.
func sendBuffer(p []byte) *buffer {
	b := getBuffer(headerSize + len(p))
	b.r, b.w = headerSize, headerSize
	b.fill(p)
	return b
}

// enqueue waits for room and queues p, or b if that holds it already.
func (s *Stream) enqueue(p []byte, b *buffer) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if err := s.writeErrLocked(); err != nil {
			return err
		}
		if s.backlog < s.queueLimitLocked() {
			break
		}
		s.writable.Wait()
	}
	s.backlog += len(p)
	if tail := s.leaving.tail; b == nil && tail != nil && tail.room() >= len(p) {
		tail.fill(p)
	} else {
		if b == nil {
			b = sendBuffer(p)
		}
		s.leaving.push(b)
	}
	if s.out > 0 {
		s.scheduleLocked()
	}
	return nil
}

func (s *Stream) writeErrLocked() error {
	switch {
	case s.reset != nil:
		return s.reset
	case s.finDue:
		return errWritten
	}
	return nil
}

func (s *Stream) queueLimitLocked() int {
	if s.out == 0 {
		return stalledQueue
	}
	return sendQueue
}

// writeDatagram queues a datagram, or drops it. What the peer allows is booked
// here, so that a datagram goes whole or not at all.
func (s *Stream) writeDatagram(p []byte) (int, error) {
	if len(p) > MaxDatagram {
		return 0, ErrDatagramSize
	}
	cost := len(p) + datagramCost
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writeErrLocked(); err != nil {
		return 0, err
	}
	if cost > s.out || s.backlog+cost > datagramQueue {
		s.dropped++
		s.conn.dropped.Add(1)
		return len(p), nil
	}
	s.out -= cost
	s.backlog += cost
	for rest := p; ; {
		piece := rest[:min(len(rest), maxPayload)]
		rest = rest[len(piece):]
		b := sendBuffer(piece)
		b.more = len(rest) > 0
		s.leaving.push(b)
		if !b.more {
			break
		}
	}
	s.scheduleLocked()
	return len(p), nil
}

// credited notes that the peer allows more to be sent.
func (s *Stream) credited(n uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	if n == 0 || int64(n)+int64(s.out) > 2*maxWindow {
		return violation("a window of %d bytes more for stream %#x, which has %d", n, s.id, s.out)
	}
	s.out += int(n)
	if s.leaving.head != nil {
		s.scheduleLocked()
	}
	s.writable.Signal()
	return nil
}

// emit adds what the stream has to say to the batch, at most one frame of data,
// and tells whether there is more. The writer calls it.
func (s *Stream) emit(b *batch) (more bool) {
	s.mu.Lock()
	s.queued = false
	if s.ended {
		s.mu.Unlock()
		return false
	}
	if s.openDue {
		s.openDue = false
		var flags uint8
		if s.datagrams {
			flags = flagDatagrams
		}
		b.frame(frameOpen, flags, s.id, s.header)
	}
	if s.grant > 0 {
		b.header(frameWindow, 0, s.id, 4)
		g := b.gather
		binary.BigEndian.PutUint32(g.b[g.w:], uint32(s.grant))
		g.w += 4
		s.grant = 0
	}
	record := s.emitData(b)
	if record == nil {
		s.emitEnd(b)
	}
	s.queued = s.pendingLocked()
	more = s.queued
	s.mu.Unlock()
	if record != nil {
		b.direct(record.data())
		record.free()
	}
	return more
}

// emitData adds a frame of data. Where that is a record of its own it is
// returned instead, to be encrypted without holding the stream's lock.
func (s *Stream) emitData(b *batch) (record *buffer) {
	head := s.leaving.head
	if head == nil {
		return nil
	}
	n, flags := head.len(), uint8(0)
	switch {
	case s.datagrams:
		// Booked when it was written.
		if s.backlog -= n; head.more {
			flags = flagMore
		} else {
			s.backlog -= datagramCost
		}
	case s.out == 0:
		return nil
	default:
		n = min(n, s.out)
		s.out -= n
		s.backlog -= n
	}
	if s.backlog <= s.queueLimitLocked()/2 {
		s.writable.Signal()
	}
	whole := n == head.len()
	if whole {
		s.leaving.pop()
		if headerSize+n >= directSize {
			// What stood before the data was sent already, or is room for this.
			head.r -= headerSize
			putHeader(head.b[head.r:], frameData, flags, s.id, n)
			return head
		}
	}
	b.frame(frameData, flags, s.id, head.data()[:n])
	head.r += n
	if whole {
		head.free()
	}
	return nil
}

// emitEnd adds a fin or reset where all data before it is on its way. A reset
// does not wait for a peer that takes no data.
func (s *Stream) emitEnd(b *batch) {
	sent := s.leaving.head == nil
	switch {
	case s.resetDue && (sent || s.out == 0):
		b.frame(frameReset, 0, s.id, []byte{byte(s.reset.Reason)})
		s.endLocked()
	case s.finDue && !s.finSent && sent && s.reset == nil:
		b.frame(frameFIN, 0, s.id, nil)
		s.finSent = true
		if s.finArrived {
			s.endLocked()
		}
	}
}

// pendingLocked tells whether emit has something to do.
func (s *Stream) pendingLocked() bool {
	if s.ended {
		return false
	}
	return s.openDue || s.grant > 0 || s.resetDue ||
		s.leaving.head != nil && (s.datagrams || s.out > 0) ||
		s.finDue && !s.finSent && s.leaving.head == nil && s.reset == nil
}
