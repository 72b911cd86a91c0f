package inspect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/archive"
	"decoynet/internal/frame"
	"decoynet/internal/kernel/netns/netnstest"
	"decoynet/internal/suricata"
)

// notes is a recorder.
type notes struct {
	mu       sync.Mutex // guards the rest
	full     bool
	findings []deception.Finding
	events   []deception.Event
}

func (n *notes) Finding(f *deception.Finding) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.findings = append(n.findings, *f)
}

func (n *notes) Room() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.full
}

func (n *notes) Event(e *deception.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events = append(n.events, *e)
}

func (n *notes) Started(*deception.Session) {}
func (n *notes) Ended(*deception.Session)   {}

func (n *notes) setFull(full bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.full = full
}

func (n *notes) found() []deception.Finding {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.findings)
}

func newInspector(t *testing.T) (*Inspector, *notes, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "inspect")
	n := &notes{}
	i := New(Config{
		Node: "gw", Dir: dir, Packets: filepath.Join(dir, "pcap"), Host: netnstest.New(t, "gw"), Lanes: 2, Recorder: n, Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := i.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return i, n, dir
}

func apply(t *testing.T, i *Inspector, want *deception.Inspect) {
	t.Helper()
	if err := i.Apply(t.Context(), &deception.State{Node: "gw", Inspect: want}); err != nil {
		t.Fatal(err)
	}
}

// relayed shows a flow as a relay would, and returns its session.
func relayed(i *Inspector, text string) *deception.Session {
	now := time.Now()
	s := &deception.Session{
		ID: deception.NewSessionID(now), Start: now, Node: "gw", Segment: "office", Transport: deception.TCP,
		Source: netip.MustParseAddrPort("192.0.2.66:40000"), Destination: netip.MustParseAddrPort("192.0.2.100:80"),
	}
	w := i.Feed().Begin(s, 0)
	w.Data(0, []byte(text), now)
	s.SourceBytes, s.End, s.Reason = uint64(len(text)), time.Now(), deception.EndClientClosed
	w.Close(s, s.End)
	return s
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// kept tells whether the packets of a session that hold a text are kept.
func kept(t *testing.T, dir string, s *deception.Session, text string) bool {
	var out bytes.Buffer
	_, err := archive.Extract(t.Context(), filepath.Join(dir, "pcap"), s.ID, s.Start, s.End, &out)
	return err == nil && bytes.Contains(out.Bytes(), []byte(text))
}

func TestOutputsComeAndGo(t *testing.T) {
	i, _, dir := newInspector(t)
	names := func() (out []string) {
		if st := i.Status(); st != nil {
			for _, o := range st.Feed.Outputs {
				out = append(out, o.Name)
			}
		}
		slices.Sort(out)
		return out
	}
	want := func(outputs ...string) {
		t.Helper()
		if got := names(); !slices.Equal(got, outputs) {
			t.Errorf("outputs %v, want %v", got, outputs)
		}
	}
	apply(t, i, nil)
	if i.Status() != nil || i.Feed().Begin(&deception.Session{}, 0) != nil {
		t.Error("something is shown where nothing is wanted")
	}
	packets := deception.PCAPLimits{MaxBytes: 1 << 20}
	apply(t, i, &deception.Inspect{PCAP: packets})
	want("pcap")
	before := relayed(i, "before the tap")
	apply(t, i, &deception.Inspect{PCAP: packets, Tap: "vtap1", FIFO: true})
	want("fifo", "pcap", "tap")
	if info, err := os.Stat(filepath.Join(dir, "feed.fifo")); err != nil || info.Mode().Type() != os.ModeNamedPipe {
		t.Errorf("the FIFO: %v, %v", info, err)
	}
	after := relayed(i, "with the tap")
	apply(t, i, &deception.Inspect{PCAP: packets, Tap: "vtap2"})
	want("pcap", "tap")
	if _, err := os.Stat(filepath.Join(dir, "feed.fifo")); err == nil {
		t.Error("the FIFO is left")
	}
	for text, s := range map[string]*deception.Session{"before the tap": before, "with the tap": after} {
		eventually(t, "packets of "+text, func() bool { return kept(t, dir, s, text) })
	}
	links := netnstest.Run(t, i.cfg.Host, "ip", "-br", "link")
	if strings.Contains(links, "vtap1") || !strings.Contains(links, "vtap2") {
		t.Errorf("links:\n%s", links)
	}
	apply(t, i, nil)
	if links = netnstest.Run(t, i.cfg.Host, "ip", "-br", "link"); strings.Contains(links, "vtap") {
		t.Errorf("links:\n%s", links)
	}
}

// A FIFO goes where its reader looks for it: another's Suricata, then ours, then
// another's again.
func TestReaderChanges(t *testing.T) {
	i, n, dir := newInspector(t)
	theirs, ours := filepath.Join(dir, "feed.fifo"), filepath.Join(dir, "suricata", "feed.fifo")
	there := func(path string) bool {
		info, err := os.Stat(path)
		return err == nil && info.Mode().Type() == os.ModeNamedPipe
	}
	external := &deception.Inspect{Suricata: deception.SuricataExternal, FIFO: true}
	apply(t, i, external)
	if !there(theirs) {
		t.Error("no FIFO for a Suricata of others")
	}
	apply(t, i, &deception.Inspect{Suricata: deception.SuricataManaged, FIFO: true})
	eventually(t, "Suricata runs", func() bool { return i.Status().Suricata.State == suricata.Running })
	if there(theirs) || !there(ours) {
		t.Error("the FIFO is not where our Suricata reads it")
	}
	s := relayed(i, "hello, are you a decoy?")
	eventually(t, "an alert of ours", func() bool {
		return slices.ContainsFunc(n.found(), func(f deception.Finding) bool { return f.Alert != nil && f.Session == s.ID })
	})
	apply(t, i, external)
	if !there(theirs) {
		t.Error("no FIFO for a Suricata of others, after ours")
	}
	eventually(t, "ours ends", func() bool {
		i.mu.Lock()
		defer i.mu.Unlock()
		return i.suricata.Status().State == suricata.Off
	})
}

// A file of events that was begun and is gone when reading goes on is told.
func TestMissedEventsAreTold(t *testing.T) {
	i, n, dir := newInspector(t)
	file := filepath.Join(dir, "eve.json")
	external := &deception.Inspect{Suricata: deception.SuricataExternal, EVE: file}
	apply(t, i, external)
	stats := func(text string) { // Suricata's word about itself, which is no finding
		if err := os.WriteFile(file, []byte(`{"timestamp":"2026-03-04T05:06:07.000000+0000","event_type":"stats","stats":{"x":"`+text+`"}}`+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	read := func() bool {
		e := i.Status().Events
		return e.LastError == "" && e.BehindBytes == 0 && e.Rotations == 0
	}
	stats("the first file")
	checkpoint := func() string { b, _ := os.ReadFile(filepath.Join(dir, "eve-external.checkpoint")); return string(b) }
	eventually(t, "the place noted", func() bool { return read() && !strings.Contains(checkpoint(), `"Offset":0`) })
	apply(t, i, &deception.Inspect{Suricata: deception.SuricataExternal})
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	stats("the second file")
	apply(t, i, external)
	eventually(t, "the status says so", func() bool { return i.Status().Events.Missed == 1 })
	n.mu.Lock()
	defer n.mu.Unlock()
	if len(n.events) != 1 || n.events[0].Kind != deception.EventFindingsMissed || !strings.Contains(n.events[0].Message, file) {
		t.Errorf("told: %+v", n.events)
	}
}

// A Suricata that others run says itself what it lost: once in a while an event tells,
// and the status always.
func TestLossOfOthersIsTold(t *testing.T) {
	i, n, dir := newInspector(t)
	file := filepath.Join(dir, "eve.json")
	apply(t, i, &deception.Inspect{Suricata: deception.SuricataExternal, EVE: file})
	says := func(packets, drops int) {
		eventually(t, "what it says", func() bool { // again: reading begins at the end that the file then has
			f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err == nil {
				_, err = fmt.Fprintf(f, `{"timestamp":"2026-03-04T05:06:07.000000+0000","event_type":"stats","stats":{"uptime":8,"capture":{"kernel_packets":%d,"kernel_drops":%d},"decoder":{"pkts":%[1]d}}}`+"\n", packets, drops)
			}
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			c := i.Status().Events.Sensor
			return c != nil && c.Captured == uint64(packets) && c.CaptureDrops == uint64(drops)
		})
	}
	told := func() (messages []string) {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, e := range n.events {
			if e.Kind == deception.EventSensorLoss {
				messages = append(messages, e.Message)
			}
		}
		return messages
	}
	says(100, 0)
	if st := i.Status(); len(st.Problems) != 0 || len(told()) != 0 {
		t.Errorf("nothing was lost: %v, %v", st.Problems, told())
	}
	says(150, 7)
	says(200, 9)
	if st := i.Status(); len(st.Problems) != 1 || !strings.Contains(st.Problems[0], "9 of 200 packets") {
		t.Errorf("problems %v", st.Problems)
	}
	if m := told(); len(m) != 1 || !strings.Contains(m[0], "7 of 150 packets") {
		t.Errorf("told %q", m)
	}
	i.sensor.told = time.Now().Add(-lossEvery)
	says(20, 9) // it was started anew, and lost as many
	if m := told(); len(m) != 2 {
		t.Errorf("told %q", m)
	}
	apply(t, i, &deception.Inspect{Suricata: deception.SuricataExternal, EVE: file + ".other"})
	if st := i.Status(); st.Events.Sensor != nil || len(st.Problems) != 0 {
		t.Errorf("of another one: %+v, %v", st.Events.Sensor, st.Problems)
	}
}

// hung is an output that never ends.
type hung struct{ until chan struct{} }

func (h hung) Frame(int64, []byte) error { return nil }

func (h hung) Flush() error {
	<-h.until
	return nil
}

// Outputs that hang after they were removed keep their room: the one that finds none
// is named, and had when there is some again.
func TestNoRoomIsTold(t *testing.T) {
	i, _, dir := newInspector(t)
	over := make(chan struct{})
	for _, name := range []string{"a", "b", "c", "d"} {
		if !i.feed.Add(name, hung{over}) {
			t.Fatal("no room for", name)
		}
	}
	state := &deception.State{Node: "gw", Inspect: &deception.Inspect{PCAP: deception.PCAPLimits{MaxBytes: 1 << 20}}}
	if err := i.Apply(t.Context(), state); err == nil || !strings.Contains(err.Error(), "no room for the output pcap") {
		t.Errorf("a fifth output: %v", err)
	}
	close(over)
	if err := i.feed.Remove("a"); err != nil {
		t.Fatal(err)
	}
	apply(t, i, state.Inspect)
	s := relayed(i, "kept now")
	eventually(t, "the packets", func() bool { return kept(t, dir, s, "kept now") })
}

// A part that cannot be had is named, and the others work.
func TestOneFaultStopsNothingElse(t *testing.T) {
	i, _, dir := newInspector(t)
	netnstest.Run(t, i.cfg.Host, "ip", "link", "add", "vtap0", "type", "veth", "peer", "name", "other")
	err := i.Apply(t.Context(), &deception.State{Node: "gw", Inspect: &deception.Inspect{
		Tap: "vtap0", PCAP: deception.PCAPLimits{MaxBytes: 1 << 20}, Capture: []deception.Capture{{Interface: "absent"}},
	}})
	if err == nil || !strings.Contains(err.Error(), "vtap0") {
		t.Errorf("a link of that name that is not ours: %v", err)
	}
	s := relayed(i, "kept all the same")
	eventually(t, "the packets", func() bool { return kept(t, dir, s, "kept all the same") })
	if st := i.Status(); len(st.Captures) != 1 || st.Captures[0].Problem == "" || len(st.Problems) != 1 {
		t.Errorf("an interface that is not there: %+v", st)
	}
	if links := netnstest.Run(t, i.cfg.Host, "ip", "-br", "link"); !strings.Contains(links, "vtap0@other") {
		t.Errorf("the foreign link:\n%s", links)
	}
}

// What somebody else's Suricata writes is tied to the session that its frames name,
// and waits in the file while nobody has room for it.
func TestEventsOfAnother(t *testing.T) {
	i, n, _ := newInspector(t)
	file := filepath.Join(t.TempDir(), "eve.json")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	apply(t, i, &deception.Inspect{Suricata: deception.SuricataExternal, EVE: file, PCAP: deception.PCAPLimits{MaxBytes: 1 << 20}})
	eventually(t, "the reader", func() bool { return i.Status().Events != nil })
	time.Sleep(200 * time.Millisecond) // it begins at the end of what is there
	s := relayed(i, "anything")
	n.setFull(true)
	intruder, decoy := frame.Addresses(s.ID.Key())
	line := fmt.Sprintf(`{"timestamp":"%s","flow_id":7,"event_type":"alert","src_ip":"192.0.2.100","src_port":80,"dest_ip":"192.0.2.66","dest_port":40000,`+
		`"proto":"TCP","direction":"to_client","ether":{"src_mac":"%s","dest_mac":"%s"},"alert":{"gid":1,"signature_id":9,"rev":1,"signature":"x","category":"","severity":2}}`+"\n",
		s.Start.UTC().Format("2006-01-02T15:04:05.000000-0700"), decoy, intruder)
	out, err := os.OpenFile(file, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.WriteString(line); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(300 * time.Millisecond)
	if got := n.found(); len(got) != 0 {
		t.Errorf("told while there is no room: %+v", got)
	}
	n.setFull(false)
	eventually(t, "the alert", func() bool { return len(n.found()) == 1 })
	f := n.found()[0]
	if f.Session != s.ID || f.Source != s.Source || f.Destination != s.Destination || f.Alert == nil || f.Alert.SID != 9 || f.Alert.ToService {
		t.Errorf("the finding is %+v of %s", f, s.ID)
	}
}
