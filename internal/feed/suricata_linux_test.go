package feed

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
	"decoynet/internal/suricata/suricatatest"
)

// eventRules is the rule file of events of Suricata's own machinery; none of its
// rules may fire on what is fed.
var eventRules = []string{"stream-events.rules", "decoder-events.rules"}

type eve struct {
	Timestamp string `json:"timestamp"`
	Type      string `json:"event_type"`
	FlowID    uint64 `json:"flow_id"`
	Source    string `json:"src_ip"`
	Port      int    `json:"src_port"`
	VLAN      []int  `json:"vlan"`
	App       string `json:"app_proto"`
	Alert     struct {
		SID       int    `json:"signature_id"`
		Signature string `json:"signature"`
	} `json:"alert"`
	Ether struct {
		Source      string `json:"src_mac"`
		Destination string `json:"dest_mac"`
		// Flow records have lists.
		Sources      []string `json:"src_macs"`
		Destinations []string `json:"dest_macs"`
	} `json:"ether"`
	HTTP    map[string]any  `json:"http"`
	SSH     map[string]any  `json:"ssh"`
	FTP     map[string]any  `json:"ftp"`
	DNS     map[string]any  `json:"dns"`
	Anomaly map[string]any  `json:"anomaly"`
	Flow    map[string]any  `json:"flow"`
	TCP     map[string]any  `json:"tcp"`
	Raw     json.RawMessage `json:"-"`

	session deception.SessionID // by key, or that of another event of the flow
}

// key returns whose event it is, by the MAC addresses. What Suricata writes when
// it gives up waiting for a flow has none.
func (e *eve) key() (deception.SessionID, bool) {
	a, b := e.Ether.Source, e.Ether.Destination
	if len(e.Ether.Sources) > 0 && len(e.Ether.Destinations) > 0 {
		a, b = e.Ether.Sources[0], e.Ether.Destinations[0]
	}
	x, errA := frame.ParseMAC(a)
	y, errB := frame.ParseMAC(b)
	key, _, ok := frame.Key(x, y)
	return key.ID(), errA == nil && errB == nil && ok
}

// sensor is a Suricata that looks at what was fed.
type sensor struct{ *suricatatest.Suricata }

func newSensor(t testing.TB, rules string) *sensor {
	t.Helper()
	// The rules about its own machinery too, with those that are commented out for
	// being noisy.
	for _, name := range eventRules {
		b, err := os.ReadFile(filepath.Join("/etc/suricata/rules", name))
		if err != nil {
			t.Fatal(err)
		}
		rules += "\n" + strings.ReplaceAll(string(b), "\n#alert", "\nalert")
	}
	return &sensor{suricatatest.New(t, rules)}
}

// read runs Suricata over a file.
func (s *sensor) read(t testing.TB, file string) []eve {
	t.Helper()
	s.Read(t, file)
	return s.events(t)
}

// events returns what Suricata has written so far.
func (s *sensor) events(t testing.TB) []eve {
	t.Helper()
	var all []eve
	flows := map[uint64]deception.SessionID{}
	for _, line := range s.Events(t) {
		e := eve{Raw: line}
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		if id, ok := e.key(); ok {
			flows[e.FlowID] = id
		}
		all = append(all, e)
	}
	for i := range all {
		all[i].session = flows[all[i].FlowID]
	}
	return all
}

// noEvents fails the test where Suricata found something wrong with packets.
func noEvents(t testing.TB, events []eve) {
	t.Helper()
	for _, e := range events {
		if e.Type == "anomaly" || e.Type == "alert" && e.Alert.SID >= 2200000 && e.Alert.SID < 2220000 {
			t.Errorf("Suricata finds fault: %s", e.Raw)
		}
	}
}

// pcapFile is a Writer.
type pcapFile struct {
	file *os.File
	w    *bufio.Writer
	b    []byte
	last int64
	t    testing.TB
}

func newPcapFile(t testing.TB) *pcapFile {
	t.Helper()
	dir := os.Getenv("KEEP")
	if dir == "" {
		dir = t.TempDir()
	}
	f, err := os.Create(filepath.Join(dir, "feed.pcap"))
	if err != nil {
		t.Fatal(err)
	}
	p := &pcapFile{file: f, w: bufio.NewWriter(f), t: t}
	p.w.Write(frame.AppendFileHeader(nil))
	return p
}

func (p *pcapFile) Frame(at int64, b []byte) error {
	if at < p.last {
		p.t.Errorf("the time went back by %s", time.Duration(p.last-at))
	}
	p.last = at
	p.b = frame.AppendRecord(p.b[:0], at, b)
	_, err := p.w.Write(p.b)
	return err
}

func (p *pcapFile) Flush() error { return p.w.Flush() }
func (p *pcapFile) Close() error { return errors.Join(p.w.Flush(), p.file.Close()) }

// tshark returns the fields of the packets that match, a line each.
func tshark(t testing.TB, file, filter string, fields ...string) []string {
	t.Helper()
	args := []string{
		"-r", file, "-n", "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE",
		"-Y", filter, "-T", "fields",
	}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	var stderr bytes.Buffer
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "tshark", args...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, stderr.Bytes())
	}
	if len(bytes.TrimSpace(out)) == 0 {
		return nil
	}
	return strings.Split(strings.TrimRight(string(out), "\n"), "\n")
}

// noComplaint fails the test where tshark has anything to say about packets.
func noComplaint(t testing.TB, file string) {
	t.Helper()
	// A reset is worth a warning to it, and a nudge is a duplicate acknowledgement.
	const wrong = "_ws.expert.severity >= 6291456 && !tcp.flags.reset == 1 || tcp.analysis.flags && !tcp.analysis.duplicate_ack || tcp.checksum.status == 0 || udp.checksum.status == 0 || ip.checksum.status == 0 || _ws.malformed"
	for _, line := range tshark(t, file, wrong, "frame.number", "_ws.col.Info", "_ws.expert.message") {
		t.Errorf("tshark finds fault with frame %s", line)
	}
}

// script plays a flow: what was read from which side, in order.
type script struct {
	s     *deception.Session
	w     *Flow
	at    time.Time
	bytes [2]uint64
}

func session(transport deception.Transport, from, to string) *deception.Session {
	now := time.Now()
	return &deception.Session{
		ID: deception.NewSessionID(now), Start: now, Node: "n", Segment: "office", Transport: transport,
		Source: netip.MustParseAddrPort(from), Destination: netip.MustParseAddrPort(to),
	}
}

func begin(f *Feed, s *deception.Session) *script {
	return &script{s: s, w: f.Begin(s, int(s.ID[9])), at: s.Start}
}

func (p *script) step() time.Time {
	p.at = p.at.Add(2 * time.Millisecond)
	return p.at
}

func (p *script) client(text string) *script { return p.data(Client, text) }
func (p *script) server(text string) *script { return p.data(Server, text) }

func (p *script) data(side int, text string) *script {
	p.bytes[side] += uint64(len(text))
	p.w.Data(side, []byte(text), p.step())
	return p
}

func (p *script) fin(side int) *script {
	p.w.Fin(side, p.bytes[side], p.step())
	return p
}

func (p *script) end(reason deception.EndReason) {
	p.s.Reason, p.s.SourceBytes, p.s.DestinationBytes = reason, p.bytes[Client], p.bytes[Server]
	p.s.End = p.step()
	p.w.Close(p.s, p.at)
}
