package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/lab"
	"decoynet/internal/proxyheader"
)

// headerTo is a header as the ingress at hq would write it.
func headerTo(t *testing.T, transport deception.Transport, target string) []byte {
	t.Helper()
	h := proxyheader.Header{
		Transport: transport, Source: netip.MustParseAddrPort("192.0.2.66:40000"), Destination: netip.MustParseAddrPort(at1007),
		Session: deception.NewSessionID(time.Now()), Node: "hq", Segment: "office", Decoy: "office-echo", Service: "linux-echo",
	}
	if target != "" {
		h.Target = netip.MustParseAddrPort(target)
	}
	b, err := h.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// attempt is what somebody tries at an egress and why he gets no further.
type attempt struct {
	name, cause, says string
	from              *lab.Machine
	send              []byte
	end               bool // half-close afterwards
}

func (w *world) badAttempts(t *testing.T) []attempt {
	good := headerTo(t, deception.TCP, "10.1.0.2:7")
	oversized := slices.Clone(good)
	oversized[14], oversized[15] = 0xff, 0xff
	tcp := func(target string) []byte { return headerTo(t, deception.TCP, target) }
	return []attempt{
		{"a stranger", causePeer, "not one of its ingress gateways", w.stranger, good, false},
		{"garbage", causeHeader, "does not begin with the signature", w.hq, []byte("GET / HTTP/1.1\r\n\r\n"), false},
		{"version 1", causeHeader, "does not begin with the signature", w.hq, []byte("PROXY TCP4 192.0.2.66 10.1.0.2 40000 7\r\n"), false},
		{"half a header and silence", causeTimeout, "no whole header within 3 s", w.hq, good[:30], false},
		{"silence", causeTimeout, "no whole header within 3 s", w.hq, nil, false},
		{"half a header and its end", causeEnd, "ended within the header", w.hq, good[:30], true},
		{"an oversized header", causeSize, "at most 1024", w.hq, oversized, false},
		{"a header of datagrams", causeHeader, "another transport", w.hq, headerTo(t, deception.UDP, "10.1.0.2:161"), false},
		{"no target", causeTarget, "names no target", w.hq, tcp(""), false},
		{"a target outside the zone", causeTarget, "no service of zone linux is at 172.16.23.66", w.hq, tcp("172.16.23.66:22"), false},
		{"a port that is no service's", causeTarget, "has no port 22", w.hq, tcp("10.1.0.2:22"), false},
		{"a target of the other family", causeTarget, "two families", w.hq, tcp("[fd00:1::2]:7"), false},
	}
}

// Who is no ingress gateway, or says what cannot be, gets a reset and no word
// to a service; it is counted by cause and told once a minute.
func TestEgressRefuses(t *testing.T) {
	w := newWorld(t)
	w.startEgress()
	tries, want := w.badAttempts(t), map[string]uint64{}
	for _, try := range tries {
		want[try.cause]++
	}
	t.Run("over TCP", func(t *testing.T) {
		for _, try := range tries {
			t.Run(try.name, func(t *testing.T) {
				t.Parallel()
				w.wantResetTo(t, try)
			})
		}
	})
	w.wantRefused(t, want)
	for _, try := range tries {
		// Those of one cause come from one peer: only one of them is told.
		if !slices.ContainsFunc(tries, func(o attempt) bool { return o.cause == try.cause && w.told(o.says) }) {
			t.Errorf("no event says %q, nor what else was refused for the cause %s", try.says, try.cause)
		}
	}
	t.Run("over UDP", func(t *testing.T) {
		udp := headerTo(t, deception.UDP, "10.1.0.2:161")
		for _, d := range []attempt{
			{from: w.stranger, cause: causePeer, send: udp},
			{from: w.hq, cause: causeHeader, send: []byte("hello")},
			{from: w.hq, cause: causeEnd, send: udp[:30]},
			{from: w.hq, cause: causeHeader, send: headerTo(t, deception.TCP, "10.1.0.2:7")},
			{from: w.hq, cause: causeTarget, send: headerTo(t, deception.UDP, "10.1.0.2:53")},
		} {
			want[d.cause]++
			if _, err := w.dial(d.from, "udp", egressAt).Write(d.send); err != nil {
				t.Fatal(err)
			}
		}
		w.wantRefused(t, want)
	})
	if peers, err := w.tcp.Peers(); err != nil || len(peers) != 0 {
		t.Errorf("the service was reached from %v (%v)", peers, err)
	}
	w.wantEvents(t, len(want))
	// And one that is right, a byte at a time.
	c := w.dial(w.hq, "tcp", egressAt)
	good := headerTo(t, deception.TCP, "10.1.0.2:7")
	for i := range good {
		if _, err := c.Write(good[i : i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if line, err := c.r.ReadString('\n'); err != nil || line != "peer 192.0.2.66 40000\n" {
		t.Errorf("the service said %q, %v", line, err)
	}
}

// wantResetTo wants the attempt to meet a reset, at whichever step that is seen.
func (w *world) wantResetTo(t *testing.T, try attempt) {
	c, err := w.tryDial(try.from, "tcp", egressAt)
	if err == nil {
		if _, err = c.Write(try.send); err == nil && try.end {
			err = c.Conn.(*net.TCPConn).CloseWrite()
		}
	}
	if err == nil {
		_, err = io.ReadAll(c.r)
	}
	if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
		t.Errorf("saw %v, want a reset", err)
	}
}

// wantEvents wants one event for each of so many causes, all of them whole.
func (w *world) wantEvents(t *testing.T, causes int) {
	t.Helper()
	events := 0
	for _, said := range w.egress.words() {
		e := said.Event
		if e == nil {
			continue
		}
		events++
		if e.Kind != deception.EventPeerRefused || e.ID.IsZero() || e.Time.IsZero() || e.Node != "vm1" || !e.Source.IsValid() ||
			e.Destination.String() != egressAt {
			t.Errorf("event: %+v", e)
		}
	}
	if events != causes {
		t.Errorf("%d events for %d causes, one peer each: more than one a minute", events, causes)
	}
}

// wantRefused waits until the egress's status counts so.
func (w *world) wantRefused(t *testing.T, want map[string]uint64) {
	t.Helper()
	w.egress.hears(fmt.Sprintf("that it refused %v", want), func(said word) bool {
		if len(said.Egress) != 1 || len(said.Egress[0].Refused) != len(want) {
			return false
		}
		for cause, n := range want {
			if said.Egress[0].Refused[cause] != n {
				return false
			}
		}
		return true
	})
}

// told tells whether an event of the egress says so.
func (w *world) told(text string) bool {
	return slices.ContainsFunc(w.egress.words(), func(said word) bool {
		return said.Event != nil && strings.Contains(said.Event.Message, text)
	})
}

// A HAProxy as ingress knows no target: it is refused with words that say so.
func TestForeignIngress(t *testing.T) {
	w := newWorld(t)
	w.startEgress()
	config := filepath.Join(w.lab.Dir(), "haproxy.cfg")
	text := "defaults\n mode tcp\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n" +
		"listen hop\n bind " + decoy4 + ":8007\n server egress " + egressAt + " send-proxy-v2\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.hq.Start("haproxy", "-db", "-f", config); err != nil {
		t.Fatal(err)
	}
	var c *conn
	err := lab.Eventually(t.Context(), patience, func() (err error) {
		c, err = w.tryDial(w.client, "tcp", net.JoinHostPort(decoy4, "8007"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(c, "hello")
	if b, _ := io.ReadAll(c.r); len(b) != 0 {
		t.Errorf("something answered: %q", b)
	}
	w.egress.hears("what the header lacks", func(said word) bool {
		return said.Event != nil && strings.Contains(said.Event.Message, "header names no target")
	})
}

// A go-mmproxy as egress reads our header: the service sees the intruder. That
// its ports are up is taken from its accepting connections.
func TestForeignEgress(t *testing.T) {
	w := newWorld(t)
	w.startBoth() // our own egress lays the routes that the foreign one needs, too
	for _, transport := range []string{"tcp", "udp"} {
		target := map[string]string{"tcp": "7", "udp": "161"}[transport]
		if _, err := w.vm1.Start("go-mmproxy", "-l", foreignAt, "-p", transport, "-v", "2",
			"-4", net.JoinHostPort(service4, target), "-6", net.JoinHostPort(service6, target)); err != nil {
			t.Fatal(err)
		}
	}
	w.ingress.hears("that the foreign egress is up", func(said word) bool {
		return slices.ContainsFunc(said.Links, func(l LinkStatus) bool { return l.Egress == foreignAt && l.Connected && l.Foreign }) &&
			slices.Contains(said.Up, "foreign-echo tcp 10.1.0.2:7")
	})
	w.dial(w.client, "tcp", at3007).wantEcho(t, "through another program")
	c := w.dial(w.client, "udp", at3007)
	if got, want := ask(t, c, "datagram"), peerLine(c.local)+"datagram"; got != want {
		t.Errorf("over UDP the service said %q, want %q", got, want)
	}
}

// Apply after Close is refused, and an egress without zones holds nothing.
func TestEgressCloses(t *testing.T) {
	e := NewEgress(New(Config{Node: "vm1", Recorder: &speaker{}}), EgressConfig{})
	if err := e.Apply(t.Context(), &deception.State{Node: "vm1"}); err != nil || e.engine != nil || len(e.Status()) != 0 {
		t.Errorf("an egress of nothing: %v, engine %v, %+v", err, e.engine, e.Status())
	}
	state := vm1State("127.0.0.1:1", "127.0.0.1/32") // a port that tests run as root may have
	state.Zones[0].Egress.Listen = freePort(t)
	if err := e.Apply(t.Context(), state); err != nil {
		t.Fatal(err)
	}
	if err := e.Apply(t.Context(), state); err != nil {
		t.Errorf("the same again: %v", err)
	}
	if st := e.Status(); len(st) != 1 || !st[0].Listening || len(st[0].Problems) != 0 {
		t.Errorf("status: %+v", st)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 2 {
		if err := e.Close(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := e.Apply(t.Context(), state); err == nil {
		t.Error("a closed egress took a document")
	}
}

// freePort returns an address of the loopback interface that nobody listens at.
func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}
