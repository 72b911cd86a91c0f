package tunnel

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"

	"decoynet/deception"
)

// A connection is a sequence of frames in both directions. Numbers are big
// endian.
//
//	0      1      2             4                           8
//	| type | flags | length      | stream                    | length bytes ...
//
// Stream identifiers are a slot (lower half) and the number of its uses so far
// (upper half): slots are used again, so that identifiers never run out, and what
// arrives late for an earlier use is told from the present one. Only the client
// opens streams. Stream 0 of hello, ping, pong, message and bye is the
// connection itself.
//
//	hello    version (2), streams at most (4), first window (4); more may follow
//	open     header of the stream; flag datagrams
//	data     at least one byte, or a piece of a datagram: flag more if not its last
//	fin      nothing follows in this direction
//	reset    reason (1); the stream is over in both directions
//	window   bytes (4) that may be sent in addition
//	ping     anything (8)
//	pong     what the ping held (8)
//	message  instance of the server (8), number (8), text; flag more if not its last piece
//	bye      why the connection is closed now, as text
//
// A frame fits one TLS record (RFC 8446, section 5.1: 2^14 bytes), and bulk data
// is cut so that it fills one: the reader gets it whole and hands the buffer on.
const (
	headerSize = 8
	maxFrame   = 1 << 14
	maxPayload = maxFrame - headerSize
)

type frameType uint8

const (
	frameHello frameType = 1 + iota
	frameOpen
	frameData
	frameFIN
	frameReset
	frameWindow
	framePing
	framePong
	frameMessage
	frameBye
)

const (
	flagDatagrams = 1 // of open
	flagMore      = 2 // of data and message
)

const (
	helloVersion  = 1
	helloSize     = 10
	messagePrefix = 16
	maxBye        = 512
)

// shapes says for each type which flags it may carry, how long its payload is,
// and whether it belongs to a stream.
var shapes = [...]struct {
	name     string
	flags    uint8
	min, max int
	stream   bool
}{
	frameHello:   {"hello", 0, helloSize, 256, false},
	frameOpen:    {"open", flagDatagrams, 0, MaxHeader, true},
	frameData:    {"data", flagMore, 0, maxPayload, true},
	frameFIN:     {"fin", 0, 0, 0, true},
	frameReset:   {"reset", 0, 1, 1, true},
	frameWindow:  {"window", 0, 4, 4, true},
	framePing:    {"ping", 0, 8, 8, false},
	framePong:    {"pong", 0, 8, 8, false},
	frameMessage: {"message", flagMore, messagePrefix, maxPayload, false},
	frameBye:     {"bye", 0, 0, maxBye, false},
}

func (t frameType) String() string {
	if int(t) < len(shapes) && shapes[t].name != "" {
		return shapes[t].name
	}
	return fmt.Sprintf("frame type %d", uint8(t))
}

// frame is a frame as it was read. The payload is good until the next one is
// read.
type frame struct {
	kind    frameType
	flags   uint8
	stream  uint32
	payload []byte
}

// putHeader writes a frame's header to the first headerSize bytes of b.
func putHeader(b []byte, kind frameType, flags uint8, stream uint32, length int) {
	b[0], b[1] = byte(kind), flags
	binary.BigEndian.PutUint16(b[2:], uint16(length))
	binary.BigEndian.PutUint32(b[4:], stream)
}

// scanner reads frames. It asks its reader for what is there, never for more
// than a frame needs, and holds one frame at most.
type scanner struct {
	r   io.Reader
	buf *buffer
}

func newScanner(r io.Reader) *scanner { return &scanner{r: r, buf: getBuffer(mediumBuffer)} }

// next reads a frame. It returns ErrProtocol for what cannot be one before it
// waits for the payload, io.EOF for an end between frames and
// io.ErrUnexpectedEOF for one within.
func (s *scanner) next() (frame, error) {
	if err := s.fill(headerSize); err != nil {
		return frame{}, err
	}
	h := s.buf.data()
	f := frame{kind: frameType(h[0]), flags: h[1], stream: binary.BigEndian.Uint32(h[4:])}
	length := int(binary.BigEndian.Uint16(h[2:]))
	if int(f.kind) >= len(shapes) || shapes[f.kind].name == "" {
		return f, violation("unknown %v", f.kind)
	}
	shape := &shapes[f.kind]
	switch {
	case length < shape.min || length > shape.max:
		return f, violation("%v frame of %d bytes", f.kind, length)
	case f.flags&^shape.flags != 0:
		return f, violation("%v frame with flags %#x", f.kind, f.flags)
	case !shape.stream && f.stream != 0:
		return f, violation("%v frame for stream %#x", f.kind, f.stream)
	}
	if err := s.fill(headerSize + length); err != nil {
		return f, err
	}
	f.payload = s.buf.data()[headerSize : headerSize+length]
	s.buf.r += headerSize + length
	return f, nil
}

// fill reads until n bytes are there.
func (s *scanner) fill(n int) error {
	b := s.buf
	if b.len() >= n {
		return nil
	}
	if b.len() == 0 {
		b.r, b.w = 0, 0
	}
	if len(b.b)-b.r < n {
		s.move(n)
		b = s.buf
	}
	for b.len() < n {
		got, err := s.r.Read(b.b[b.w:])
		b.w += got
		if b.len() >= n {
			return nil
		}
		if err == io.EOF && b.len() > 0 {
			return io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// move takes what is left over to the front of a buffer that has room for n
// bytes.
func (s *scanner) move(n int) {
	old := s.buf
	if len(old.b) >= n {
		old.w = copy(old.b, old.data())
		old.r = 0
		return
	}
	s.buf = getBuffer(n)
	s.buf.w = copy(s.buf.b, old.data())
	old.free()
}

// detach gives the buffer that holds the payload away, where the payload is
// most of it; else nil. The scanner goes on with another buffer.
func (s *scanner) detach(payload []byte) *buffer {
	b := s.buf
	if len(payload) < len(b.b)/2 || len(payload) < mediumBuffer {
		return nil
	}
	end := b.r
	s.buf = getBuffer(largeBuffer)
	s.buf.w = copy(s.buf.b, b.b[end:b.w])
	b.r, b.w = end-len(payload), end
	return b
}

// close gives the scanner's buffer back.
func (s *scanner) close() {
	if s.buf != nil {
		s.buf.free()
		s.buf = nil
	}
}

// hello is what the ends tell each other first.
type hello struct {
	version uint16
	streams uint32 // at once, at most
	window  uint32 // bytes that may be sent to a new stream
}

func (h hello) append(b []byte) []byte {
	b = append(b, make([]byte, headerSize)...)
	putHeader(b[len(b)-headerSize:], frameHello, 0, 0, helloSize)
	b = binary.BigEndian.AppendUint16(b, h.version)
	b = binary.BigEndian.AppendUint32(b, h.streams)
	return binary.BigEndian.AppendUint32(b, h.window)
}

// parseHello accepts hellos that are longer than it knows: within one version of
// the protocol things may be added.
func parseHello(f frame) (hello, error) {
	if f.kind == frameBye {
		return hello{}, byeError(f.payload)
	}
	if f.kind != frameHello {
		return hello{}, violation("%v frame before the hello", f.kind)
	}
	h := hello{
		version: binary.BigEndian.Uint16(f.payload),
		streams: binary.BigEndian.Uint32(f.payload[2:]),
		window:  binary.BigEndian.Uint32(f.payload[6:]),
	}
	if h.version != helloVersion {
		return h, fmt.Errorf("%w: its hello has version %d", ErrVersion, h.version)
	}
	if h.streams == 0 || h.window == 0 || h.window > maxWindow {
		return h, violation("hello with %d streams and a window of %d bytes", h.streams, h.window)
	}
	h.streams = min(h.streams, MaxStreams)
	return h, nil
}

// byeError makes an error of the text in a bye frame. The text is the peer's: it
// may hold anything.
func byeError(text []byte) error {
	if len(text) == 0 {
		return errGone
	}
	return fmt.Errorf("%w: it says %q", errGone, text)
}

// pingPayload holds the time of sending; only the sender reads it again.
func pingPayload(at time.Duration) (p [8]byte) {
	binary.BigEndian.PutUint64(p[:], uint64(at))
	return p
}

func pongTime(p []byte) time.Duration { return time.Duration(binary.BigEndian.Uint64(p)) }

// resetReason is the reason in a reset frame. Reasons that later versions add
// are carried on as they are.
func resetReason(f frame) (deception.EndReason, error) {
	r := deception.EndReason(f.payload[0])
	if r == deception.EndNone {
		return r, violation("reset frame without a reason")
	}
	return r, nil
}
