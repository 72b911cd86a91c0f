package script

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"decoynet/deception"

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
	Until          time.Time // later packets are no part of it; zero: all are
}

// Cut writes the packets of each window, which are in the order of their begin, to
// its own file: those of its flows, from its begin until a later one has the same.
// It returns how many packets belong to no window.
func Cut(recordings []string, windows []Window) (foreign int, err error) {
	writers := make([]fileWriter, len(windows))
	type place struct {
		window int
		until  time.Time
	}
	of := map[tuple][]place{}
	for i, w := range windows {
		writers[i].path = w.Path
		for _, f := range w.Flows {
			for _, t := range []deception.Transport{deception.TCP, deception.UDP} {
				k := tupleOf(f.Client, f.Server, t)
				of[k] = append(of[k], place{i, f.Until})
			}
		}
	}
	sort := func(p Packet) error {
		found := place{window: -1}
		if t, ok := p.transport(); ok {
			for _, f := range of[tupleOf(p.Source, p.Destination, t)] {
				if !windows[f.window].Begin.After(p.Info.Timestamp) {
					found = f
				}
			}
		}
		switch {
		case found.window < 0:
			foreign++
			return nil
		case !found.until.IsZero() && p.Info.Timestamp.After(found.until):
			return nil
		}
		return writers[found.window].write(p)
	}
	for _, file := range recordings {
		text, readErr := os.ReadFile(file)
		if readErr != nil {
			return 0, fmt.Errorf("read the recording: %w", readErr)
		}
		if err = Packets(text, sort); err != nil {
			break
		}
	}
	for i := range writers {
		err = writers[i].close(err)
	}
	return foreign, err
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
