//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"decoynet/internal/lab"
)

// TestSessions compares what is on record with what the intruder and the service
// themselves saw.
func TestSessions(t *testing.T) {
	t.Parallel()
	o := newRelayOffice(t, "auto")
	for _, part := range []struct {
		name string
		test func(*relayOffice)
	}{
		{"Fields", (*relayOffice).testFields},
		{"EndReasons", (*relayOffice).testEndReasons},
		{"Heads", (*relayOffice).testHeads},
		{"Live", (*relayOffice).testLive},
		{"Since", (*relayOffice).testSince},
		{"TerminalEscapes", (*relayOffice).testTerminalEscapes},
		{"Shutdown", (*relayOffice).testShutdown}, // stops decoynet
		{"WithoutHeads", (*relayOffice).testWithoutHeads},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(o.in(t)) })
	}
	o.wantNoErrorLogged()
}

// uuid7 is RFC 9562's version 7.
var uuid7 = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)

// communityID computes the flow's Community ID 1 from its definition.
func communityID(protocol byte, a, b netip.AddrPort) string {
	if b.Compare(a) < 0 {
		a, b = b, a
	}
	data := []byte{0, 0}
	data = append(append(data, a.Addr().AsSlice()...), b.Addr().AsSlice()...)
	data = append(data, protocol, 0)
	for _, port := range []uint16{a.Port(), b.Port()} {
		data = append(data, byte(port>>8), byte(port))
	}
	sum := sha1.Sum(data)
	return "1:" + base64.StdEncoding.EncodeToString(sum[:])
}

// testFields looks at every field of a session while it runs and after its end.
func (o *relayOffice) testFields() {
	for i, addr := range oneEach {
		before := time.Now()
		client, service := o.pair(at(addr, 9000))
		opened := time.Now()
		say(o.t, client, service, "one two three")
		say(o.t, service, client, "four")
		source := localAddr(client)
		want := record{
			SourceIP: source.Addr().String(), SourcePort: source.Port(),
			SourceNATIP: remoteAddr(service).Addr().String(), SourceNATPort: remoteAddr(service).Port(),
			DestIP: addr, DestPort: 9000,
			DestNATIP: localAddr(service).Addr().String(), DestNATPort: 9000,
			Transport: "tcp", NetworkType: []string{"ipv4", "ipv6"}[i],
			CommunityID: communityID(unix.IPPROTO_TCP, source, netip.MustParseAddrPort(at(addr, 9000))),
			Node:        "gw", Segment: "office", Decoy: "office-web", Service: "script",
			Path: "relay", SourceMode: "kept", Action: "session-started",
		}
		s := o.recorded(source, func(s *record) bool { return s.EndReason == "" })
		o.wantTimes(&s, before, opened)
		if !s.End.IsZero() || s.Duration != 0 || !s.Timestamp.Equal(s.Start) {
			o.t.Errorf("a running session has an end: %+v", s)
		}
		started := s
		o.wantFields(s, want)

		time.Sleep(20 * time.Millisecond)
		closing := time.Now()
		check(o.t, client.Close())
		wantEnd(o.t, service, io.EOF)
		check(o.t, service.Close())
		s = o.ended(source)
		o.wantTimes(&s, before, opened)
		if s.End.Before(closing.Add(-slack)) || s.End.After(time.Now()) || !s.Timestamp.Equal(s.End) || s.Duration != s.End.Sub(s.Start).Nanoseconds() {
			o.t.Errorf("closed at %s, but on record: %+v", closing, s)
		}
		if s.ID != started.ID || !s.Start.Equal(started.Start) {
			o.t.Errorf("the session began as %s at %s and ended as %s of %s", started.ID, started.Start, s.ID, s.Start)
		}
		want.EndReason, want.Action = "client_closed", "session-ended"
		want.SourceBytes, want.DestBytes = int64(len("one two three")), int64(len("four"))
		want.SourceHead, want.DestinationHead = []byte("one two three"), []byte("four")
		o.wantFields(s, want)
	}
	o.testFieldsUDP()
	o.testContract()
}

func (o *relayOffice) testFieldsUDP() {
	conn := o.udp("192.0.2.102:161")
	source := localAddr(conn)
	s := o.recorded(source, func(s *record) bool { return s.Transport == "udp" })
	o.wantFields(s, record{
		SourceIP: source.Addr().String(), SourcePort: source.Port(), SourceNATIP: source.Addr().String(), SourceNATPort: source.Port(),
		DestIP: "192.0.2.102", DestPort: 161, DestNATIP: "10.1.0.5", DestNATPort: 161,
		Transport: "udp", NetworkType: "ipv4", CommunityID: communityID(unix.IPPROTO_UDP, source, netip.MustParseAddrPort("192.0.2.102:161")),
		Node: "gw", Segment: "office", Decoy: "office-web", Service: "snmp", Path: "relay", SourceMode: "kept", Action: "session-started",
	})
}

// slack is by how much a time on record may lie early: event loops read the clock
// once a round.
const slack = 10 * time.Millisecond

// wantTimes checks that a session began while the client was connecting.
func (o *office) wantTimes(s *record, before, opened time.Time) {
	o.t.Helper()
	if s.Start.Before(before.Add(-slack)) || s.Start.After(opened) || !uuid7.MatchString(s.ID) {
		o.t.Errorf("the client connected between %s and %s; on record: %+v", before, opened, s)
	}
}

// wantFields compares all but identifiers and times.
func (o *office) wantFields(got, want record) {
	o.t.Helper()
	want.ID, want.Timestamp, want.Start, want.End, want.Duration = got.ID, got.Timestamp, got.Start, got.End, got.Duration
	a, err1 := json.MarshalIndent(want, "", " ")
	b, err2 := json.MarshalIndent(got, "", " ")
	check(o.t, errors.Join(err1, err2))
	if !bytes.Equal(a, b) {
		o.t.Errorf("on record:\n%s\nwant:\n%s", b, a)
	}
}

// testContract looks for the names that others rely on, in the raw output.
func (o *relayOffice) testContract() {
	list := o.sessions("--limit", "1", "--service", "script")
	if len(list) != 1 {
		o.t.Fatalf("--limit 1 lists %d sessions", len(list))
	}
	for _, key := range strings.Fields(`@timestamp event.id event.start event.end source.ip source.port
		destination.ip destination.port network.transport network.community_id decoynet.segment decoynet.node
		decoynet.service decoynet.end_reason source.bytes destination.bytes source.nat.ip source.nat.port`) {
		if _, ok := list[0][key]; !ok {
			o.t.Errorf("a session has no %s: %v", key, list[0])
		}
	}
}

// testEndReasons ends sessions in each way there is for this office; the others
// (idle, unbound, lost) have tests of their own.
func (o *relayOffice) testEndReasons() {
	for reason, end := range map[string]func(client, service *net.TCPConn){
		"client_closed":  func(client, _ *net.TCPConn) { check(o.t, client.CloseWrite()) },
		"service_closed": func(_, service *net.TCPConn) { check(o.t, service.CloseWrite()) },
		"client_reset": func(client, _ *net.TCPConn) {
			check(o.t, client.SetLinger(0))
			check(o.t, client.Close())
		},
		"service_reset": func(_, service *net.TCPConn) {
			check(o.t, service.SetLinger(0))
			check(o.t, service.Close())
		},
	} {
		client, service := o.pair(at(oneEach[0], 9000))
		say(o.t, client, service, reason)
		end(client, service)
		if strings.HasSuffix(reason, "closed") { // the other side answers in kind
			first, second := client, service
			if reason == "service_closed" {
				first, second = service, client
			}
			wantEnd(o.t, second, io.EOF)
			check(o.t, second.Close())
			wantEnd(o.t, first, io.EOF)
		}
		s := o.wantReason(localAddr(client), reason)
		wantBytes(o.t, s, int64(len(reason)), 0)
		if string(s.SourceHead) != reason {
			o.t.Errorf("the head of the session is %q, want %q", s.SourceHead, reason)
		}
	}
	o.testRefused()
}

// testRefused meets a service that went away a moment ago: the intruder is
// accepted, and then reset.
func (o *relayOffice) testRefused() {
	for i := range 3 {
		late, err := lab.TCPPeer(o.t.Context(), o.Linux, lab.Listen{Ports: []uint16{8000}})
		check(o.t, err)
		o.waitOpen(oneEach[0], 8000)
		check(o.t, late.Stop(o.t.Context()))
		from := netip.AddrPortFrom(lab.OfficeIntruder.V4, uint16(27000+i))
		conn, err := o.tryDial(from, at(oneEach[0], 8000))
		if errors.Is(err, unix.ECONNREFUSED) {
			continue // the health check came first
		}
		if err == nil {
			defer conn.Close()
			wantEnd(o.t, conn, unix.ECONNRESET)
		} else if !errors.Is(err, unix.ECONNRESET) { // so soon that the client was still connecting
			o.t.Error(err)
		}
		s := o.wantReason(from, "refused")
		wantBytes(o.t, s, 0, 0)
		return
	}
	o.t.Error("the health check was faster three times in a row")
}

// testHeads sends more than is kept, in pieces: the first 256 bytes of each side
// are on record, byte for byte.
func (o *relayOffice) testHeads() {
	client, service := o.pair(at(oneEach[1], 9000))
	var up, down strings.Builder
	for i := range 100 {
		piece := fmt.Sprintf("%d\x00\xff,", i)
		say(o.t, client, service, piece)
		up.WriteString(piece)
		piece = strings.Repeat("ä", i%7+1)
		say(o.t, service, client, piece)
		down.WriteString(piece)
	}
	check(o.t, client.Close())
	check(o.t, service.Close())
	s := o.ended(localAddr(client))
	if string(s.SourceHead) != up.String()[:256] || string(s.DestinationHead) != down.String()[:256] {
		o.t.Errorf("heads are %q and %q", s.SourceHead, s.DestinationHead)
	}
	wantBytes(o.t, s, int64(up.Len()), int64(down.Len()))
}

// testLive follows a session from another process, from its start to its end.
func (o *relayOffice) testLive() {
	follow := o.Gateway.Command(o.t.Context(), binary, "get", "sessions", "--data", o.data, "--watch", "-o", "json", "--since", "0s")
	stdout, err := follow.StdoutPipe()
	check(o.t, err)
	check(o.t, follow.Start())
	defer func() {
		_ = follow.Process.Kill()
		_ = follow.Wait() // killed, as meant
	}()
	lines := newLineReader(bufio.NewReader(stdout))
	next := func(from netip.AddrPort) record {
		o.t.Helper()
		for {
			line, ok := lines.next(5 * time.Second)
			if !ok {
				o.t.Fatalf("--watch: %s", line)
			}
			var s record
			check(o.t, json.Unmarshal([]byte(line), &s))
			if s.source() == from {
				return s
			}
		}
	}
	client, service := o.pair(at(oneEach[0], 9000))
	from := localAddr(client)
	began := time.Now()
	if s := next(from); s.Action != "session-started" || s.EndReason != "" {
		o.t.Errorf("first word of the session: %+v", s)
	}
	o.t.Logf("its start was shown after %s", time.Since(began).Round(time.Millisecond))
	o.wantRunning(from, true)
	check(o.t, client.Close())
	check(o.t, service.Close())
	began = time.Now()
	if s := next(from); s.Action != "session-ended" || s.EndReason == "" {
		o.t.Errorf("second word of the session: %+v", s)
	}
	o.t.Logf("its end was shown after %s", time.Since(began).Round(time.Millisecond))
	o.wantRunning(from, false)
}

func (o *office) wantRunning(from netip.AddrPort, want bool) {
	o.t.Helper()
	list, err := o.records("--running")
	check(o.t, err)
	if got := slices.ContainsFunc(list, func(s record) bool { return s.source() == from }); got != want {
		o.t.Errorf("--running lists %s: %v, want %v", from, got, want)
	}
}

// testSince separates sessions by when they ran.
func (o *relayOffice) testSince() {
	visit := func() netip.AddrPort {
		_, from := o.curl("http://" + at(oneEach[0], 80) + "/")
		o.ended(from)
		return from
	}
	long, _ := o.pair(at(oneEach[0], 9000)) // runs throughout
	early := visit()
	time.Sleep(20 * time.Millisecond)
	between := time.Now()
	late := visit()
	for since, want := range map[string][3]bool{
		between.UTC().Format(time.RFC3339Nano): {true, false, true},
		"1h":                                   {true, true, true},
		"7d":                                   {true, true, true},
		time.Now().Add(time.Minute).UTC().Format(time.RFC3339): {true, false, false},
	} {
		list, err := o.records("--since", since)
		check(o.t, err)
		var got [3]bool
		for i, from := range []netip.AddrPort{localAddr(long), early, late} {
			got[i] = slices.ContainsFunc(list, func(s record) bool { return s.source() == from })
		}
		if got != want {
			o.t.Errorf("--since %s lists a running, an early and a late session: %v, want %v", since, got, want)
		}
	}
}

// testTerminalEscapes has an intruder send what takes over terminals; nothing of
// it comes out of any listing.
func (o *relayOffice) testTerminalEscapes() {
	const evil = "\x1b]0;owned\a\x1b[2J\x1b[31m\u009b31m\u202e\u2066\r\b\x7f\x9b\x00\tGET / HTTP/1.1\r\n"
	client, service := o.pair(at(oneEach[0], 9000))
	say(o.t, client, service, evil)
	say(o.t, service, client, "\x1bP$q\x1b\\"+evil)
	check(o.t, client.Close())
	check(o.t, service.Close())
	s := o.ended(localAddr(client))
	if string(s.SourceHead) != evil {
		o.t.Errorf("on record is %q, sent was %q", s.SourceHead, evil)
	}
	for _, args := range [][]string{
		{"get", "sessions"}, {"get", "sessions", "-o", "wide"}, {"get", "sessions", "-o", "json"}, {"status"}, {"status", "-o", "json"},
	} {
		out, err := o.decoynet(args...)
		check(o.t, err)
		if !utf8.ValidString(out) {
			o.t.Errorf("%v prints bytes that are no text", args)
		}
		for _, r := range out {
			if r != '\n' && !unicode.IsPrint(r) {
				o.t.Errorf("%v prints %U", args, r)
				break
			}
		}
		if slices.Contains(args, "wide") && !strings.Contains(out, `owned`) {
			o.t.Errorf("%v does not show what was sent:\n%s", args, out)
		}
	}
}

// testShutdown stops decoynet under a session: both sides are reset, and the
// session is on record when decoynet is gone.
func (o *relayOffice) testShutdown() {
	client, service := o.pair(at(oneEach[0], 9000))
	say(o.t, client, service, "last words")
	o.down()
	wantEnd(o.t, client, unix.ECONNRESET)
	wantEnd(o.t, service, unix.ECONNRESET)
	s := o.wantReason(localAddr(client), "shutdown")
	wantBytes(o.t, s, int64(len("last words")), 0)
	list, err := o.records("--running")
	if err != nil || len(list) != 0 {
		o.t.Errorf("after the end %d sessions run on record (%v)", len(list), err)
	}
}

// testWithoutHeads has a document say that what intruders type is not kept.
func (o *relayOffice) testWithoutHeads() {
	o.document(fmt.Sprintf(officeDocument, "auto") + "recording: {heads: false}\n")
	o.up()
	client, service := o.pair(at(oneEach[0], 9000))
	say(o.t, client, service, "my password")
	say(o.t, service, client, "thank you")
	check(o.t, client.Close())
	check(o.t, service.Close())
	s := o.ended(localAddr(client))
	if len(s.SourceHead)+len(s.DestinationHead) > 0 {
		o.t.Errorf("with recording.heads false, %q and %q are kept", s.SourceHead, s.DestinationHead)
	}
	wantBytes(o.t, s, int64(len("my password")), int64(len("thank you")))
	o.down()
}
