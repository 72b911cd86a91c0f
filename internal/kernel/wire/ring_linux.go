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

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// retire is when the kernel hands over a block that is not full. It looks at
	// this interval whether the block has anything in it, so that a single frame
	// waits for twice as long at most; an idle ring wakes nobody.
	retire = 25 * time.Millisecond
	// pause is between two looks at a ring that cannot be waited for.
	pause = 50 * time.Millisecond
)

// ringConfig says what a ring is made with.
type ringConfig struct {
	ns           Namespace
	link         int // 0: all of the namespace
	filter       []bpf.RawInstruction
	bytes, block int // of the whole ring, rounded up, and of what is handed over at once
	// options are set before the ring is made and the socket bound.
	options func(fd int) error
	// each is given every frame, valid until it returns: its header, and the bytes
	// from that header on.
	each func(header *unix.Tpacket3Hdr, b []byte)
	// flush is called when a block has gone back to the kernel.
	flush func()
}

// ring is a packet socket with a receive ring (TPACKET_V3) and the goroutine that
// reads it.
type ring struct {
	where     string // for error messages
	file      *os.File
	raw       syscall.RawConn // of file
	mem       []byte
	blockSize int
	next      int // the block that is looked at next
	each      func(*unix.Tpacket3Hdr, []byte)
	flush     func()

	closing   atomic.Bool
	done      chan struct{}
	closeOnce sync.Once
	closeErr  error

	mu              sync.Mutex // guards the rest
	passed, dropped uint64
}

// open begins to listen.
func (r *ring) open(c *ringConfig) error {
	r.each, r.flush, r.blockSize, r.done = c.each, c.flush, c.block, make(chan struct{})
	r.where = "namespace " + c.ns.Name()
	if c.link != 0 {
		r.where = fmt.Sprintf("link %d of %s", c.link, r.where)
	}
	fd := -1
	err := c.ns.Do(func() (err error) {
		// Protocol 0: nothing is received before the socket is bound, and so
		// nothing that the filter has not seen.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return fmt.Errorf("listen at %s (this takes CAP_NET_RAW): %w", r.where, err)
	}
	if err := r.prepare(fd, c); err != nil {
		if r.mem != nil {
			err = errors.Join(err, unix.Munmap(r.mem))
		}
		return errors.Join(fmt.Errorf("listen at %s: %w", r.where, err), unix.Close(fd))
	}
	r.file = os.NewFile(uintptr(fd), "packet ring")
	if r.raw, err = r.file.SyscallConn(); err != nil {
		return errors.Join(fmt.Errorf("listen at %s: %w", r.where, err), unix.Munmap(r.mem), r.file.Close())
	}
	go r.run()
	return nil
}

// prepare gives the socket its filter and ring and binds it.
func (r *ring) prepare(fd int, c *ringConfig) error {
	if err := attach(fd, c.filter); err != nil {
		return err
	}
	if err := c.options(fd); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("choose ring version 3 (Linux 3.2): %w", err)
	}
	blocks := (c.bytes + c.block - 1) / c.block
	request := unix.TpacketReq3{
		Block_size: uint32(c.block),
		Block_nr:   uint32(blocks),
		// Frames take what they need; these two must only agree with the size.
		Frame_size:     2048,
		Frame_nr:       uint32(blocks * c.block / 2048),
		Retire_blk_tov: uint32(retire.Milliseconds()),
	}
	if err := unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &request); err != nil {
		return fmt.Errorf("make a ring of %d KiB: %w", blocks*c.block>>10, err)
	}
	var err error
	if r.mem, err = unix.Mmap(fd, 0, blocks*c.block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map the ring: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swapped(unix.ETH_P_ALL), Ifindex: c.link}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

func attach(fd int, code []bpf.RawInstruction) error {
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
func (r *ring) run() {
	defer close(r.done)
	for !r.closing.Load() {
		r.drain()
		err := r.raw.Read(func(fd uintptr) bool {
			if r.ready() || r.closing.Load() {
				return true
			}
			// A link that went down wakes us too and leaves ENETDOWN behind, which
			// the next frame that is sent would meet. Listening goes on by itself
			// when the link comes up.
			_, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
			return false
		})
		if err != nil && !r.closing.Load() {
			time.Sleep(pause) // the runtime's poller failed: look at the ring by the clock
		}
	}
}

// ringBlock is how a block begins (struct tpacket_block_desc).
type ringBlock struct {
	version, private uint32
	unix.TpacketHdrV1
}

func (r *ring) block() *ringBlock {
	return (*ringBlock)(unsafe.Pointer(&r.mem[r.next*r.blockSize]))
}

// ready tells whether the next block is ours.
func (r *ring) ready() bool {
	return atomic.LoadUint32(&r.block().Block_status)&unix.TP_STATUS_USER != 0
}

// drain reads the blocks that are ours, and gives each back as soon as it was
// read.
func (r *ring) drain() {
	for r.ready() && !r.closing.Load() {
		b := r.block()
		data := r.mem[r.next*r.blockSize:][:r.blockSize]
		at := b.Offset_to_first_pkt
		for range b.Num_pkts {
			header := (*unix.Tpacket3Hdr)(unsafe.Pointer(&data[at]))
			r.each(header, data[at:])
			at += header.Next_offset
		}
		atomic.StoreUint32(&b.Block_status, unix.TP_STATUS_KERNEL)
		r.next = (r.next + 1) % (len(r.mem) / r.blockSize)
		r.flush()
	}
}

// addressOffset is where the frame's struct sockaddr_ll lies: behind its header,
// aligned (TPACKET_ALIGN).
const addressOffset = (unix.SizeofTpacket3Hdr + 15) &^ 15

// address is whence a frame came.
func address(b []byte) *unix.RawSockaddrLinklayer {
	return (*unix.RawSockaddrLinklayer)(unsafe.Pointer(&b[addressOffset]))
}

// Stats returns how many frames passed the filter since Open, and how many of
// them were dropped because the ring was full.
func (r *ring) Stats() (frames, dropped uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Reading resets the kernel's counters. After Close the last values stay.
	_ = r.raw.Control(func(fd uintptr) {
		if s, err := unix.GetsockoptTpacketStatsV3(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			r.passed += uint64(s.Packets)
			r.dropped += uint64(s.Drops)
		}
	})
	return r.passed, r.dropped
}

// Close ends the listening. After it nothing is handed over any more. Closing
// twice is harmless.
func (r *ring) Close() error {
	r.closeOnce.Do(func() {
		r.closing.Store(true)
		err := r.file.SetReadDeadline(time.Now())
		<-r.done
		r.Stats()
		if err = errors.Join(err, unix.Munmap(r.mem), r.file.Close()); err != nil {
			r.closeErr = fmt.Errorf("stop listening at %s: %w", r.where, err)
		}
	})
	return r.closeErr
}
