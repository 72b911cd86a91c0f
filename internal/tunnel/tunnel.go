// Package tunnel carries flows from agents to ingress gateways: very many
// streams over few TLS 1.3 connections, so that a port scan costs no handshake
// per flow.
//
// It is a multiplexer of its own because of what the known ones lack here: a
// credit window per stream that grows with the round trip, streams that are not
// held up by one that nobody reads, resets that carry a reason, datagrams, and
// one write to the socket for the frames of many streams. frame.go says what is
// on the wire.
//
//	Client ── link ── conn ═══ TLS 1.3 ═══ conn ── Server
//	            (keeps it up)   reader: frames -> streams, waits for none of them
//	                            writer: streams -> one batch, round robin
package tunnel

import (
	"errors"
	"fmt"
	"time"

	"decoynet/deception"
)

// Limits that both ends hold to.
const (
	// MaxHeader is the longest header of a stream, in bytes.
	MaxHeader = 1024
	// MaxDatagram is the longest datagram, in bytes: what UDP over IPv4 carries
	// (RFC 768 and RFC 791: 65535 less 8 and 20 bytes of headers).
	MaxDatagram = 65507
	// MaxMessage is the longest message of Server.Tell, in bytes.
	MaxMessage = 1 << 20
	// MaxStreams is how many streams a connection carries at once. More are
	// refused with EndOverload.
	MaxStreams = 16384
	// SegmentSize is how much a stream puts into one TLS record, in bytes. Who
	// writes in multiples of it saves the odd small record.
	SegmentSize = maxPayload
)

// protocol is the ALPN name (RFC 7301). The number goes up with a change that
// older ends cannot bear; what may be added is told in the hello frames.
const protocol = "decoynet/1"

const (
	tickEvery       = 500 * time.Millisecond // pings, and looking for silence
	doubtSilence    = 2                      // ticks without a byte after which new streams go elsewhere, if they can
	doubtPatience   = time.Second            // without an answer to a ping, likewise
	clientSilence   = 4                      // ticks without a byte after which a client gives a connection up
	serverSilence   = 10                     // the same for a server: the client decides first
	pongPatience    = 30 * time.Second       // a peer that sends, but does not answer, reads nothing
	byePatience     = 250 * time.Millisecond // to say why, before the connection is cut
	dialTimeout     = 5 * time.Second        // per address
	handshakeExpiry = 5 * time.Second        // from the first byte of TLS to the peer's hello
)

var (
	// ErrNoGateway is returned by Client.Open if no ingress gateway was usable
	// until the context was done.
	ErrNoGateway = errors.New("no ingress gateway can be reached")
	// ErrClosed is returned by the methods of a client or server after Close.
	ErrClosed = errors.New("the tunnel was closed")
	// ErrHeaderSize is returned by Client.Open for a header longer than MaxHeader.
	ErrHeaderSize = fmt.Errorf("the header of a stream is longer than %d bytes", MaxHeader)
	// ErrDatagramSize is returned by Stream.Write for a datagram longer than
	// MaxDatagram.
	ErrDatagramSize = fmt.Errorf("a datagram is longer than %d bytes", MaxDatagram)
	// ErrVersion is in the errors of connections whose ends know no common
	// version of the protocol.
	ErrVersion = errors.New("the two ends speak different versions of the tunnel (this one speaks " + protocol + "): update the older one")
	// ErrProtocol is in the errors of connections that were closed because the
	// peer broke the rules of the protocol.
	ErrProtocol = errors.New("the peer broke the tunnel's protocol")

	errSilent   = errors.New("the peer fell silent")
	errNoPong   = errors.New("the peer sends but does not answer")
	errGone     = errors.New("the peer closed the connection")
	errRetired  = errors.New("the gateway is not in the list any more")
	errFull     = errors.New("the connection carries as many streams as it may")
	errWritten  = errors.New("write after CloseWrite")
	errCutOff   = errors.New("this node was cut off")
	errTooMany  = fmt.Errorf("this node has %d connections already", maxPeerConns)
	errStopping = errors.New("the gateway shuts down")
)

// ResetError says that a stream was reset, by either end, or that its
// connection broke (EndGateway).
type ResetError struct {
	Reason deception.EndReason
}

func (e *ResetError) Error() string {
	switch e.Reason {
	case deception.EndGateway:
		return "the connection to the gateway broke"
	case deception.EndOverload:
		return "the stream was reset: a limit was reached (overload)"
	}
	return "the stream was reset: " + e.Reason.String()
}

// violation makes an error that is ErrProtocol and says what the peer did.
func violation(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}
