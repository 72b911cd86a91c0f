package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
)

// readLoop takes the peer's frames to where they belong, until the connection
// ends, and returns why. It waits for the peer only, never for a stream.
func (c *conn) readLoop(in *scanner) error {
	var m messageParts
	for {
		f, err := in.next()
		if err != nil {
			return readError(err)
		}
		if shapes[f.kind].stream {
			err = c.streamFrame(in, f)
		} else {
			err = c.connFrame(&m, f)
		}
		if err != nil {
			return err
		}
	}
}

// streamFrame takes a frame to its stream.
func (c *conn) streamFrame(in *scanner, f frame) error {
	if f.kind == frameOpen {
		return c.opened(f)
	}
	s, err := c.find(f)
	if s == nil || err != nil {
		return err
	}
	switch f.kind {
	case frameData:
		if err := s.deliver(in, f); err != nil {
			return err
		}
		c.relieve()
		return nil
	case frameFIN:
		return s.finished()
	case frameReset:
		reason, err := resetReason(f)
		if err == nil {
			s.wasReset(reason)
		}
		return err
	default:
		return s.credited(binary.BigEndian.Uint32(f.payload))
	}
}

// opened starts serving a stream.
func (c *conn) opened(f frame) error {
	if c.cfg.dialed {
		return violation("a gateway opens stream %#x, which only agents do", f.stream)
	}
	s, err := c.accept(f)
	if s == nil || err != nil {
		return err
	}
	c.cfg.served.Go(func() {
		defer c.serving.Add(-1)
		c.cfg.serve(s)
		s.Close()
	})
	return nil
}

// connFrame handles what is about the connection itself.
func (c *conn) connFrame(m *messageParts, f frame) error {
	switch f.kind {
	case framePing:
		c.mu.Lock()
		c.control.pong = true
		copy(c.control.echo[:], f.payload)
		c.wakeLocked()
		c.mu.Unlock()
	case framePong:
		now := clock()
		if trip := now - pongTime(f.payload); trip >= 0 && pongTime(f.payload) > 0 {
			c.trip.sample(trip, now)
		}
		c.mu.Lock()
		c.asked = 0
		c.mu.Unlock()
	case frameMessage:
		if c.cfg.told == nil {
			return violation("an agent sends a message, which only gateways do")
		}
		whole, err := m.add(f)
		if err == nil && whole {
			c.cfg.told(m.instance, m.number, m.text)
			m.text = nil
		}
		return err
	case frameBye:
		return byeError(f.payload)
	default:
		return violation("a second hello")
	}
	return nil
}

// messageParts puts a message together.
type messageParts struct {
	instance, number uint64
	text             []byte
	begun            bool
}

func (m *messageParts) add(f frame) (whole bool, err error) {
	instance, number := binary.BigEndian.Uint64(f.payload), binary.BigEndian.Uint64(f.payload[8:])
	if m.begun && (instance != m.instance || number != m.number) {
		return false, violation("a message begins within another")
	}
	m.instance, m.number = instance, number
	if len(m.text)+len(f.payload)-messagePrefix > MaxMessage {
		return false, violation("a message of more than %d bytes", MaxMessage)
	}
	m.text = append(m.text, f.payload[messagePrefix:]...)
	m.begun = f.flags&flagMore != 0
	return !m.begun, nil
}

// readError says in our words what the ways of a connection to end are.
func readError(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET):
		return errGone
	case errors.Is(err, ErrProtocol):
		return err
	}
	return fmt.Errorf("read from the connection: %w", err)
}

func writeError(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return errGone
	}
	return fmt.Errorf("write to the connection: %w", err)
}
