package eve

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"

	"go.uber.org/goleak"
)

// The test binary becomes a process of another kind: a reader to be killed.
const (
	roleVar = "DECOYNET_EVE_TEST_ROLE"
	dirVar  = "DECOYNET_EVE_TEST_DIR"
)

// roles are the other kinds of process.
var roles = map[string]func(dir string) error{"reader": readerProcess}

func TestMain(m *testing.M) {
	name := os.Getenv(roleVar)
	if name == "" {
		goleak.VerifyTestMain(m)
	}
	role, ok := roles[name]
	if !ok {
		fmt.Fprintln(os.Stderr, "unknown role", name)
		os.Exit(2)
	}
	if err := role(os.Getenv(dirVar)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// child starts the test binary as a process of another kind.
func child(t testing.TB, role, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVar+"="+role, dirVar+"="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

// began is when the sessions of these tests begin.
var began = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// session makes the n-th session.
func session(n int) deception.Session {
	return deception.Session{
		ID: deception.NewSessionID(began), Start: began, Node: "hq", Segment: "office", Transport: deception.TCP,
		Source:      netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(n >> 8), byte(n)}), uint16(40000+n%20000)),
		Destination: netip.MustParseAddrPort("192.168.32.100:80"),
	}
}

// roster is a Sessions.
type roster map[deception.SessionKey]deception.Session

func (r roster) Find(k deception.SessionKey) (s deception.Session, partial, ok bool) {
	s, ok = r[k]
	return s, false, ok
}

func (r roster) add(s deception.Session) deception.Session {
	r[s.ID.Key()] = s
	return s
}

// record writes an event of a session as Suricata does; back: from the decoy to
// the intruder. extra is further members, each with a comma before it.
func record(s *deception.Session, kind string, flow int, back bool, ether, extra string) string {
	from, to := s.Source, s.Destination
	a, b := frame.Addresses(s.ID.Key())
	if back {
		from, to, a, b = to, from, b, a
	}
	switch ether {
	case "packet":
		ether = fmt.Sprintf(`,"pkt_src":"wire/pcap","ether":{"src_mac":"%s","dest_mac":"%s"}`, a, b)
	case "flow":
		ether = fmt.Sprintf(`,"ether":{"dest_macs":["%s"],"src_macs":["%s"]}`, b, a)
	case "none":
		ether = `,"pkt_src":"stream (flow timeout)"`
	}
	return fmt.Sprintf(`{"timestamp":"2026-03-04T05:06:07.%06d+0000","flow_id":%d,"pcap_cnt":5,"event_type":"%s","vlan":[7],"src_ip":"%s","src_port":%d,`+
		`"dest_ip":"%s","dest_port":%d,"proto":"TCP"%s,"community_id":"1:x="%s}`,
		flow%1000000, flow, kind, from.Addr(), from.Port(), to.Addr(), to.Port(), ether, extra)
}

const alertMember = `,"alert":{"action":"allowed","gid":1,"signature_id":2100498,"rev":7,"signature":"GPL \"root\"","category":"Bad","severity":2,` +
	`"metadata":{"created_at":["2010_09_23"]}},"app_proto":"http","direction":"to_server"`

// page is what an HTTP event of a browser looks like.
var page = `,"tx_id":0,"app_proto":"http","http":{"hostname":"intranet.example","url":"/login?next=%2Fadmin","http_user_agent":"Mozilla/5.0 (X11; Linux x86_64)",` +
	`"http_content_type":"text/html","http_method":"GET","protocol":"HTTP/1.1","status":200,"length":4711,"request_headers":[` +
	strings.Repeat(`{"name":"Accept-Language","value":"de-DE,de;q=0.8,en-US;q=0.5"},`, 12) + `{"name":"DNT","value":"1"}]}`

// sink takes findings; what it has taken twice it has once.
type sink struct {
	mu       sync.Mutex // guards the rest
	findings map[deception.SessionID]deception.Finding
	order    []deception.Finding
	busy     bool
}

func newSink() *sink { return &sink{findings: map[deception.SessionID]deception.Finding{}} }

func (k *sink) deliver(_ context.Context, list []*deception.Finding) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.busy {
		return ErrBusy
	}
	for _, f := range list {
		k.findings[f.ID] = *f
		k.order = append(k.order, *f)
	}
	return nil
}

func (k *sink) setBusy(busy bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.busy = busy
}

func (k *sink) all() []deception.Finding {
	k.mu.Lock()
	defer k.mu.Unlock()
	return append([]deception.Finding(nil), k.order...)
}

// place is a folder with a file of events.
type folder struct{ dir string }

func newFolder(t testing.TB) folder { return folder{t.TempDir()} }

func (f folder) path(name string) string { return filepath.Join(f.dir, name) }

func (f folder) config(s Sessions, k *sink) Config {
	return Config{
		Path: f.path("eve.json"), Checkpoint: f.path("eve.checkpoint"), Node: "hq",
		Sessions: s, Deliver: k.deliver, Settle: -1,
	}
}

// write appends to the file.
func (f folder) write(t testing.TB, name, text string) {
	t.Helper()
	file, err := os.OpenFile(f.path(name), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err == nil {
		_, err = file.WriteString(text)
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// drive lets a reader read all there is.
func drive(t testing.TB, r *Reader, now time.Time) {
	t.Helper()
	for range 100000 {
		wait, err := r.step(t.Context(), now)
		if err != nil {
			t.Fatal(err)
		}
		if wait > 0 {
			return
		}
	}
	t.Fatal("the reader does not come to rest")
}

// start makes a reader that is driven by the test.
func start(t testing.TB, cfg Config) *Reader {
	t.Helper()
	r := newReader(cfg)
	if err := r.open(time.Now()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.follow.close() })
	return r
}

func decode(t testing.TB, doc []byte) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(doc, &m); err != nil {
		t.Fatalf("%v: %.200s", err, doc)
	}
	return m
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("after 20 s still not: " + what)
		}
	}
}
