package feed

import (
	"fmt"
	"strings"
	"testing"

	"decoynet/deception"
	"decoynet/internal/frame"
)

// TestDepth: what is beyond the depth is left out, and the flow goes on and ends
// with the right sequence numbers, which Suricata finds in order.
func TestDepth(t *testing.T) {
	const depth = 64 << 10
	for _, c := range []struct {
		name  string
		left  uint64 // bytes of the server that are left out
		end   deception.EndReason
		after string // what the client still sends
	}{
		{"little is left out", 1000, deception.EndClientClosed, request},
		{"more than a window is left out", 3 << 30, deception.EndServiceClosed, request},
		{"more than all sequence numbers are left out", 5<<32 + 12345, deception.EndServiceClosed, ""},
		{"and it is reset by the client", 2 << 30, deception.EndClientReset, request},
		{"and it is reset by the service", 40 << 20, deception.EndServiceReset, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			sensor, out := newSensor(t, httpRules), newPcapFile(t)
			f := New(Config{Lanes: 1, Depth: depth})
			f.Add("file", out)
			s := session(deception.TCP, "192.0.2.7:40001", "198.51.100.4:80")
			p := begin(f, s).client(request)
			p.server("HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\nhunter2")
			for p.w.Wants(Server) {
				p.server(strings.Repeat("z", 10_000))
			}
			if p.bytes[Server] < depth || p.bytes[Server] > depth+10_000 {
				t.Errorf("%d bytes were wanted, want %d", p.bytes[Server], depth)
			}
			fed := p.bytes[Server]
			p.server("left out")
			p.bytes[Server] += c.left
			if c.after != "" {
				p.client(c.after)
			}
			p.end(c.end)
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			noEvents(t, sensor.read(t, out.file.Name()))
			if n := sensor.alerts(t, 2, s.ID); n != 1 {
				t.Errorf("%d alerts of the body, want 1", n)
			}
			var got, first, last uint64
			for _, line := range tshark(t, out.file.Name(), "tcp.srcport == 80", "tcp.len", "tcp.seq_raw", "tcp.flags") {
				var length, seq, flags uint64
				if _, err := fmt.Sscanf(line, "%d\t%d\t%v", &length, &seq, &flags); err != nil {
					t.Fatalf("tshark says %q: %v", line, err)
				}
				got += length
				switch {
				case flags&frame.SYN != 0:
					first = seq
				case flags&(frame.FIN|frame.RST) != 0 && last == 0:
					last = seq
				}
			}
			if got != fed {
				t.Errorf("%d bytes are in the frames, want %d", got, fed)
			}
			if d := uint32(last - first); d != uint32(p.bytes[Server]+1) {
				t.Errorf("it ends %d after its beginning, want %d", d, uint32(p.bytes[Server]+1))
			}
		})
	}
}

// TestDepthChanges: what was left out of a flow is not passed over when the depth is
// raised, as if what comes then followed what was fed.
func TestDepthChanges(t *testing.T) {
	f := New(Config{Lanes: 1, Depth: 10})
	defer f.Close()
	out := &watched{}
	f.Add("out", out)
	before := tcpFlow(f, "4000").server("0123456789").server("left out")
	f.SetDepth(0)
	before.server("behind a hole").end(deception.EndClientClosed)
	tcpFlow(f, "4001").client("0123456789").client("and all the rest").end(deception.EndClientClosed)
	payload := func(from uint16) (n int) {
		for _, x := range out.all() {
			if x.from == from {
				n += x.payload
			}
		}
		return n
	}
	waitFor(t, "the second flow is shown whole", func() bool { return payload(4001) == len("0123456789and all the rest") })
	if n := payload(80); n != 10 {
		t.Errorf("%d bytes of the first flow are shown, want the 10 before the hole", n)
	}
}
