package wire

import "golang.org/x/sys/unix"

const (
	// blockBytes is the unit in which the kernel hands the ring over: about 900
	// frames. Larger ones would mean fewer wake-ups under load, but also coarser
	// room.
	blockBytes = 128 << 10
	// batch is how many frames Handle is given at most.
	batch = 512
)

// Tap is an open ring. Send and Stats may be used from several goroutines.
type Tap struct {
	ring
	handle func([]Frame)
	frames []Frame
}

// Open begins to listen. Nothing is heard that came before. The ring lives in
// the namespace until Close, whatever becomes of c.NS.
//
// A link that goes down and comes up again is heard again; one that was removed
// is not, even if another takes its name: open a new Tap then.
func Open(c Config) (*Tap, error) {
	kinds := c.Kinds
	if kinds == 0 {
		kinds = AllKinds
	}
	filter, err := compile(kinds)
	if err != nil {
		return nil, err
	}
	size := c.RingBytes
	if size <= 0 {
		size = DefaultRing
	}
	t := &Tap{handle: c.Handle, frames: make([]Frame, 0, batch)}
	err = t.open(&ringConfig{
		ns: c.NS, link: c.Link, filter: filter, bytes: size, block: blockBytes,
		options: ignoreOutgoing, each: t.take, flush: t.deliver,
	})
	if err != nil {
		return nil, err
	}
	return t, nil
}

// ignoreOutgoing spares the kernel the filter for what is sent. Before Linux 4.20
// the filter has to do it alone.
func ignoreOutgoing(fd int) error {
	_ = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	return nil
}

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
	f.Link = int(address(b).Ifindex)
}

func (t *Tap) deliver() {
	if len(t.frames) > 0 {
		t.handle(t.frames)
		t.frames = t.frames[:0]
	}
}
