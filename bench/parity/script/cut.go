package script

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"

	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// Addresses gives a flow's addresses on the wire.
type Addresses func(*Flow) (client, server netip.AddrPort)

// Original writes a capture as it is, but for the addresses that its flows could
// not have on the wire.
func (c *Capture) Original(path string, onWire Addresses) error {
	text, err := os.ReadFile(c.Path)
	if err != nil {
		return fmt.Errorf("read the capture: %w", err)
	}
	changed := map[tuple]*Flow{}
	for i := range c.Flows {
		f := &c.Flows[i]
		if client, server := onWire(f); client != f.Client || server != f.Server {
			changed[tupleOf(f.Client, f.Server, f.Transport)] = f
		}
	}
	w := fileWriter{path: path}
	err = Packets(text, func(p Packet) error {
		if t, ok := p.transport(); ok {
			if f := changed[tupleOf(p.Source, p.Destination, t)]; f != nil {
				client, server := onWire(f)
				if p.Source != f.Client {
					client, server = server, client
				}
				p.readdress(client.Addr(), server.Addr())
			}
		}
		return w.write(p)
	})
	return w.close(err)
}

func (p *Packet) transport() (deception.Transport, bool) {
	switch {
	case p.TCP != nil:
		return deception.TCP, true
	case p.UDP != nil:
		return deception.UDP, true
	}
	return 0, false
}

// readdress puts other addresses of the same family into the IP header. Checksums
// stay as they were: nobody looks at them (-k none).
func (p *Packet) readdress(source, destination netip.Addr) {
	at := p.IP + 12
	if source.Is6() {
		at = p.IP + 8
	}
	n := copy(p.Data[at:], source.AsSlice())
	copy(p.Data[at+n:], destination.AsSlice())
}

// Window is when a capture was played, and as which flows.
type Window struct {
	Begin time.Time
	Path  string // where its packets go
	Flows []Fed
}

// Fed is a flow as it is on the wire.
type Fed struct {
	Client, Server netip.AddrPort
	// Open are the sides that the capture leaves open. From what closes them on, a
	// packet is no part of the flow.
	Open [2]bool
}

// Cut writes the packets of each window, which are in the order of their begin, to
// its own file. sessions says that the frames' MAC addresses hold the session's key,
// as those of a feed do. It returns how many packets belong to no window.
func Cut(recordings []string, windows []Window, sessions bool) (foreign int, err error) {
	c := cutter{windows: windows, sessions: sessions, writers: make([]fileWriter, len(windows)), flows: map[tuple][]*place{}}
	for i, w := range windows {
		c.writers[i].path = w.Path
		for _, f := range w.Flows {
			for _, t := range []deception.Transport{deception.TCP, deception.UDP} {
				k := tupleOf(f.Client, f.Server, t)
				c.flows[k] = append(c.flows[k], &place{window: i, flow: f})
			}
		}
	}
	for _, file := range recordings {
		text, err := os.ReadFile(file)
		if err != nil {
			return 0, fmt.Errorf("read the recording: %w", err)
		}
		if err := Packets(text, c.packet); err != nil {
			return 0, err
		}
	}
	for i := range c.writers {
		err = c.writers[i].close(err)
	}
	return c.foreign, err
}

type cutter struct {
	windows  []Window
	sessions bool
	writers  []fileWriter
	flows    map[tuple][]*place // in the order in which they were played
	foreign  int
}

// place is a flow of a window.
type place struct {
	window int
	flow   Fed
	key    deception.SessionKey // of the session that it turned out to be
	keyed  bool
	over   bool // closed, though the capture leaves it open
}

func (c *cutter) packet(p Packet) error {
	t, ok := p.transport()
	var at *place
	if ok {
		at = c.find(p, c.flows[tupleOf(p.Source, p.Destination, t)])
	}
	if at == nil {
		c.foreign++
		return nil
	}
	side := Client
	if p.Source == at.flow.Server {
		side = Server
	}
	if p.TCP != nil && (p.TCP.FIN || p.TCP.RST) && at.flow.Open[side] {
		at.over = true
	}
	if at.over {
		return nil
	}
	return c.writers[at.window].write(p)
}

// find returns which of the flows with its addresses a packet is of. In a feed the
// session says so: each that is new is the next that was played, whatever times its
// packets were given. Elsewhere it is the latest that had begun.
func (c *cutter) find(p Packet, flows []*place) *place {
	key, keyed := p.session()
	keyed = keyed && c.sessions
	var found *place
	for _, f := range flows {
		switch {
		case keyed && f.keyed && f.key == key:
			return f
		case keyed && !f.keyed:
			f.key, f.keyed = key, true
			return f
		case !keyed && !c.windows[f.window].Begin.After(p.Info.Timestamp):
			found = f
		}
	}
	return found
}

// session returns the key of the session that is in the packet's MAC addresses.
func (p *Packet) session() (deception.SessionKey, bool) {
	if p.Link != layers.LinkTypeEthernet || len(p.Data) < 12 {
		return deception.SessionKey{}, false
	}
	key, _, ok := frame.Key(frame.MAC(p.Data[:6]), frame.MAC(p.Data[6:12]))
	return key, ok
}

// fileWriter writes a capture file, at its end only: many are written at a time.
type fileWriter struct {
	path string
	text bytes.Buffer
	pcap *pcapgo.Writer
}

func (w *fileWriter) write(p Packet) error {
	if w.pcap == nil {
		if err := w.begin(p.Link); err != nil {
			return err
		}
	}
	if err := w.pcap.WritePacket(p.Info, p.Data); err != nil {
		return fmt.Errorf("write %s: %w", w.path, err)
	}
	return nil
}

func (w *fileWriter) begin(link layers.LinkType) error {
	w.pcap = pcapgo.NewWriterNanos(&w.text)
	if err := w.pcap.WriteFileHeader(1<<18, link); err != nil {
		return fmt.Errorf("begin %s: %w", w.path, err)
	}
	return nil
}

// close writes the file unless something went wrong before. One without packets
// is a capture all the same.
func (w *fileWriter) close(err error) error {
	if err == nil && w.pcap == nil {
		err = w.begin(layers.LinkTypeEthernet)
	}
	if err == nil {
		err = os.MkdirAll(filepath.Dir(w.path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(w.path, w.text.Bytes(), 0o644)
	}
	return err
}
