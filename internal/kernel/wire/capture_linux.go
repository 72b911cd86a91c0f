package wire

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// captureBlock has room for a super-segment of 64 KiB three times over: one
	// that does not fit into a block comes cut short.
	captureBlock = 256 << 10
	// DefaultCaptureRing holds what a stream of 1 Gbit/s sends in 130 ms.
	DefaultCaptureRing = 16 << 20
	// vnetHeader is the size of struct virtio_net_hdr, which stands before the
	// frame (PACKET_VNET_HDR).
	vnetHeader = 10
)

// Captured is a packet of a link, whole: its bytes and what the kernel knows of
// it. A packet that a network card would cut, or sum up, comes as the kernel has
// it: up to 64 KiB long, its checksum still to be computed.
type Captured struct {
	At       int64  // Unix nanoseconds
	IP       []byte // from the IP header on
	Outgoing bool   // sent by the namespace itself
	// Unsummed says that the transport's checksum is not there yet, or that the
	// kernel has verified it.
	Unsummed bool
	Segment  int // payload of each segment of a packet that is to be cut; 0: it is one
}

// CaptureConfig says what a Capture listens to.
type CaptureConfig struct {
	NS   Namespace
	Link int // the index of the link
	Take Selection
	// Promiscuous has the link receive what is for others. A bridge hands up what
	// it forwards between its ports only then.
	Promiscuous bool
	// Incoming leaves out what the namespace sends: on a loopback link everything
	// would come twice.
	Incoming bool
	// RingBytes is the size of the ring; 0 is DefaultCaptureRing.
	RingBytes int
	// Handle is given every packet, from one goroutine. It is valid during the
	// call only. While Handle runs the ring fills; what finds no room is dropped
	// and counted. It must not call Close.
	Handle func(*Captured)
}

// Capture is an open ring of whole packets, each of which comes once: at a bridge
// those that it forwards, sends and receives, elsewhere those in both directions.
type Capture struct {
	ring
	handle   func(*Captured)
	incoming bool
	packet   Captured // scratch
}

// OpenCapture begins to listen, as Open does.
func OpenCapture(c CaptureConfig) (*Capture, error) {
	filter, err := c.Take.compile()
	if err != nil {
		return nil, err
	}
	size := c.RingBytes
	if size <= 0 {
		size = DefaultCaptureRing
	}
	t := &Capture{handle: c.Handle, incoming: c.Incoming}
	err = t.open(&ringConfig{
		ns: c.NS, link: c.Link, filter: filter, bytes: size, block: captureBlock,
		options: c.options, each: t.take, flush: func() {},
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

func (c *CaptureConfig) options(fd int) error {
	if c.Incoming {
		_ = ignoreOutgoing(fd) // take leaves out what this does not know of
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
		return fmt.Errorf("ask for offload headers: %w", err)
	}
	if !c.Promiscuous {
		return nil
	}
	join := unix.PacketMreq{Ifindex: int32(c.Link), Type: unix.PACKET_MR_PROMISC}
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &join); err != nil {
		return fmt.Errorf("make the link promiscuous: %w", err)
	}
	return nil
}

func (t *Capture) take(header *unix.Tpacket3Hdr, b []byte) {
	frame := b[header.Mac:][:header.Snaplen]
	if len(frame) < etherHeader {
		return
	}
	vnet := b[int(header.Mac)-vnetHeader:][:vnetHeader]
	t.packet = Captured{
		At: int64(header.Sec)*1e9 + int64(header.Nsec), IP: frame[etherHeader:],
		Outgoing: address(b).Pkttype == unix.PACKET_OUTGOING,
		Unsummed: vnet[0]&(unix.VIRTIO_NET_HDR_F_NEEDS_CSUM|unix.VIRTIO_NET_HDR_F_DATA_VALID) != 0,
	}
	if vnet[1] != unix.VIRTIO_NET_HDR_GSO_NONE {
		t.packet.Segment = int(binary.NativeEndian.Uint16(vnet[4:]))
	}
	if t.incoming && t.packet.Outgoing {
		return
	}
	t.handle(&t.packet)
}
