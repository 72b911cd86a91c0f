//go:build linux

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/internal/lab"
)

// inspectOffice is an office whose flows are analysed, with a rule of the test's.
type inspectOffice struct {
	*relayOffice
	rules string
}

const inspectDocument = `
inspect:
  rules: [%s]
  system-rules: false
  tap: vtap0
scanners:
  - {name: audit, from: 192.0.2.77}
`

// marked is what the test's rule looks for.
const marked = "decoynet-e2e-mark"

func newInspectOffice(t *testing.T) *inspectOffice {
	t.Helper()
	o := &inspectOffice{relayOffice: &relayOffice{office: newOffice(t)}}
	o.script = newPuppet(t, o.Linux, 9000)
	o.rules = filepath.Join(filepath.Dir(o.file), "my.rules")
	o.writeRules(fmt.Sprintf("alert tcp any any -> any any (msg:\"the mark\"; flow:established,to_server; content:\"%s\"; sid:4242; rev:3;)\n", marked))
	o.document(fmt.Sprintf(officeDocument, "auto") + fmt.Sprintf(inspectDocument, o.rules))
	o.up()
	o.waitSuricata()
	return o
}

func (o *inspectOffice) in(t *testing.T) *inspectOffice {
	view := *o
	view.relayOffice = o.relayOffice.in(t)
	return &view
}

func (o *inspectOffice) writeRules(text string) {
	o.t.Helper()
	writeFile(o.t, o.rules, text)
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	check(t, os.WriteFile(path, []byte(text), 0o600))
}

// inspection is the part of the status that is about analysis.
type inspection struct {
	Feed struct {
		Flows, Lost int
		Outputs     []struct {
			Name         string
			Lost, Frames int
			StuckSince   string `json:"stuck_since"`
		}
	}
	Suricata struct {
		State, Error string
		PID          int
		Starts       int
		RulesError   string `json:"rules_error"`
	}
	Events struct {
		Alerts                      int
		Unknown, Mismatched, Broken int
		Sensor                      struct{ Captured int }
	}
}

func (o *office) inspection() (inspection, error) {
	var st struct{ Inspect inspection }
	out, err := o.decoynet("status", "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &st)
	}
	return st.Inspect, err
}

func (o *office) waitSuricata() {
	o.t.Helper()
	eventually(o.t, 60*time.Second, func() error {
		st, err := o.inspection()
		if err == nil && st.Suricata.State != "running" {
			err = fmt.Errorf("suricata is %s: %s", st.Suricata.State, st.Suricata.Error)
		}
		return err
	})
}

// finding is an alert or another record, as `get alerts` and `get findings` show it.
type finding struct {
	Kind     string          `json:"event.kind"`
	Action   string          `json:"event.action"`
	Rule     string          `json:"rule.id"`
	SourceIP string          `json:"source.ip"`
	Port     uint16          `json:"source.port"`
	DestIP   string          `json:"destination.ip"`
	Session  string          `json:"decoynet.session"`
	Segment  string          `json:"decoynet.segment"`
	Decoy    string          `json:"decoynet.decoy"`
	Service  string          `json:"decoynet.service"`
	Protocol string          `json:"network.protocol"`
	Scanner  string          `json:"decoynet.scanner"`
	FeedLost int             `json:"decoynet.feed_lost"`
	Partial  bool            `json:"decoynet.partial"`
	EVE      json.RawMessage `json:"suricata.eve"`
}

func (o *office) findings(args ...string) ([]finding, error) {
	out, err := o.decoynet(append([]string{"get"}, append(args, "-o", "json")...)...)
	if err != nil {
		return nil, err
	}
	var list []finding
	for line := range strings.Lines(out) {
		var f finding
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			return nil, fmt.Errorf("%w in %s", err, line)
		}
		list = append(list, f)
	}
	return list, nil
}

// waitFinding waits for what is found of the intruder's flow.
func (o *office) waitFinding(from netip.AddrPort, what string, fits func(*finding) bool, args ...string) finding {
	o.t.Helper()
	var got finding
	eventually(o.t, 20*time.Second, func() error {
		list, err := o.findings(args...)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(list, func(f finding) bool {
			return f.SourceIP == from.Addr().String() && f.Port == from.Port() && fits(&f)
		})
		if at < 0 {
			return fmt.Errorf("nothing found of %s: want %s, have %d findings", from, what, len(list))
		}
		got = list[at]
		return nil
	})
	return got
}

func ruled(id string) func(*finding) bool { return func(f *finding) bool { return f.Rule == id } }

// TestInspect looks at what Suricata, run by decoynet, says of real clients' flows,
// and at what is kept of them.
func TestInspect(t *testing.T) {
	t.Parallel()
	o := newInspectOffice(t)
	for _, part := range []struct {
		name string
		test func(*inspectOffice)
	}{
		{"Alert", (*inspectOffice).testAlert},
		{"Records", (*inspectOffice).testRecords},
		{"Session", (*inspectOffice).testSession},
		{"Packets", (*inspectOffice).testPackets},
		{"Tap", (*inspectOffice).testTap},
		{"Scanner", (*inspectOffice).testScanner},
		{"Reload", (*inspectOffice).testReload},
		{"Killed", (*inspectOffice).testKilled},
		{"Hung", (*inspectOffice).testHung},
		{"Stop", (*inspectOffice).testStop}, // stops decoynet
	} {
		if !t.Run(part.name, func(t *testing.T) { part.test(o.in(t)) }) {
			return
		}
	}
}

// mark sends what the rule looks for, and returns who did.
func (o *inspectOffice) mark(address string) netip.AddrPort {
	o.t.Helper()
	client, service := o.pair(address)
	say(o.t, client, service, marked)
	say(o.t, service, client, "fine")
	check(o.t, client.Close())
	check(o.t, service.Close())
	return localAddr(client)
}

// testAlert: an alert names the intruder, the decoy, and the session on record.
func (o *inspectOffice) testAlert() {
	for _, addr := range oneEach {
		began := time.Now()
		from := o.mark(at(addr, 9000))
		f := o.waitFinding(from, "the mark", ruled("4242"), "alerts")
		o.t.Logf("the alert was there after %s at most", time.Since(began).Round(time.Millisecond))
		s := o.ended(from)
		if f.Session != s.ID || f.DestIP != addr || f.Kind != "alert" || f.Segment != "office" || f.Decoy != "office-web" || f.Service != "script" || f.Partial || f.FeedLost != 0 {
			o.t.Errorf("the alert is %+v, the session %+v", f, s)
		}
	}
}

// testRecords: what real clients said, as records of their protocols.
func (o *inspectOffice) testRecords() {
	_, err := o.Intruder.Run(o.t.Context(), "curl", "-s", "-A", "e2e-agent", "--local-port", "41001", "http://192.0.2.101/")
	check(o.t, err)
	from := netip.AddrPortFrom(lab.OfficeIntruder.V4, 41001)
	f := o.waitFinding(from, "an HTTP record", func(f *finding) bool { return f.Action == "http" }, "findings")
	if !bytes.Contains(f.EVE, []byte(`"e2e-agent"`)) || f.Protocol != "http" || f.Service != "web" {
		o.t.Errorf("the HTTP record is %+v %s", f, f.EVE)
	}
	_, _ = o.Intruder.Run(o.t.Context(), "ssh", "-p", "2222", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "192.0.2.101", "true") // no key is right
	eventually(o.t, 20*time.Second, func() error {
		list, err := o.findings("findings", "--kind", "ssh")
		if err == nil && (len(list) == 0 || !bytes.Contains(list[0].EVE, []byte(`"hassh"`))) {
			err = fmt.Errorf("records of SSH: %+v", list)
		}
		return err
	})
}

// testSession: one session whole, for people.
func (o *inspectOffice) testSession() {
	from := o.mark("192.0.2.102:9000")
	f := o.waitFinding(from, "the mark", ruled("4242"), "alerts")
	eventually(o.t, 10*time.Second, func() error {
		out, err := o.decoynet("session", f.Session)
		if err != nil {
			return err
		}
		for _, want := range []string{from.String(), "192.0.2.102", "office-web", "the mark", "client_closed"} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("`decoynet session` says nothing of %s:\n%s", want, out)
			}
		}
		return nil
	})
	out, err := o.decoynet("get", "sessions", "-o", "wide", "--service", "web")
	check(o.t, err)
	if !strings.Contains(out, "e2e-agent") || !strings.Contains(out, "http") {
		o.t.Errorf("sessions without protocol and user agent:\n%s", out)
	}
}

// testPackets: tshark has no complaint about a session's packets, and finds in them
// what both sides said.
func (o *inspectOffice) testPackets() {
	from := o.mark("192.0.2.103:9000")
	s := o.ended(from)
	file := filepath.Join(o.t.TempDir(), "session.pcap")
	eventually(o.t, 10*time.Second, func() error {
		_, err := o.decoynet("pcap", s.ID, "-w", file)
		if err != nil {
			return err
		}
		out, err := o.Gateway.Run(o.t.Context(), "tshark", "-r", file, "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE", "-q", "-z", "expert", "-z", "follow,tcp,ascii,0")
		if err != nil {
			return err
		}
		for _, want := range []string{marked, "fine", from.String(), "192.0.2.103:9000"} {
			if !strings.Contains(out, want) {
				return fmt.Errorf("not in the packets: %s\n%s", want, out)
			}
		}
		if strings.Contains(out, "Errors") || strings.Contains(out, "Warns") {
			o.t.Errorf("tshark complains:\n%s", out)
		}
		return nil
	})
}

// testTap: another sensor sees the flow at the device.
func (o *inspectOffice) testTap() {
	dump := filepath.Join(o.t.TempDir(), "tap.pcap")
	p, err := o.Gateway.Start("tcpdump", "-i", "vtap0", "-U", "-w", dump)
	check(o.t, err)
	defer func() { check(o.t, p.Stop(o.t.Context())) }()
	eventually(o.t, 10*time.Second, func() error {
		if !strings.Contains(p.Log(), "listening on") {
			return errors.New("tcpdump does not listen")
		}
		return nil
	})
	from := o.mark("192.0.2.104:9000")
	eventually(o.t, 10*time.Second, func() error {
		out, err := o.Gateway.Run(o.t.Context(), "tcpdump", "-nn", "-A", "-r", dump)
		if err == nil && (!strings.Contains(out, marked) || !strings.Contains(out, fmt.Sprintf("%s.%d > 192.0.2.104.9000", from.Addr(), from.Port()))) {
			err = fmt.Errorf("at the tap:\n%s", out)
		}
		return err
	})
}

// testScanner: nobody is alerted to a known scanner.
func (o *inspectOffice) testScanner() {
	_, err := o.Intruder.Run(o.t.Context(), "ip", "addr", "add", "192.0.2.77/24", "dev", "eth0")
	check(o.t, err)
	defer func() {
		_, err := o.Intruder.Run(o.t.Context(), "ip", "addr", "del", "192.0.2.77/24", "dev", "eth0")
		check(o.t, err)
	}()
	client, err := o.tryDial(netip.MustParseAddrPort("192.0.2.77:28001"), "192.0.2.105:9000")
	check(o.t, err)
	service := o.script.take(o.t)
	say(o.t, client, service, marked)
	check(o.t, client.Close())
	from := netip.MustParseAddrPort("192.0.2.77:28001")
	f := o.waitFinding(from, "the mark", ruled("4242"), "findings")
	if f.Kind == "alert" || f.Scanner != "audit" {
		o.t.Errorf("of a known scanner: %+v", f)
	}
	list, err := o.findings("alerts")
	check(o.t, err)
	if slices.ContainsFunc(list, func(f finding) bool { return f.SourceIP == "192.0.2.77" }) {
		o.t.Errorf("an alert about a known scanner: %+v", list)
	}
}

// testReload: new rules are tested before they are used, and wrong ones change
// nothing.
func (o *inspectOffice) testReload() {
	good, err := os.ReadFile(o.rules)
	check(o.t, err)
	o.writeRules(string(good) + "alert tcp any any -> any any (msg:\"broken; sid:7;)\n")
	out, err := o.decoynet("rules", "reload")
	if err == nil || !strings.Contains(out+err.Error(), o.rules+":2:") {
		o.t.Errorf("a wrong rule: %v\n%s", err, out)
	}
	from := o.mark("192.0.2.106:9000")
	o.waitFinding(from, "the mark, by the rules of before", ruled("4242"), "alerts")
	o.writeRules(string(good) + "alert tcp any any -> any any (msg:\"second\"; content:\"second-mark\"; sid:4343; rev:1;)\n")
	_, err = o.decoynet("rules", "reload")
	check(o.t, err)
	client, service := o.pair("192.0.2.107:9000")
	say(o.t, client, service, "second-mark")
	o.waitFinding(localAddr(client), "the second mark", ruled("4343"), "alerts")
	check(o.t, client.Close())
	check(o.t, service.Close())
}

// testKilled: a Suricata that dies is replaced, and told of the flows that run.
func (o *inspectOffice) testKilled() {
	client, service := o.pair("192.0.2.108:9000")
	say(o.t, client, service, "hello")
	before, err := o.inspection()
	check(o.t, err)
	check(o.t, unix.Kill(before.Suricata.PID, unix.SIGKILL))
	say(o.t, service, client, "nobody waits for it")
	eventually(o.t, 60*time.Second, func() error {
		st, err := o.inspection()
		if err == nil && (st.Suricata.State != "running" || st.Suricata.PID == before.Suricata.PID) {
			err = fmt.Errorf("suricata is %s, started %d times: %s", st.Suricata.State, st.Suricata.Starts, st.Suricata.Error)
		}
		return err
	})
	say(o.t, client, service, marked)
	f := o.waitFinding(localAddr(client), "the mark, of a flow that began before", ruled("4242"), "alerts")
	if s := o.recorded(localAddr(client), func(*record) bool { return true }); f.Session != s.ID {
		o.t.Errorf("the alert is of session %s, the intruder's is %s", f.Session, s.ID)
	}
	check(o.t, client.Close())
	check(o.t, service.Close())
}

// testHung: a Suricata that does nothing costs flows of the feed, and no relay.
func (o *inspectOffice) testHung() {
	st, err := o.inspection()
	check(o.t, err)
	check(o.t, unix.Kill(st.Suricata.PID, unix.SIGSTOP))
	for range 8 {
		client, service := o.pair("192.0.2.109:9000")
		sendAll(o.t, client, service, 16<<20)
		check(o.t, client.Close())
		check(o.t, service.Close())
	}
	eventually(o.t, 60*time.Second, func() error {
		now, err := o.inspection()
		if err == nil && (now.Suricata.State != "running" || now.Suricata.PID == st.Suricata.PID || now.Feed.Lost == 0) {
			err = fmt.Errorf("suricata is %s (%d), the feed has lost %d flows", now.Suricata.State, now.Suricata.PID, now.Feed.Lost)
		}
		return err
	})
	from := o.mark("192.0.2.110:9000")
	if f := o.waitFinding(from, "the mark", ruled("4242"), "alerts"); f.FeedLost == 0 || f.Partial {
		o.t.Errorf("beside the alert stands %d lost flows, partial %v", f.FeedLost, f.Partial)
	}
}

// testStop: what was going on at the end is on record, and nothing is left.
func (o *inspectOffice) testStop() {
	client, service := o.pair("192.0.2.111:9000")
	say(o.t, client, service, marked)
	st, err := o.inspection()
	check(o.t, err)
	o.down()
	wantEnd(o.t, client, unix.ECONNRESET)
	_ = service.Close()
	if err := unix.Kill(st.Suricata.PID, 0); !errors.Is(err, unix.ESRCH) {
		o.t.Errorf("suricata is still there: %v", err)
	}
	list, err := o.findings("alerts")
	check(o.t, err)
	from := localAddr(client)
	if !slices.ContainsFunc(list, func(f finding) bool { return f.Port == from.Port() && f.Rule == "4242" }) {
		o.t.Error("the last alert is not on record")
	}
	out, err := o.decoynet("get", "events", "--since", "1h")
	check(o.t, err)
	if n := strings.Count(out, "inspect-failed"); n != 2 { // killed, and hung
		o.t.Errorf("%d events say that analysis failed, want 2:\n%s", n, out)
	}
	out, err = o.Gateway.Run(o.t.Context(), "ip", "-br", "link", "show")
	check(o.t, err)
	if strings.Contains(out, "vtap0") {
		o.t.Errorf("a tap device is left:\n%s", out)
	}
}
