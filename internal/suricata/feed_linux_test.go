package suricata

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// feeder writes a pcap stream into a FIFO as the feed does: a header for each new
// reader, and heartbeats while nothing else happens.
type feeder struct {
	frames chan []byte
	stop   chan struct{}
	done   chan struct{}
	silent atomic.Bool
}

// pause keeps the FIFO open and writes nothing.
func (f *feeder) pause(on bool) { f.silent.Store(on) }

// feed starts a feeder that ends with the test.
func feed(t *testing.T, path string) *feeder {
	t.Helper()
	f := &feeder{frames: make(chan []byte, 1<<12), stop: make(chan struct{}), done: make(chan struct{})}
	go f.run(path)
	t.Cleanup(f.end)
	return f
}

func (f *feeder) end() {
	select {
	case <-f.stop:
	default:
		close(f.stop)
	}
	<-f.done
}

func (f *feeder) run(path string) {
	defer close(f.done)
	for {
		w, err := os.OpenFile(path, os.O_WRONLY|syscall.O_NONBLOCK, 0)
		if err == nil {
			f.serve(w)
			w.Close()
		}
		select {
		case <-f.stop:
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}

var heartbeat = append([]byte{2, 0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 2, 0x88, 0xb5}, make([]byte, 46)...)

// serve writes to one reader until it goes.
func (f *feeder) serve(w *os.File) {
	if _, err := w.Write(pcapHeader()); err != nil {
		return
	}
	for {
		frame := heartbeat
		select {
		case <-f.stop:
			return
		case frame = <-f.frames:
		case <-time.After(100 * time.Millisecond):
		}
		if f.silent.Load() {
			continue
		}
		// A reader that hangs is replaced within seconds; the test must not hang.
		_ = w.SetWriteDeadline(time.Now().Add(time.Second))
		if _, err := w.Write(record(frame)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
	}
}

func pcapHeader() []byte {
	b := binary.LittleEndian.AppendUint32(nil, 0xa1b23c4d) // nanoseconds
	b = binary.LittleEndian.AppendUint32(b, 2|4<<16)
	b = append(b, make([]byte, 8)...)
	b = binary.LittleEndian.AppendUint32(b, 1<<18)
	return binary.LittleEndian.AppendUint32(b, 1) // Ethernet
}

func record(frame []byte) []byte {
	now := time.Now().UnixNano()
	b := binary.LittleEndian.AppendUint32(nil, uint32(now/1e9))
	b = binary.LittleEndian.AppendUint32(b, uint32(now%1e9))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(frame)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(frame)))
	return append(b, frame...)
}

// say is what one side of a conversation sends at once; client tells which.
type say struct {
	client bool
	text   string
}

// conversation makes the frames of a whole TCP flow, from handshake to FIN.
func conversation(client, server netip.AddrPort, parts ...say) [][]byte {
	var frames [][]byte
	seq := map[bool]uint32{true: 1000, false: 5000}
	send := func(fromClient bool, flags byte, text string) {
		src, dst := client, server
		if !fromClient {
			src, dst = server, client
		}
		frames = append(frames, tcpFrame(src, dst, seq[fromClient], seq[!fromClient], flags, text, fromClient))
		seq[fromClient] += uint32(len(text))
		if flags&3 != 0 { // SYN and FIN count as a byte
			seq[fromClient]++
		}
	}
	const fin, syn, push, ack = 1, 2, 8, 16
	send(true, syn, "")
	send(false, syn|ack, "")
	send(true, ack, "")
	for _, p := range parts {
		for text := p.text; text != ""; {
			n := min(len(text), 1400)
			send(p.client, push|ack, text[:n])
			send(!p.client, ack, "")
			text = text[n:]
		}
	}
	send(true, fin|ack, "")
	send(false, fin|ack, "")
	send(true, ack, "")
	return frames
}

func tcpFrame(src, dst netip.AddrPort, seq, ack uint32, flags byte, text string, fromClient bool) []byte {
	from, to := []byte{2, 1, 2, 3, 4, 5}, []byte{6, 1, 2, 3, 4, 5}
	if !fromClient {
		from, to = to, from
	}
	tcp := binary.BigEndian.AppendUint16(nil, src.Port())
	tcp = binary.BigEndian.AppendUint16(tcp, dst.Port())
	tcp = binary.BigEndian.AppendUint32(tcp, seq)
	if flags&16 == 0 {
		ack = 0
	}
	tcp = binary.BigEndian.AppendUint32(tcp, ack)
	tcp = append(tcp, 5<<4, flags, 0xff, 0xff, 0, 0, 0, 0)
	tcp = append(tcp, text...)
	return ipFrame(from, to, src.Addr(), dst.Addr(), 6, tcp)
}

// datagram makes the frame of one UDP datagram.
func datagram(src, dst netip.AddrPort, text string, fromClient bool) []byte {
	from, to := []byte{2, 1, 2, 3, 4, 5}, []byte{6, 1, 2, 3, 4, 5}
	if !fromClient {
		from, to = to, from
	}
	udp := binary.BigEndian.AppendUint16(nil, src.Port())
	udp = binary.BigEndian.AppendUint16(udp, dst.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(text)))
	udp = append(udp, 0, 0)
	return ipFrame(from, to, src.Addr(), dst.Addr(), 17, append(udp, text...))
}

func ipFrame(from, to []byte, src, dst netip.Addr, protocol byte, payload []byte) []byte {
	frame := append(append([]byte{}, to...), from...)
	frame = append(frame, 8, 0)
	ip := []byte{0x45, 0}
	ip = binary.BigEndian.AppendUint16(ip, uint16(20+len(payload)))
	ip = append(ip, 0, 0, 0x40, 0, 64, protocol, 0, 0)
	s, d := src.As4(), dst.As4()
	ip = append(append(ip, s[:]...), d[:]...)
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum>>16+sum&0xffff))
	return append(append(frame, ip...), payload...)
}

// addresses makes a client and a server that no other name has.
func addresses(name string, port uint16) (client, server netip.AddrPort) {
	n := crc32.ChecksumIEEE([]byte(name))
	client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}), uint16(n>>16)|0x8000)
	return client, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, 0, 7}), port)
}

// event is what the tests read of one of Suricata's events.
type event struct {
	Type        string `json:"event_type"`
	Source      string `json:"src_ip"`
	Destination string `json:"dest_ip"`
	App         string `json:"app_proto"`
	Ether       struct {
		Source string `json:"src_mac"`
	} `json:"ether"`
	Community string `json:"community_id"`
	Alert     struct {
		SID       uint32 `json:"signature_id"`
		Signature string `json:"signature"`
		Category  string `json:"category"`
		Severity  int    `json:"severity"`
	} `json:"alert"`
	TLS map[string]any `json:"tls"`
}

// ToClient tells whether the decoy sent what the event is about.
func (e *event) ToClient() bool { return strings.HasPrefix(e.Source, "10.9.") }

// events reads a file of events.
func events(t *testing.T, path string) []event {
	t.Helper()
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []event
	scan := bufio.NewScanner(f)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		var e event
		if err := json.Unmarshal(scan.Bytes(), &e); err != nil {
			continue // the last line may be half written
		}
		out = append(out, e)
	}
	return out
}

// until waits for a condition.
func until(t *testing.T, limit time.Duration, what string, met func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if met() {
			return
		}
	}
	t.Fatalf("after %v still not: %s", limit, what)
}
