// Package vtap makes the tap device on which sensors listen to the frames of
// sessions: Suricata, Zeek, tcpdump or whatever else reads a network interface.
//
// A frame that is written to the device arrives there as if it had come over a
// wire. The machine's own network stack is not to take part in that: it would
// answer frames that are for addresses of the machine, and route others. So the
// device has no address, neither ARP nor IPv6, and a MAC address that no frame
// can have: those of sessions are locally administered (see package frame), its
// own is not. The kernel thus takes every frame for another host's
// (PACKET_OTHERHOST), which readers of the interface get and the stack drops
// before it looks at the addresses inside. Frames that could be anything else
// are refused.
//
// The device stays when the process ends, so that sensors need not be started
// again with it, and is found again by its alias. Nobody need listen: what nobody
// reads is dropped by the kernel.
package vtap

import "errors"

const (
	// DefaultName is the device's name where the document gives none.
	DefaultName = "vtap0"
	// MTU is that of an Ethernet: no frame of the feed holds a longer packet.
	// Sensors size their buffers by it; the VLAN tags come on top, as everywhere.
	MTU = 1500
	// macAddress is the device's own: of the block that is for documentation
	// (RFC 9542, section 2.1.2) and universally administered.
	macAddress = "00:00:5e:00:53:de"
)

// Errors of this package.
var (
	// ErrForeign is wrapped by what Apply returns where a link of that name is
	// there and not ours.
	ErrForeign = errors.New("is there already and is not decoynet's")
	// ErrBusy is wrapped by what Apply returns where another process writes to
	// the device.
	ErrBusy = errors.New("another process writes to it")
	// ErrNotSupported says that the kernel has no tap devices.
	ErrNotSupported = errors.New("not supported by this kernel")
	// ErrRefused is wrapped by what Frame returns for a frame that the machine's
	// own network stack might take.
	ErrRefused = errors.New("its destination is no session's MAC address")
	// ErrClosed is wrapped by what Frame returns while there is no device.
	ErrClosed = errors.New("the tap device is not open")
)

// Stats is what was written to the device. What a sensor lost of it shows only at
// the sensor: compare its own count with Frames.
type Stats struct {
	Name    string
	Open    bool
	Frames  uint64 // that the device took
	Bytes   uint64
	Refused uint64 // see ErrRefused
	Failed  uint64 // frames that the device did not take: it was down, or gone
	Err     error  // why the last frame was not taken; nil once one was again
}
