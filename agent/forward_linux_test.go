package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/notice"
	"decoynet/internal/relay"

	"github.com/google/go-cmp/cmp"
)

// Without a gateway the intruder is reset after three seconds, and the agent
// itself writes the session down. What happens to the gateways is said once.
func TestNoGateway(t *testing.T) {
	s := newSite(t, 0)
	s.up.set(true)
	s.mustApply(t, "crm any 445")
	began := time.Now()
	conn, err := net.Dial("tcp", "127.0.0.1:445")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	wantReset(t, conn)
	if took := time.Since(began); took < openTimeout/2 {
		t.Errorf("reset after %v, want %v for a gateway to come back", took, openTimeout)
	}
	eventually(t, "the session is recorded", func() bool { return len(s.records.ended()) == 1 })
	got := s.records.ended()[0]
	if got.Reason != deception.EndGateway || got.Decoy != "crm" || got.Service != "win" || got.Segment != "host" || got.Node != "crm-1" ||
		got.Source != plainAddr(netip.MustParseAddrPort(conn.LocalAddr().String())) || !got.End.After(got.Start) || got.ID.IsZero() {
		t.Errorf("session %+v", got)
	}
	eventually(t, "the loss is an event", func() bool { return len(s.records.of(deception.EventGatewayLost)) > 0 })
	if !s.courier.Status().Lost {
		t.Error("status does not say so")
	}
	if e := s.records.of(deception.EventGatewayLost)[0]; !strings.Contains(e.Message, "gw1 at gw.example:7444: connection refused") {
		t.Errorf("event %+v", e)
	}
	s.up.set(false)
	eventually(t, "the return is an event", func() bool { return len(s.records.of(deception.EventGatewayBack)) > 0 })
	dial(t, "127.0.0.1:445")
	if lost, back := s.records.of(deception.EventGatewayLost), s.records.of(deception.EventGatewayBack); len(lost) != 1 || len(back) != 1 {
		t.Errorf("%d and %d events, want one each", len(lost), len(back))
	}
}

// A gateway that comes back within the three seconds gets the flow.
func TestGatewayComesInTime(t *testing.T) {
	s := newSite(t, 0)
	s.up.set(true)
	s.mustApply(t, "crm any 445")
	time.AfterFunc(300*time.Millisecond, func() { s.up.set(false) })
	conn, greeting := dial(t, "127.0.0.1:445")
	if greeting != told("tcp", conn) {
		t.Errorf("greeting %q", greeting)
	}
}

// A tunnel that breaks in mid-flow resets the intruder, and the agent records
// the session under the identifier that the gateway has.
func TestTunnelBreaks(t *testing.T) {
	s := newSite(t, 0)
	s.mustApply(t, "crm any 445,161/udp")
	conn, greeting := dial(t, "127.0.0.1:445")
	udp, err := net.Dial("udp", "127.0.0.1:161")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	ask(t, udp, "x")
	s.up.cut()
	wantReset(t, conn)
	eventually(t, "both sessions are recorded", func() bool { return len(s.records.ended()) == 2 })
	ids := map[deception.SessionID]bool{}
	for _, h := range s.up.headers {
		ids[h.Session] = true
	}
	for _, got := range s.records.ended() {
		if got.Reason != deception.EndGateway || !ids[got.ID] {
			t.Errorf("session %+v", got)
		}
		if got.Transport == deception.TCP && string(got.DestinationHead) != greeting {
			t.Errorf("head %q", got.DestinationHead)
		}
	}
	if st := s.courier.Status(); st.Broken != 2 || st.Flows != 0 {
		t.Errorf("status %+v", st)
	}
}

// A flood is bounded: what is too much is reset at once and written down as one
// session and one event.
func TestTooManyFlows(t *testing.T) {
	const limit, wave = 8, 60
	s := newSite(t, limit)
	s.mustApply(t, "crm any 445")
	var kept []net.Conn
	for range limit {
		conn, _ := dial(t, "127.0.0.1:445")
		kept = append(kept, conn)
	}
	var all sync.WaitGroup
	for range wave {
		all.Go(func() {
			conn, err := net.Dial("tcp", "127.0.0.1:445")
			if err != nil {
				return // reset that early
			}
			defer conn.Close()
			wantReset(t, conn)
		})
	}
	all.Wait()
	eventually(t, "all were counted", func() bool { return s.courier.Status().Overload == wave })
	if st := s.courier.Status(); st.Flows != limit {
		t.Errorf("status %+v", st)
	}
	s.courier.overload.flush(time.Now(), true)
	ended, events := s.records.ended(), s.records.of(deception.EventOverload)
	if len(ended) != 1 || ended[0].Reason != deception.EndOverload || ended[0].Decoy != "crm" {
		t.Errorf("sessions %+v", ended)
	}
	if len(events) != 1 || !strings.HasPrefix(events[0].Message, fmt.Sprintf("%d connections", wave)) {
		t.Errorf("events %+v", events)
	}
	for _, conn := range kept {
		if _, err := io.WriteString(conn, "on\n"); err != nil || readLine(t, conn) != "on\n" {
			t.Errorf("a flow that was there before: %v", err)
		}
	}
}

// Datagrams of very many sources push out one another, never connections.
func TestTooManyUDPFlows(t *testing.T) {
	const limit = 40
	s := newSite(t, limit)
	s.mustApply(t, "crm any 161/udp,445")
	tcp, _ := dial(t, "127.0.0.1:445")
	for range 3 * limit {
		conn, err := net.Dial("udp", "127.0.0.1:161")
		if err != nil {
			t.Fatal(err)
		}
		ask(t, conn, "x")
		conn.Close()
	}
	st := s.courier.Status()
	if st.UDPFlows > limit/udpShare || st.Overload == 0 || st.Opened < 3*limit {
		t.Errorf("status %+v", st)
	}
	eventually(t, "the socket has forgotten those that were pushed out", func() bool {
		flows := 0
		for _, p := range s.Status().Ports {
			flows += p.Flows
		}
		return flows <= limit/udpShare
	})
	if _, err := io.WriteString(tcp, "on\n"); err != nil || readLine(t, tcp) != "on\n" {
		t.Errorf("the connection: %v", err)
	}
}

// What the gateway says of the services' health opens and closes ports; without
// its word they are open. The best gateway's word counts.
func TestNews(t *testing.T) {
	changes := 0
	up := newGateways()
	c := NewCourier(CourierConfig{Node: "crm-1", Upstream: up, Recorder: &records{}, Changed: func() { changes++ }})
	defer c.Close(t.Context())
	d := &deception.Decoy{Name: "crm", Segment: "host"}
	isUp := func() bool { return c.Up(d, deception.TCP, 445, false) }
	if !isUp() {
		t.Error("closed without a word")
	}
	down := notice.Notice{Node: "crm-1", Down: []notice.Down{{Segment: "host", Decoy: "crm", Transport: "tcp", First: 445, Last: 445}}}
	if err := c.Told("gw1", down.Append(nil)); err != nil || isUp() || changes != 1 {
		t.Errorf("down: %v, up %v, %d changes", err, isUp(), changes)
	}
	fine := notice.Notice{Node: "crm-1"}
	if err := c.Told("gw2", fine.Append(nil)); err != nil || isUp() || changes != 1 {
		t.Errorf("the second gateway's word: %v, up %v, %d changes", err, isUp(), changes)
	}
	link := func(name string, connected bool) GatewayLink { return GatewayLink{Name: name, Connected: connected} }
	if !c.news.follow([]GatewayLink{link("gw1", false), link("gw2", true)}) || !isUp() {
		t.Error("the second gateway is the one now, and its word does not count")
	}
	if !c.news.follow([]GatewayLink{link("gw1", true), link("gw2", true)}) || isUp() {
		t.Error("the first gateway is back, and its word does not count")
	}
	for _, text := range []string{"", "{}", `{"node":"other","down":[]}`} {
		if err := c.Told("gw1", []byte(text)); err == nil || isUp() {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestGatewayWatch(t *testing.T) {
	var w gatewayWatch
	at := time.Unix(1_800_000_000, 0)
	up, down := []GatewayLink{{Name: "a"}, {Name: "b", Connected: true}}, []GatewayLink{{Name: "a", Problem: "refused"}, {Name: "b"}}
	var got []string
	for _, step := range []struct {
		after time.Duration
		links []GatewayLink
	}{
		{0, down},
		{time.Second, up},
		{time.Second, down},
		{time.Second, down},
		{time.Second, nil},
		{time.Second, down},
		{2 * time.Second, down},
		{2 * time.Second, down},
		{time.Hour, down},
		{time.Second, up},
		{time.Second, up},
		{time.Second, nil},
	} {
		at = at.Add(step.after)
		word := "-"
		if e := w.see(at, step.links); e != nil {
			word = string(e.Kind)
		}
		got = append(got, word)
	}
	want := strings.Fields("- - - - - - - gateway-lost - gateway-back - -")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// segmentSite is a relay engine with the forwarder as its handler, and sockets on
// this machine's addresses for those that are steered to in a segment.
func segmentSite(t *testing.T, s *site) *Forwarder {
	t.Helper()
	f := NewForwarder("crm-1", s.courier)
	engine, err := relay.New(f, relay.Config{Loops: 2})
	if err != nil {
		t.Fatal(err)
	}
	l := &relay.Listener{Name: "dmz", Socket: func(domain, typ int) (int, error) { return unix.Socket(domain, typ, 0) }}
	tcp, udp := steeredSocket(t, unix.SOCK_STREAM), steeredSocket(t, unix.SOCK_DGRAM)
	if err := engine.Add(l, []int{tcp}, []int{udp}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		engine.Remove(l)
		ctx, cancel := context.WithTimeout(context.Background(), within)
		defer cancel()
		if err := engine.Close(ctx); err != nil {
			t.Error(err)
		}
		unix.Close(tcp)
		unix.Close(udp)
	})
	return f
}

func steeredSocket(t *testing.T, typ int) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, option := range []struct{ level, name int }{{unix.SOL_SOCKET, unix.SO_REUSEADDR}, {unix.SOL_IP, unix.IP_RECVORIGDSTADDR}, {unix.SOL_IP, unix.IP_TRANSPARENT}} {
		if err := unix.SetsockoptInt(fd, option.level, option.name, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 700}); err != nil {
		t.Fatal(err)
	}
	if typ == unix.SOCK_STREAM {
		if err := unix.Listen(fd, 128); err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

// A node with segments and without a gateway carries what the engine accepts.
func TestForwarder(t *testing.T) {
	s := newSite(t, 0)
	f := segmentSite(t, s)
	segment := state(t, "dmz-1 192.0.2.7 700,700/udp", "dmz-2 192.0.2.8 700/udp")
	for i := range segment.Decoys {
		segment.Decoys[i].Segment = "dmz"
	}
	f.SetState(segment)
	conn, greeting := dial(t, "192.0.2.7:700")
	if greeting != told("tcp", conn) {
		t.Errorf("greeting %q", greeting)
	}
	if _, err := io.WriteString(conn, "x\n"); err != nil || readLine(t, conn) != "x\n" {
		t.Errorf("echo: %v", err)
	}
	none, err := net.Dial("tcp", "192.0.2.8:700") // no decoy's port
	if err == nil {
		wantReset(t, none)
		none.Close()
	}
	udp, err := net.Dial("udp", "192.0.2.8:700")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	for _, text := range []string{"one", "", strings.Repeat("y", 60000)} {
		if got, want := ask(t, udp, text), told("udp", udp)+text; got != want {
			t.Errorf("%d bytes %.60q, want %d", len(got), got, len(want))
		}
	}
	for _, h := range s.up.headers {
		if h.Node != "crm-1" || h.Segment != "dmz" || h.Service != "win" || !strings.HasPrefix(h.Decoy, "dmz-") {
			t.Errorf("header %+v", h)
		}
	}
	// A broken tunnel ends the engine's half with the intruder's next datagram.
	s.up.cut()
	wantReset(t, conn)
	if got, want := ask(t, udp, "next"), told("udp", udp)+"next"; got != want {
		t.Errorf("afterwards: %q", got)
	}
	f.SetState(state(t))
	eventually(t, "flows of removed decoys end", func() bool { return s.courier.Status().Flows == 0 })
}
