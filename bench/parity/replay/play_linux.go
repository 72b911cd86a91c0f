package replay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/bench/parity/script"
	"decoynet/deception"
	"decoynet/internal/lab"
)

// Played says when a capture was played, for its packets to be found.
type Played struct {
	Capture *script.Capture
	Begin   time.Time
	// Open are, for each flow, the sides that the capture leaves open, and that were
	// closed at its end only for the next one's sake.
	Open [][2]bool
	// Begun are the flows that were opened: all, unless playing failed.
	Begun []bool
}

// flow is a flow that is being played.
type flow struct {
	sides [2]*net.TCPConn
	ended [2]bool // nothing more comes from the side
}

// Play plays a capture, step by step in its order: each only when what was sent
// before has arrived at the other end, so that a relay reads every piece by itself.
func (w *World) Play(ctx context.Context, c *script.Capture) (Played, error) {
	p := Played{Capture: c, Begin: time.Now(), Open: make([][2]bool, len(c.Flows)), Begun: make([]bool, len(c.Flows))}
	flows := make([]*flow, len(c.Flows))
	var err error
	for i, s := range c.Steps {
		if err = ctx.Err(); err != nil {
			break
		}
		if err = w.step(ctx, c, flows, s); err != nil {
			err = fmt.Errorf("step %d of %d (flow %d, side %d): %w", i+1, len(c.Steps), s.Flow, s.Side, err)
			break
		}
	}
	for i, f := range flows {
		if f == nil {
			continue
		}
		p.Begun[i], p.Open[i] = true, [2]bool{!f.ended[0], !f.ended[1]}
		for side := range f.sides {
			if err == nil && !f.ended[side] {
				err = f.fin(side)
			}
		}
		for _, conn := range f.sides {
			_ = conn.Close() // maybe reset meanwhile
		}
	}
	if err != nil {
		return p, fmt.Errorf("play %s: %w", c.Name, err)
	}
	return p, nil
}

func (w *World) step(ctx context.Context, c *script.Capture, flows []*flow, s script.Step) error {
	def := &c.Flows[s.Flow]
	if def.Transport != deception.TCP {
		return nil // datagrams have no script yet
	}
	f := flows[s.Flow]
	var err error
	switch s.Kind {
	case script.Open:
		flows[s.Flow], err = w.open(ctx, def)
	case script.Data:
		err = f.data(s.Side, s.Data)
	case script.Fin:
		err = f.fin(s.Side)
	case script.Reset:
		err = f.reset(s.Side)
	}
	return err
}

// open connects the client, and waits for the connection at the service.
func (w *World) open(ctx context.Context, def *script.Flow) (*flow, error) {
	client, server := w.Plan.OnWire(def)
	arrived := w.actor.expect(client)
	defer w.actor.forget(client)
	conn, err := dialAs(ctx, w.Clients[w.Plan.segmentOf(client, server)], client, server)
	if err != nil {
		return nil, fmt.Errorf("connect %s to %s: %w", client, server, err)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case peer := <-arrived:
		return &flow{sides: [2]*net.TCPConn{conn, peer}}, nil
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("the service saw no connection from %s", client), conn.Close())
	}
}

// dialAs connects from an address that need not be the machine's.
func dialAs(ctx context.Context, m *lab.Machine, from, to netip.AddrPort) (*net.TCPConn, error) {
	dialer := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(from), Control: transparent}
	dialer.SetMultipathTCP(false)
	var conn net.Conn
	err := m.Do(func() (err error) {
		conn, err = dialer.DialContext(ctx, "tcp", to.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn.(*net.TCPConn), nil
}

func transparent(network, _ string, raw syscall.RawConn) error {
	var err error
	control := raw.Control(func(fd uintptr) {
		level, option := unix.SOL_IP, unix.IP_TRANSPARENT
		if network == "tcp6" {
			level, option = unix.SOL_IPV6, unix.IPV6_TRANSPARENT
		}
		err = os.NewSyscallError("set transparent", unix.SetsockoptInt(int(fd), level, option, 1))
		err = errors.Join(err, os.NewSyscallError("set reuse", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)))
	})
	return errors.Join(control, err)
}

// data sends a piece and waits until it has arrived.
func (f *flow) data(side int, piece []byte) error {
	from, to := f.sides[side], f.sides[1-side]
	deadline := time.Now().Add(patience)
	if err := errors.Join(from.SetDeadline(deadline), to.SetDeadline(deadline)); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(piece)
		sent <- err
	}()
	got := make([]byte, len(piece))
	_, err := io.ReadFull(to, got)
	if err != nil {
		err = fmt.Errorf("receive %d bytes: %w", len(piece), err)
	} else if !bytes.Equal(got, piece) {
		err = errors.New("other bytes arrived than were sent")
	}
	if sendErr := <-sent; sendErr != nil {
		err = errors.Join(fmt.Errorf("send %d bytes: %w", len(piece), sendErr), err)
	}
	return err
}

// fin ends what the side says and waits until the other side knows.
func (f *flow) fin(side int) error {
	if err := f.sides[side].CloseWrite(); err != nil {
		return fmt.Errorf("end the stream: %w", err)
	}
	f.ended[side] = true
	return f.await(1-side, func(err error) bool { return errors.Is(err, io.EOF) })
}

// reset aborts the flow and waits until the other side knows.
func (f *flow) reset(side int) error {
	conn := f.sides[side]
	f.ended = [2]bool{true, true}
	if err := errors.Join(conn.SetLinger(0), conn.Close()); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	// Where the other side's FIN had arrived before, the reset may not be told.
	return f.await(1-side, func(err error) bool { return errors.Is(err, unix.ECONNRESET) || errors.Is(err, io.EOF) })
}

func (f *flow) await(side int, end func(error) bool) error {
	conn := f.sides[side]
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	n, err := conn.Read(make([]byte, 1))
	if n > 0 {
		return errors.New("more bytes arrived than were sent")
	}
	if !end(err) {
		return fmt.Errorf("wait for the flow's end: %w", err)
	}
	return nil
}
