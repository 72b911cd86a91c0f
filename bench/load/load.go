// Package load is the benchmarks' client and server: single-threaded epoll
// loops over raw sockets, so that on a machine whose few cores they share with
// the gateway, the gateway is what is measured.
//
// The server speaks first: on the banner port it tells every client which peer
// it saw, and the client compares that with its own address. A figure taken
// with a wrong source is worth nothing, so it carries the evidence.
package load

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// The ports of a server, and what it does on each. They lie below the
// intruder's ephemeral range: a listener on a wildcard address blocks
// transparent binds to its own port number in the same network namespace.
const (
	PortBanner = 80 // sends the banner, waits for the client to close
	PortSource = 81 // sends for as long as the client reads
	PortSink   = 82 // counts what it is sent, closes on EOF
	PortCloser = 83 // sends the banner and closes first
	PortTotal  = 84 // sends how many bytes all sinks have got, closes
)

// Ports lists all of them in order.
var Ports = []int{PortBanner, PortSource, PortSink, PortCloser, PortTotal}

// bannerLen is the size of the record in which the server reports the peer it
// saw: two bytes of magic, port, IPv4 address.
const bannerLen = 8

const bannerMagic = 0x646e

func putBanner(b *[bannerLen]byte, addr [4]byte, port uint16) {
	binary.BigEndian.PutUint16(b[0:], bannerMagic)
	binary.BigEndian.PutUint16(b[2:], port)
	copy(b[4:], addr[:])
}

func parseBanner(b []byte) (addr [4]byte, port uint16, ok bool) {
	if len(b) != bannerLen || binary.BigEndian.Uint16(b) != bannerMagic {
		return addr, 0, false
	}
	return [4]byte(b[4:]), binary.BigEndian.Uint16(b[2:]), true
}

// Kind names what a load does.
type Kind string

// The kinds of load.
const (
	Connect  Kind = "connect"  // connect, read the banner, close; over and over
	Download Kind = "download" // the server sends
	Upload   Kind = "upload"   // the client sends
	Hold     Kind = "hold"     // connect, read the banner, keep open
)

// Spec describes one load. It travels to the process that generates it as JSON.
type Spec struct {
	Kind     Kind
	Targets  []netip.Addr  // IPv4 addresses, taken in turn
	Parallel int           // connections at a time; for Hold how many to hold
	Duration time.Duration // no new work after it
	Timeout  time.Duration // of a single connection (Connect, Hold)
	// Limit ends a Connect load early after so many connections; 0 is no limit.
	Limit uint64
	// ServerCloses lets the server close first in a Connect load.
	ServerCloses bool
}

// Result is what a load measured.
type Result struct {
	Elapsed time.Duration // of the measured window
	Done    uint64        // connections that got their banner within it
	Served  uint64        // the same, with those that finished after it
	P50     time.Duration // connect to banner
	P99     time.Duration
	Max     time.Duration
	// Failed counts connections that got no banner, by the error's name:
	// ECONNREFUSED, ECONNRESET, EOF, timeout; "lost" is a flow that was to be
	// held and was not there any more.
	Failed map[string]uint64
	// Exhausted counts connects refused by the client's own kernel because no
	// source port was free: the generator's limit, not the gateway's fault.
	Exhausted   uint64
	WrongSource uint64 // connections for which the server saw another address
	WrongSeen   string // an example: the peer as the server saw it
	MovedPorts  uint64 // right address, other port
	Bytes       uint64 // payload that arrived (Download, Upload)
}

// Failures adds up Failed.
func (r *Result) Failures() uint64 {
	var n uint64
	for _, c := range r.Failed {
		n += c
	}
	return n
}

// PerSecond returns the completed connections per second.
func (r *Result) PerSecond() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return float64(r.Done) / r.Elapsed.Seconds()
}

// GbitPerSecond returns the payload's rate.
func (r *Result) GbitPerSecond() float64 {
	if r.Elapsed <= 0 {
		return 0
	}
	return float64(r.Bytes) * 8 / 1e9 / r.Elapsed.Seconds()
}
