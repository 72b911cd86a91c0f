package script

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// segmentOf is a TCP segment of the test's one flow.
type segmentOf struct {
	server        bool
	seq, ack      uint32
	syn, fin, rst bool
	text          string
}

// capture writes the segments to a file, a millisecond apart.
func capture(t *testing.T, segments []segmentOf) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "x.pcap")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	w := pcapgo.NewWriter(file)
	if err := w.WriteFileHeader(1<<16, layers.LinkTypeRaw); err != nil {
		t.Fatal(err)
	}
	for i, s := range segments {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolTCP, SrcIP: []byte{10, 0, 0, 1}, DstIP: []byte{10, 0, 0, 2}}
		tcp := &layers.TCP{SrcPort: 1234, DstPort: 80, Seq: s.seq, Ack: s.ack, ACK: s.ack != 0, SYN: s.syn, FIN: s.fin, RST: s.rst, Window: 1000}
		if s.server {
			ip.SrcIP, ip.DstIP = ip.DstIP, ip.SrcIP
			tcp.SrcPort, tcp.DstPort = tcp.DstPort, tcp.SrcPort
		}
		b := gopacket.NewSerializeBuffer()
		err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true}, ip, tcp, gopacket.Payload(s.text))
		if err == nil {
			info := gopacket.CaptureInfo{Timestamp: time.UnixMilli(int64(i)), CaptureLength: len(b.Bytes()), Length: len(b.Bytes())}
			err = w.WritePacket(info, b.Bytes())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// said writes a script down: > and < for what the client and the server say.
func said(c *Capture) string {
	var out string
	for _, s := range c.Steps {
		mark := [2]string{">", "<"}[s.Side]
		switch s.Kind {
		case Open:
			out += "open "
		case Data:
			out += mark + string(s.Data) + " "
		case Fin:
			out += mark + "FIN "
		case Reset:
			out += mark + "RST "
		}
	}
	return out
}

func TestStreams(t *testing.T) {
	hello := []segmentOf{{seq: 99, syn: true}, {server: true, seq: 499, ack: 100, syn: true}, {seq: 100, ack: 500}}
	for name, test := range map[string]struct {
		rest      []segmentOf
		want, why string
	}{
		"pieces are kept apart": {
			rest: []segmentOf{{seq: 100, text: "ab"}, {seq: 102, text: "cd"}, {server: true, seq: 500, text: "x"}, {seq: 104, fin: true}, {server: true, seq: 501, fin: true}},
			want: "open >ab >cd <x >FIN <FIN ",
		},
		"out of order": {rest: []segmentOf{{seq: 102, text: "cd"}, {seq: 100, text: "ab"}}, want: "open >ab >cd "},
		"retransmitted, with more": {
			rest: []segmentOf{{seq: 100, text: "ab"}, {seq: 100, text: "ab"}, {seq: 100, text: "abc"}}, want: "open >ab >c ",
		},
		"the first wins":         {rest: []segmentOf{{seq: 100, text: "abcd"}, {seq: 102, text: "XYZ"}}, want: "open >abcd >Z "},
		"a FIN before its turn":  {rest: []segmentOf{{seq: 102, text: "cd", fin: true}, {seq: 100, text: "ab"}}, want: "open >ab >cd >FIN "},
		"a reset":                {rest: []segmentOf{{seq: 100, text: "a"}, {server: true, seq: 500, rst: true}, {seq: 101, text: "b"}}, want: "open >a <RST "},
		"a forged reset":         {rest: []segmentOf{{server: true, seq: 1 << 30, rst: true}, {seq: 100, text: "a"}}, want: "open >a "},
		"a gap":                  {rest: []segmentOf{{seq: 100, text: "a"}, {seq: 105, text: "b"}}, why: "the capture lacks bytes of it"},
		"a gap that is answered": {rest: []segmentOf{{seq: 100, text: "a"}, {server: true, seq: 500, ack: 150}}, why: "the capture lacks bytes of it"},
		"keep-alive":             {rest: []segmentOf{{seq: 100, text: "ab"}, {seq: 101, text: "x"}}, want: "open >ab "},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := Read(capture(t, append(append([]segmentOf{}, hello...), test.rest...)))
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Flows) != 1 || c.Flows[0].Why != test.why {
				t.Fatalf("flows %+v, want one with %q", c.Flows, test.why)
			}
			if diff := cmp.Diff(test.want, said(c)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestUnplayableFlows(t *testing.T) {
	for why, segments := range map[string][]segmentOf{
		"it starts in the middle":           {{seq: 100, ack: 500, text: "a"}},
		"its first SYN is missing":          {{server: true, seq: 499, ack: 100, syn: true}, {seq: 100, ack: 500, text: "a"}},
		"the server did not answer its SYN": {{seq: 99, syn: true}, {server: true, ack: 100, rst: true}},
	} {
		c, err := Read(capture(t, segments))
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Flows) != 1 || c.Flows[0].Why != why || len(c.Steps) != 0 || c.Playable() {
			t.Errorf("flows %+v and steps %+v, want one with %q and no steps", c.Flows, c.Steps, why)
		}
	}
}

func TestCutFindsPacketsOfTheirTime(t *testing.T) {
	recording := capture(t, []segmentOf{{seq: 99, syn: true}, {seq: 100, text: "a"}, {seq: 101, text: "b"}, {seq: 102, fin: true}, {seq: 103, text: "c"}})
	fed := []Fed{{
		Client: netip.MustParseAddrPort("10.0.0.1:1234"), Server: netip.MustParseAddrPort("10.0.0.2:80"), Open: [2]bool{true, true},
	}}
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first.pcap"), filepath.Join(dir, "second.pcap")
	foreign, err := Cut([]string{recording}, []Window{
		{Begin: time.UnixMilli(1), Path: first, Flows: fed},
		{Begin: time.UnixMilli(2), Path: second, Flows: fed},
	}, false)
	if err != nil || foreign != 1 {
		t.Fatalf("%d foreign packets, want the SYN; %v", foreign, err)
	}
	for path, want := range map[string]string{first: "a", second: "b"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		err = Packets(text, func(p Packet) error {
			got += string(p.Payload)
			return nil
		})
		if err != nil || got != want {
			t.Errorf("%s holds %q, want %q; %v", filepath.Base(path), got, want, err)
		}
	}
}
