package tunnel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"decoynet/deception"
)

// datagram is n bytes long and says which one it is.
func datagram(number, n int) []byte {
	b := make([]byte, max(n, 4))
	for i := range b {
		b[i] = byte(i * number)
	}
	binary.BigEndian.PutUint32(b, uint32(number))
	return b[:n]
}

func TestDatagrams(t *testing.T) {
	st := newSite(t, func(node string, s *Stream) {
		if !s.Datagrams() {
			t.Error("the server takes it for a stream of bytes")
		}
		p := make([]byte, MaxDatagram+1)
		for {
			n, err := s.Read(p)
			if err == io.EOF {
				s.CloseWrite()
			}
			if err != nil {
				return
			}
			s.Write(p[:n])
		}
	})
	s := open(t, st.client(), "", true)
	p := make([]byte, MaxDatagram+1)
	within(t, "echo", func() {
		for i, size := range []int{0, 1, 512, 1472, maxPayload, maxPayload + 1, MaxDatagram, 0} {
			want := datagram(i, size)
			if n, err := s.Write(want); n != size || err != nil {
				t.Errorf("Write of %d: %d, %v", size, n, err)
			}
			n, err := s.Read(p)
			if err != nil || !bytes.Equal(p[:n], want) {
				t.Errorf("datagram of %d bytes: got %d, %v", size, n, err)
			}
		}
		// What does not fit is lost, the next datagram is not.
		s.Write(datagram(1, 40000))
		s.Write([]byte("next"))
		if n, err := s.Read(p[:10]); n != 10 || err != nil {
			t.Errorf("short read: %d, %v", n, err)
		}
		if n, err := s.Read(p); string(p[:n]) != "next" || err != nil {
			t.Errorf("after a short read: %q, %v", p[:n], err)
		}
		if _, err := s.Write(make([]byte, MaxDatagram+1)); !errors.Is(err, ErrDatagramSize) {
			t.Errorf("Write of too much: %v", err)
		}
		s.CloseWrite()
		if _, err := s.Read(p); err != io.EOF {
			t.Errorf("at the end: %v", err)
		}
	})
	if s.Dropped() != 0 {
		t.Errorf("%d datagrams were dropped", s.Dropped())
	}
}

// TestDatagramsNeverWait floods a peer that does not read: the writer is not held
// up, what gets lost is counted, what arrives is whole and in order, and the
// stream works when the peer reads again.
func TestDatagramsNeverWait(t *testing.T) {
	const sent = 20000
	read := make(chan struct{})
	got := make(chan []int, 1)
	st := newSite(t, func(_ string, s *Stream) {
		<-read
		var numbers []int
		p := make([]byte, MaxDatagram)
		for {
			n, err := s.Read(p)
			if err != nil {
				break
			}
			if n < 4 {
				t.Errorf("a datagram of %d bytes", n)
				break
			}
			number := int(binary.BigEndian.Uint32(p))
			if !bytes.Equal(p[:n], datagram(number, n)) {
				t.Errorf("datagram %d of %d bytes is damaged", number, n)
			}
			numbers = append(numbers, number)
		}
		got <- numbers
	})
	c := st.client()
	s := open(t, c, "", true)
	within(t, "writes", func() {
		for i := range sent {
			if _, err := s.Write(datagram(i, 4+i*37%30000)); err != nil {
				t.Error(err)
				return
			}
		}
	})
	dropped := int(s.Dropped())
	if dropped == 0 || dropped >= sent {
		t.Errorf("%d of %d datagrams were dropped", dropped, sent)
	}
	if n := c.Status()[0].Dropped; int(n) != dropped {
		t.Errorf("status says %d dropped, the stream %d", n, dropped)
	}
	close(read)
	// The window opens again.
	eventually(t, "a datagram is taken again", func() bool {
		before := s.Dropped()
		s.Write(datagram(sent, 100))
		return s.Dropped() == before
	})
	s.CloseWrite()
	var numbers []int
	within(t, "the server's end", func() { numbers = <-got })
	for i := 1; i < len(numbers); i++ {
		if numbers[i] <= numbers[i-1] {
			t.Fatalf("datagram %d came after %d", numbers[i], numbers[i-1])
		}
	}
	if len(numbers) != sent-dropped+1 || numbers[len(numbers)-1] != sent {
		t.Errorf("%d datagrams arrived, %d were sent and %d dropped", len(numbers), sent, dropped)
	}
}

// TestDatagramReset shows that resets of datagram streams carry their reason.
func TestDatagramReset(t *testing.T) {
	st := newSite(t, func(_ string, s *Stream) { s.Reset(deception.EndIdle) })
	s := open(t, st.client(), "", true)
	within(t, "read", func() {
		_, err := s.Read(make([]byte, 10))
		endsWith(t, err, deception.EndIdle)
	})
}
