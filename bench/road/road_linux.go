// Package road is a long way for the benchmarks: it carries Ethernet frames
// between two network cards and delivers each after a fixed delay, as a line
// across the country would. Both ends keep their own TCP, or QUIC, over the whole
// way, so that windows and slow start count as they do in the field.
//
// The kernels that the benchmarks run on need no netem for it. Frames travel with
// their offload headers (PACKET_VNET_HDR): a segment of 64 KB stays one frame.
package road

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxFrame holds the largest super-segment with its offload header.
	maxFrame = 64<<10 + 256
	// socketBuffer is what a card may hold before it is read: a burst of a
	// whole window of TCP.
	socketBuffer = 64 << 20
	// maxWaiting bounds the frames on the way, in bytes. The road loses what is
	// more, and says so.
	maxWaiting = 1 << 30
)

// Config says what the road connects.
type Config struct {
	Near, Far string        // the cards
	Delay     time.Duration // in each direction
}

// Run carries frames until the context ends. It calls ready when frames get
// through. Lost is told when frames got lost: what was measured meanwhile is
// worth nothing.
func Run(ctx context.Context, cfg Config, ready func(), lost func(error)) error {
	near, err := openCard(cfg.Near)
	if err != nil {
		return err
	}
	defer near.close()
	far, err := openCard(cfg.Far)
	if err != nil {
		return err
	}
	defer far.close()
	ready()
	var all sync.WaitGroup
	lanes := []*lane{{from: near, to: far, delay: cfg.Delay}, {from: far, to: near, delay: cfg.Delay}}
	for _, l := range lanes {
		l.queue = make(chan frame, 1<<16)
		all.Go(l.deliver)
		all.Go(func() { l.read(ctx) })
	}
	all.Go(func() { watch(ctx, lanes, lost) })
	all.Wait()
	return errors.Join(lanes[0].failed, lanes[1].failed)
}

// watch tells of losses as they happen.
func watch(ctx context.Context, lanes []*lane, lost func(error)) {
	every := time.NewTicker(100 * time.Millisecond)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		}
		for _, l := range lanes {
			if err := l.loss(); err != nil {
				lost(err)
			}
		}
	}
}

// card is a packet socket on a network card.
type card struct {
	name string
	fd   int
}

func openCard(name string) (*card, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("find card %s: %w", name, err)
	}
	// Protocol 0: nothing is received before the socket is bound to its card.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket: %w", err)
	}
	c := &card{name: name, fd: fd}
	second := unix.Timeval{Sec: 1}
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
		unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBuffer),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, socketBuffer),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &second),
		unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &unix.PacketMreq{Ifindex: int32(link.Index), Type: unix.PACKET_MR_PROMISC}),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: link.Index}),
	)
	if err != nil {
		c.close()
		return nil, fmt.Errorf("set up card %s: %w", name, err)
	}
	return c, nil
}

func networkOrder(p uint16) uint16 { return p<<8 | p>>8 }

func (c *card) close() { unix.Close(c.fd) }

// frame is a frame on its way.
type frame struct {
	due  time.Time
	data []byte
}

// lane is one direction.
type lane struct {
	from, to *card
	delay    time.Duration
	queue    chan frame
	waiting  atomic.Int64 // bytes
	lost     atomic.Int64 // frames, not yet told
	failed   error        // why reading ended; read when it has
}

// read takes frames off the card, in a system call that ends once a second.
func (l *lane) read(ctx context.Context) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(l.queue)
	buf := make([]byte, maxFrame)
	for ctx.Err() == nil {
		n, err := unix.Read(l.from.fd, buf)
		switch {
		case err == unix.EAGAIN || err == unix.EINTR || err == unix.ENETDOWN:
			continue
		case err != nil:
			l.failed = fmt.Errorf("read from card %s: %w", l.from.name, err)
			return
		}
		if l.waiting.Add(int64(n)) > maxWaiting {
			l.waiting.Add(-int64(n))
			l.lost.Add(1)
			continue
		}
		select {
		case l.queue <- frame{time.Now().Add(l.delay), append([]byte(nil), buf[:n]...)}:
		default:
			l.lost.Add(1)
		}
	}
}

// deliver puts frames on the other card when they are due.
func (l *lane) deliver() {
	for f := range l.queue {
		if d := time.Until(f.due); d > 0 {
			time.Sleep(d)
		}
		l.waiting.Add(-int64(len(f.data)))
		if _, err := unix.Write(l.to.fd, f.data); err != nil && err != unix.ENETDOWN {
			l.lost.Add(1)
		}
	}
}

// loss says what did not arrive since the last call, the kernel's own count
// included, which reading clears (packet(7)).
func (l *lane) loss() error {
	lost := l.lost.Swap(0)
	if s, err := unix.GetsockoptTpacketStats(l.from.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		lost += int64(s.Drops)
	}
	if lost == 0 {
		return nil
	}
	return fmt.Errorf("the road lost %d frames from %s to %s", lost, l.from.name, l.to.name)
}
