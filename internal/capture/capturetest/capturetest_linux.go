// Package capturetest keeps what was fed, and has Suricata say what it sees in it.
package capturetest

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
	"decoynet/internal/suricata/suricatatest"
)

const Patience = 60 * time.Second

// Recordings are a feed and a recorder that keep all they are given.
type Recordings struct {
	mu      sync.Mutex // guards the rest
	pcap    []byte
	frames  int
	known   map[deception.SessionID]deception.Session
	started map[deception.SessionID]deception.Session
	ended   map[deception.SessionID]deception.Session
}

func NewRecordings() *Recordings {
	r := &Recordings{
		known:   map[deception.SessionID]deception.Session{},
		started: map[deception.SessionID]deception.Session{}, ended: map[deception.SessionID]deception.Session{},
	}
	r.pcap = make([]byte, 0, 128<<20) // growing takes time, in which packets come
	for _, v := range []uint32{0xa1b23c4d, 4<<16 | 2, 0, 0, 262144, 1} {
		r.pcap = binary.LittleEndian.AppendUint32(r.pcap, v)
	}
	return r
}

func (r *Recordings) Frame(s *deception.Session, side int, at int64, ip []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	intruder, decoy := frame.Addresses(s.ID.Key())
	source, destination := intruder, decoy
	if side == 1 {
		source, destination = decoy, intruder
	}
	kind := []byte{0x08, 0x00}
	if ip[0]>>4 == 6 {
		kind = []byte{0x86, 0xdd}
	}
	size := uint32(14 + len(ip))
	for _, v := range []uint32{uint32(at / 1e9), uint32(at % 1e9), size, size} {
		r.pcap = binary.LittleEndian.AppendUint32(r.pcap, v)
	}
	r.pcap = append(append(append(append(r.pcap, destination[:]...), source[:]...), kind...), ip...)
	r.frames++
}

// Done implements capture.Feed.
func (r *Recordings) Done(deception.SessionKey) {}

func (r *Recordings) Know(s *deception.Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[s.ID] = *s
}

func (r *Recordings) Started(s *deception.Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.started[s.ID] = *s
}

func (r *Recordings) Ended(s *deception.Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended[s.ID] = *s
}

// Over returns the sessions that have ended.
func (r *Recordings) Over() []deception.Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []deception.Session
	for _, s := range r.ended {
		out = append(out, s)
	}
	return out
}

// Settled tells whether every session of TCP that is known has ended.
func (r *Recordings) Settled() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, s := range r.known {
		if _, ok := r.ended[id]; !ok && s.Transport == deception.TCP {
			return false
		}
	}
	return true
}

// Write writes what was fed as a pcap file.
func (r *Recordings) Write(t testing.TB, dir string) string {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	path := filepath.Join(dir, "fed.pcap")
	if err := os.WriteFile(path, r.pcap, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// SentAgain are the anomalies of what a sender sends again on a busy machine.
var SentAgain = map[string]bool{"stream.pkt_spurious_retransmission": true, "stream.est_pkt_before_last_ack": true, "stream.pkt_retransmission": true}

// Overtaken are the anomalies of an acknowledgement that a later one has overtaken, as
// where a processor is interrupted that was to send it: a real packet is shown as it is.
var Overtaken = map[string]bool{"stream.pkt_invalid_ack": true, "stream.est_invalid_ack": true}

// Event is a record of Suricata's.
type Event struct {
	Kind    string         `json:"event_type"`
	HTTP    map[string]any `json:"http"`
	File    map[string]any `json:"fileinfo"`
	Anomaly struct {
		Event string `json:"event"`
	} `json:"anomaly"`
	Ether struct {
		Source      string `json:"src_mac"`
		Destination string `json:"dest_mac"`
	} `json:"ether"`
	Source          string `json:"src_ip"`
	Destination     string `json:"dest_ip"`
	SourcePort      int    `json:"src_port"`
	DestinationPort int    `json:"dest_port"`
	Line            string `json:"-"`
}

// Suricata reads a capture. Unless it was made where checksums are left to a card,
// every packet's is checked.
func Suricata(t testing.TB, path string, offloaded bool) []Event {
	t.Helper()
	settings := []string{"stream.reassembly.depth=0"}
	for _, of := range []string{"request", "response"} {
		settings = append(settings, "app-layer.protocols.http.libhtp.default-config."+of+"-body-limit=0")
	}
	if offloaded {
		settings = append(settings, "stream.checksum-validation=no")
	}
	var out []Event
	for _, line := range suricatatest.New(t, "", settings...).Read(t, path) {
		e := Event{Line: string(line)}
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		out = append(out, e)
	}
	return out
}

// Records are the application's, without times and numbers of packets.
func Records(events []Event) []string {
	var out []string
	for _, e := range events {
		what := e.HTTP
		if e.Kind == "fileinfo" {
			what = map[string]any{"file": e.File["sha256"], "size": e.File["size"], "gaps": e.File["gaps"], "state": e.File["state"]}
		}
		if e.Kind == "http" || e.Kind == "fileinfo" {
			text, _ := json.Marshal(what) // of what was JSON
			out = append(out, fmt.Sprintf("%s %s:%d %s:%d %s", e.Kind, e.Source, e.SourcePort, e.Destination, e.DestinationPort, text))
		}
	}
	slices.Sort(out)
	return out
}

// SessionOf returns the session in the MAC addresses of an event.
func SessionOf(t testing.TB, e Event) (deception.SessionID, bool) {
	t.Helper()
	a, err1 := frame.ParseMAC(e.Ether.Source)
	b, err2 := frame.ParseMAC(e.Ether.Destination)
	if err1 != nil || err2 != nil {
		t.Fatalf("no MAC addresses in %s", e.Line)
	}
	k, reversed, ok := frame.Key(a, b)
	if !ok {
		t.Fatalf("no session in %s", e.Line)
	}
	return k.ID(), reversed
}

// Eventually waits until the condition holds.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(Patience); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", Patience, what)
		}
	}
}
