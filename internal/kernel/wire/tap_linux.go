package wire

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// blockBytes is the unit in which the kernel hands the ring over: about 900
	// frames. Larger ones would mean fewer wake-ups under load, but also coarser
	// room.
	blockBytes = 128 << 10
	// retire is when the kernel hands over a block that is not full. It looks at
	// this interval whether the block has anything in it, so that a single frame
	// waits for twice as long at most; an idle ring wakes nobody.
	retire = 25 * time.Millisecond
	// batch is how many frames Handle is given at most.
	batch = 512
	// pause is between two looks at a ring that cannot be waited for.
	pause = 50 * time.Millisecond
)

// Tap is an open ring. Send and Stats may be used from several goroutines.
type Tap struct {
	where  string // for error messages
	file   *os.File
	raw    syscall.RawConn // of file
	ring   []byte
	next   int // the block that is looked at next
	handle func([]Frame)
	frames []Frame

	closing   atomic.Bool
	done      chan struct{}
	closeOnce sync.Once
	closeErr  error

	mu              sync.Mutex // guards the rest
	passed, dropped uint64
}

// Open begins to listen. Nothing is heard that came before. The ring lives in
// the namespace until Close, whatever becomes of c.NS.
//
// A link that goes down and comes up again is heard again; one that was removed
// is not, even if another takes its name: open a new Tap then.
func Open(c Config) (*Tap, error) {
	t := &Tap{handle: c.Handle, done: make(chan struct{}), frames: make([]Frame, 0, batch)}
	t.where = "namespace " + c.NS.Name()
	if c.Link != 0 {
		t.where = fmt.Sprintf("link %d of %s", c.Link, t.where)
	}
	fd := -1
	err := c.NS.Do(func() (err error) {
		// Protocol 0: nothing is received before the socket is bound, and so
		// nothing that the filter has not seen.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return nil, fmt.Errorf("listen at %s (this takes CAP_NET_RAW): %w", t.where, err)
	}
	if err := t.prepare(fd, c); err != nil {
		if t.ring != nil {
			err = errors.Join(err, unix.Munmap(t.ring))
		}
		return nil, errors.Join(fmt.Errorf("listen at %s: %w", t.where, err), unix.Close(fd))
	}
	t.file = os.NewFile(uintptr(fd), "packet ring")
	if t.raw, err = t.file.SyscallConn(); err != nil {
		return nil, errors.Join(fmt.Errorf("listen at %s: %w", t.where, err), unix.Munmap(t.ring), t.file.Close())
	}
	go t.run()
	return t, nil
}

// prepare gives the socket its filter and ring and binds it.
func (t *Tap) prepare(fd int, c Config) error {
	kinds := c.Kinds
	if kinds == 0 {
		kinds = AllKinds
	}
	if err := attach(fd, kinds); err != nil {
		return err
	}
	// Spares the kernel the filter for what is sent. Before Linux 4.20 the
	// filter has to do it alone.
	_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("choose ring version 3 (Linux 3.2): %w", err)
	}
	size := c.RingBytes
	if size <= 0 {
		size = DefaultRing
	}
	blocks := (size + blockBytes - 1) / blockBytes
	request := unix.TpacketReq3{
		Block_size: blockBytes,
		Block_nr:   uint32(blocks),
		// Frames take what they need; these two must only agree with the size.
		Frame_size:     2048,
		Frame_nr:       uint32(blocks * blockBytes / 2048),
		Retire_blk_tov: uint32(retire.Milliseconds()),
	}
	if err := unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &request); err != nil {
		return fmt.Errorf("make a ring of %d KiB: %w", blocks*blockBytes>>10, err)
	}
	var err error
	if t.ring, err = unix.Mmap(fd, 0, blocks*blockBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map the ring: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swapped(unix.ETH_P_ALL), Ifindex: c.Link}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

func attach(fd int, kinds Kinds) error {
	code, err := compile(kinds)
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(code))
	for i, c := range code {
		filter[i] = unix.SockFilter{Code: c.Op, Jt: c.Jt, Jf: c.Jf, K: c.K}
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &program); err != nil {
		return fmt.Errorf("set packet filter: %w", err)
	}
	return nil
}

// swapped is a protocol number in network byte order.
func swapped(v uint16) uint16 { return v<<8 | v>>8 }

// run hands over what comes, and waits where there is nothing.
func (t *Tap) run() {
	defer close(t.done)
	for !t.closing.Load() {
		t.drain()
		err := t.raw.Read(func(fd uintptr) bool {
			if t.ready() || t.closing.Load() {
				return true
			}
			// A link that went down wakes us too and leaves ENETDOWN behind, which
			// the next frame that is sent would meet. Listening goes on by itself
			// when the link comes up.
			_, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
			return false
		})
		if err != nil && !t.closing.Load() {
			time.Sleep(pause) // the runtime's poller failed: look at the ring by the clock
		}
	}
}

// ringBlock is how a block begins (struct tpacket_block_desc).
type ringBlock struct {
	version, private uint32
	unix.TpacketHdrV1
}

func (t *Tap) block() *ringBlock { return (*ringBlock)(unsafe.Pointer(&t.ring[t.next*blockBytes])) }

// ready tells whether the next block is ours.
func (t *Tap) ready() bool {
	return atomic.LoadUint32(&t.block().Block_status)&unix.TP_STATUS_USER != 0
}

// drain hands over the blocks that are ours, and gives each back as soon as it
// was read.
func (t *Tap) drain() {
	for t.ready() && !t.closing.Load() {
		b := t.block()
		data := t.ring[t.next*blockBytes:][:blockBytes]
		at := b.Offset_to_first_pkt
		for range b.Num_pkts {
			header := (*unix.Tpacket3Hdr)(unsafe.Pointer(&data[at]))
			t.take(header, data[at:])
			at += header.Next_offset
		}
		atomic.StoreUint32(&b.Block_status, unix.TP_STATUS_KERNEL)
		t.next = (t.next + 1) % (len(t.ring) / blockBytes)
		t.deliver()
	}
}

// addressOffset is where the frame's struct sockaddr_ll lies: behind its header,
// aligned (TPACKET_ALIGN).
const addressOffset = (unix.SizeofTpacket3Hdr + 15) &^ 15

func (t *Tap) take(header *unix.Tpacket3Hdr, b []byte) {
	if len(t.frames) == cap(t.frames) {
		t.deliver()
	}
	t.frames = t.frames[:len(t.frames)+1]
	f := &t.frames[len(t.frames)-1]
	if !decode(b[header.Mac:][:header.Snaplen], f) {
		t.frames = t.frames[:len(t.frames)-1] // what the filter takes is decoded; a fuzz test says so
		return
	}
	f.At = int64(header.Sec)*1e9 + int64(header.Nsec)
	f.Link = int((*unix.RawSockaddrLinklayer)(unsafe.Pointer(&b[addressOffset])).Ifindex)
}

func (t *Tap) deliver() {
	if len(t.frames) > 0 {
		t.handle(t.frames)
		t.frames = t.frames[:0]
	}
}

// Stats returns how many frames passed the filter since Open, and how many of
// them were dropped because the ring was full.
func (t *Tap) Stats() (frames, dropped uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	// Reading resets the kernel's counters. After Close the last values stay.
	_ = t.raw.Control(func(fd uintptr) {
		if s, err := unix.GetsockoptTpacketStatsV3(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			t.passed += uint64(s.Packets)
			t.dropped += uint64(s.Drops)
		}
	})
	return t.passed, t.dropped
}

// Close ends the listening. After it Handle is not called any more. Closing
// twice is harmless.
func (t *Tap) Close() error {
	t.closeOnce.Do(func() {
		t.closing.Store(true)
		err := t.file.SetReadDeadline(time.Now())
		<-t.done
		t.Stats()
		if err = errors.Join(err, unix.Munmap(t.ring), t.file.Close()); err != nil {
			t.closeErr = fmt.Errorf("stop listening at %s: %w", t.where, err)
		}
	})
	return t.closeErr
}
