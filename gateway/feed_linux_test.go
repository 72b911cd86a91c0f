package gateway

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/feed"
	"decoynet/internal/frame"
	"decoynet/internal/lab"
)

// feedVar names the directory where the processes of a test make their FIFOs.
const feedVar = roleVar + "_FEED"

// testFeed is the feed of such a process, nil where the test asks for none.
func testFeed(role string) (*feed.Feed, error) {
	dir := os.Getenv(feedVar)
	if dir == "" {
		return nil, nil
	}
	fifo, err := feed.NewFIFO(filepath.Join(dir, role), nil)
	if err != nil {
		return nil, err
	}
	f := feed.New(feed.Config{Lanes: 2})
	f.Add("fifo", fifo)
	return f, nil
}

func closeFeed(f *feed.Feed) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// reader keeps what comes out of a process's FIFO.
type reader struct {
	t    *testing.T
	file string
	done chan error
}

// read begins to read as soon as the FIFO is there.
func read(t *testing.T, role string) *reader {
	t.Helper()
	r := &reader{t: t, file: filepath.Join(t.TempDir(), role+".pcap"), done: make(chan error, 1)}
	fifo := filepath.Join(os.Getenv(feedVar), role)
	err := lab.Eventually(t.Context(), patience, func() error { _, err := os.Stat(fifo); return err })
	if err != nil {
		t.Fatal(err)
	}
	cat := exec.Command("cat", fifo)
	out, err := os.Create(r.file)
	if err != nil {
		t.Fatal(err)
	}
	cat.Stdout = out
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cat.Process.Kill() })
	go func() { r.done <- errors.Join(cat.Wait(), out.Close()) }()
	return r
}

// packet is one frame as tshark reads it.
type packet struct {
	from, to netip.AddrPort
	flags    int // of TCP
	payload  []byte
	session  deception.SessionID
}

// packets waits for the end of the stream and has tshark read it. Heartbeats are
// left out.
func (r *reader) packets() []packet {
	r.t.Helper()
	select {
	case err := <-r.done:
		if err != nil {
			r.t.Fatal(err)
		}
	case <-time.After(patience):
		r.t.Fatal("the stream of the FIFO does not end")
	}
	fields := []string{"ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "tcp.srcport", "tcp.dstport", "udp.srcport", "udp.dstport", "tcp.flags", "tcp.payload", "udp.payload", "eth.src", "eth.dst"}
	args := []string{"-n", "-r", r.file, "-Y", "ip or ipv6", "-T", "fields", "-E", "occurrence=f"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	out, err := exec.Command("tshark", args...).Output()
	if err != nil {
		r.t.Fatalf("tshark: %v", err)
	}
	var all []packet
	for line := range strings.Lines(string(out)) {
		p, err := parsePacket(strings.Split(strings.TrimRight(line, "\n"), "\t"))
		if err != nil {
			r.t.Fatalf("packet %q: %v", line, err)
		}
		all = append(all, p)
	}
	return all
}

func parsePacket(f []string) (p packet, err error) {
	if len(f) != 13 {
		return p, fmt.Errorf("%d fields", len(f))
	}
	join := func(a, b string, i int) string { return net.JoinHostPort(f[i]+f[i+2], a+b) }
	var errs [6]error
	p.from, errs[0] = netip.ParseAddrPort(join(f[4], f[6], 0))
	p.to, errs[1] = netip.ParseAddrPort(join(f[5], f[7], 1))
	if f[8] != "" {
		var flags uint64
		flags, errs[2] = strconv.ParseUint(f[8], 0, 16)
		p.flags = int(flags)
	}
	p.payload, errs[3] = hex.DecodeString(f[9] + f[10])
	var a, b frame.MAC
	a, errs[4] = frame.ParseMAC(f[11])
	b, errs[5] = frame.ParseMAC(f[12])
	key, _, _ := frame.Key(a, b)
	p.session = key.ID()
	return p, errors.Join(errs[:]...)
}

// How resets are shown: the one that was seen first, and another of the other side,
// without which a sensor does not take the flow for ended.
var byIntruder, byDecoy = []string{"< RA", "> RA"}, []string{"> RA", "< RA"}

// conversation is what one flow looks like in the feed.
type conversation struct {
	turns []string // "< text" of the intruder, "> text" of the service, joined where nothing came between
	flags []string
	sent  [2][]byte
	ids   map[deception.SessionID]bool
}

func conversationOf(all []packet, intruder netip.AddrPort) *conversation {
	c := &conversation{ids: map[deception.SessionID]bool{}}
	last := -1
	for _, p := range all {
		side, mark := 0, "< "
		switch intruder {
		case p.from:
		case p.to:
			side, mark = 1, "> "
		default:
			continue
		}
		c.ids[p.session] = true
		c.flags = append(c.flags, mark+flagNames(p.flags))
		if len(p.payload) == 0 {
			continue
		}
		c.sent[side] = append(c.sent[side], p.payload...)
		if side == last {
			c.turns[len(c.turns)-1] += string(p.payload)
		} else {
			c.turns = append(c.turns, mark+string(p.payload))
		}
		last = side
	}
	return c
}

func flagNames(flags int) string {
	var out []byte
	for i, name := range "FSRPA" {
		if name != 'P' && flags&(1<<i) != 0 {
			out = append(out, byte(name))
		}
	}
	return string(out)
}

// want compares with what was said; ends are the flags of its last segments that
// are more than acknowledgements.
func (c *conversation) want(t *testing.T, what string, id deception.SessionID, turns []string, ends ...string) {
	t.Helper()
	if len(c.ids) != 1 || !c.ids[id] {
		t.Errorf("%s: the MAC addresses tell of sessions %v, want %s", what, c.ids, id)
	}
	if got := strings.Join(c.turns, "|"); got != strings.Join(turns, "|") {
		t.Errorf("%s: the feed shows\n%.1000q\nwant\n%.1000q", what, got, strings.Join(turns, "|"))
	}
	var got []string
	for _, f := range c.flags {
		if strings.ContainsAny(f, "SFR") {
			got = append(got, f)
		}
	}
	if want := append([]string{"< S", "> SA"}, ends...); strings.Join(got, "|") != strings.Join(want, "|") {
		t.Errorf("%s: the feed shows segments %q, want %q", what, got, want)
	}
}

// stopAndRead ends a process in order and returns what its feed has shown.
func (g *gatewayProcess) stopAndRead(r *reader) []packet {
	g.t.Helper()
	if err := g.Stop(g.t.Context()); err != nil {
		g.t.Error(err)
	}
	return r.packets()
}

// What the intruder and the decoy say is in the feed of the ingress to the byte, in
// the order in which it was said, with the addresses that the intruder sees; the
// egress, which carries the same flows, shows none.
func TestFeedOfAHop(t *testing.T) {
	t.Setenv(feedVar, t.TempDir())
	w := newWorld(t)
	w.startBoth()
	shown, hidden := read(t, "ingress"), read(t, "egress")
	w.ingress.hears("that it reaches the egress", func(said word) bool { return len(said.Links) > 0 && said.Links[0].Connected })
	type said struct {
		from  netip.AddrPort
		turns []string
		ends  []string
	}
	var flows []said
	for _, decoy := range []string{decoy4, decoy6} {
		at := net.JoinHostPort(decoy, "1007")
		c := w.dial(w.client, "tcp", at)
		c.wantEcho(t, "ask")
		turns := []string{"> " + peerLine(c.local), "< ask", "> ask"}
		for i := range 50 {
			text := fmt.Sprintf("ask %d", i)
			c.wantLine(t, text)
			turns = append(turns, "< "+text, "> "+text)
		}
		closeWrite(t, c)
		if _, err := c.r.ReadByte(); !errors.Is(err, io.EOF) {
			t.Errorf("want the service's FIN, got %v", err)
		}
		flows = append(flows, said{c.local, turns, []string{"< FA", "> FA"}})

		c = w.dial(w.client, "tcp", at)
		c.wantEcho(t, "ask")
		if err := errors.Join(c.Conn.(*net.TCPConn).SetLinger(0), c.Close()); err != nil {
			t.Fatal(err)
		}
		flows = append(flows, said{c.local, []string{"> " + peerLine(c.local), "< ask", "> ask"}, byIntruder})
	}
	large := randomBytes(6 << 20)
	c := w.dial(w.client, "tcp", at1007)
	echoed := c.echoAll(t, large)
	datagrams := w.dial(w.client, "udp", at1007)
	datagrams.wantDatagram(t, "one")
	datagrams.wantDatagram(t, "two")

	for _, f := range append(flows, said{from: c.local}) {
		w.ingress.ended(f.from)
	}
	all := w.ingress.stopAndRead(shown)
	for _, f := range flows {
		conversationOf(all, f.from).want(t, f.from.String(), w.ingress.ended(f.from).ID, f.turns, f.ends...)
	}
	conversationOf(all, c.local).wantEchoed(t, large, echoed)
	conversationOf(all, datagrams.local).wantTurns(t, "< one", "> "+peerLine(datagrams.local)+"one", "< two", "> "+peerLine(datagrams.local)+"two")
	for _, p := range all {
		if decoy := []netip.AddrPort{p.from, p.to}; decoy[0].Port() != 1007 && decoy[1].Port() != 1007 {
			t.Errorf("the feed shows a packet from %s to %s", p.from, p.to)
		}
	}
	if got := w.egress.stopAndRead(hidden); len(got) != 0 {
		t.Errorf("the egress shows %d packets, the first from %s to %s", len(got), got[0].from, got[0].to)
	}
}

// The same for flows that an agent brings, and one that the service refuses: the
// intruder saw a handshake and a reset.
func TestFeedOfATunnel(t *testing.T) {
	t.Setenv(feedVar, t.TempDir())
	h := newHome(t)
	h.start()
	r := read(t, "home")
	agent := h.agent("crm-1", 1)
	tcp := h.flow("crm-1", "192.0.2.20:1007")
	conn := h.open(agent, tcp)
	conn.wantEcho()
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.r.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("want the service's FIN, got %v", err)
	}
	reset := h.flow("crm-1", "[2001:db8:2::20]:1007")
	conn = h.open(agent, reset)
	conn.wantEcho()
	conn.Reset(deception.EndClientReset)
	refused := h.flow("crm-1", "192.0.2.20:4008")
	h.open(agent, refused).wantEnd(deception.EndRefused)
	homeless := h.flow("crm-1", "[2001:db8:2::20]:4007")
	h.open(agent, homeless).wantEnd(deception.EndRefused)
	udp := h.flow("crm-1", "192.0.2.20:1161")
	udp.Transport = deception.UDP
	conn = h.open(agent, udp)
	conn.wantEcho()
	conn.Reset(deception.EndIdle)
	for _, f := range []netip.AddrPort{tcp.Source, reset.Source, refused.Source, homeless.Source, udp.Source} {
		h.process.ended(f)
	}
	all := h.process.stopAndRead(r)
	echo := []string{"< hello\n", "> hello\n"}
	conversationOf(all, tcp.Source).want(t, "closed", tcp.Session, append([]string{"> " + peerLine(tcp.Source)}, echo...), "< FA", "> FA")
	conversationOf(all, reset.Source).want(t, "reset", reset.Session, append([]string{"> " + peerLine(reset.Source)}, echo...), byIntruder...)
	conversationOf(all, refused.Source).want(t, "refused", refused.Session, nil, byDecoy...)
	conversationOf(all, homeless.Source).want(t, "homeless", homeless.Session, nil, byDecoy...)
	conversationOf(all, udp.Source).wantTurns(t, "< ask", "> "+peerLine(udp.Source)+"ask")
}

func (c *conversation) wantTurns(t *testing.T, turns ...string) {
	t.Helper()
	if got := strings.Join(c.turns, "|"); got != strings.Join(turns, "|") {
		t.Errorf("the feed shows %q, want %q", got, turns)
	}
}

// wantEchoed wants both directions to the byte, and nothing echoed before it was
// sent.
func (c *conversation) wantEchoed(t *testing.T, sent, echoed []byte) {
	t.Helper()
	if !bytes.Equal(c.sent[0], sent) || !bytes.Equal(c.sent[1], echoed) {
		t.Errorf("the feed shows %d and %d bytes, want %d and %d, and the same", len(c.sent[0]), len(c.sent[1]), len(sent), len(echoed))
	}
	line := len(echoed) - len(sent) // what the service says first
	asked, answered := 0, -line
	for _, turn := range c.turns {
		if strings.HasPrefix(turn, "< ") {
			asked += len(turn) - 2
		} else {
			answered += len(turn) - 2
		}
		if answered > asked {
			t.Fatalf("the feed shows %d bytes echoed when %d were sent", answered, asked)
		}
	}
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b) // it never fails
	return b
}

// echoAll sends all of b, half-closes, and returns all that comes back.
func (c *conn) echoAll(t *testing.T, b []byte) []byte {
	t.Helper()
	go func() {
		_, _ = c.Write(b) // what fails here comes back short
		closeWrite(t, c)
	}()
	back, err := io.ReadAll(c.r)
	if err != nil {
		t.Fatal(err)
	}
	return back
}

func closeWrite(t *testing.T, c *conn) {
	t.Helper()
	if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Error(err)
	}
}

// wantLine wants the text back.
func (c *conn) wantLine(t *testing.T, text string) {
	t.Helper()
	got := make([]byte, len(text))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c.r, got); err != nil || string(got) != text {
		t.Fatalf("echo %q, %v", got, err)
	}
}

func (c *conn) wantDatagram(t *testing.T, text string) {
	t.Helper()
	b := make([]byte, 2000)
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(b); err != nil || string(b[:n]) != peerLine(c.local)+text {
		t.Fatalf("answered %q, %v", b[:n], err)
	}
}
