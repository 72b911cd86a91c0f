package tunnel

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
)

// rogue is a client of its own making.
type rogue struct {
	*tls.Conn
	t  testing.TB
	in *scanner
}

// dial connects with a certificate that is good, and says hello.
func (st *site) dial() *rogue {
	st.t.Helper()
	cfg := tunnelTLS(st.ca.clientTLS(st.t, "crm-1")("hq"))
	c, err := tls.Dial("tcp", st.address.String(), cfg)
	if err != nil {
		st.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	st.t.Cleanup(func() { c.Close() })
	s := &rogue{Conn: c, t: st.t, in: newScanner(c)}
	s.send(hello{helloVersion, MaxStreams, firstWindow}.append(nil))
	if f := s.want(frameHello); len(f.payload) != helloSize {
		st.t.Fatalf("hello of %d bytes", len(f.payload))
	}
	return s
}

func (s *rogue) send(frames ...[]byte) {
	for _, f := range frames {
		s.Write(f)
	}
}

// want reads until a frame of a type comes.
func (s *rogue) want(kind frameType) frame {
	s.t.Helper()
	for {
		f, err := s.in.next()
		if err != nil {
			s.t.Fatalf("waiting for a %v frame: %v", kind, err)
		}
		if f.kind == kind {
			return f
		}
	}
}

// TestViolations breaks each rule of the protocol. The connection ends, the peer
// is told why, it is counted, and others go on.
func TestViolations(t *testing.T) {
	open := raw(frameOpen, 0, 0x10000, nil)
	datagrams := raw(frameOpen, flagDatagrams, 0x10000, nil)
	data := func(flags uint8, n int) []byte { return raw(frameData, flags, 0x10000, make([]byte, n)) }
	var overrun [][]byte
	for n := 0; n <= firstWindow; n += maxPayload {
		overrun = append(overrun, data(0, maxPayload))
	}
	var empties [][]byte
	for n := 0; n <= datagramFirst*firstWindow; n += datagramCost {
		empties = append(empties, data(0, 0))
	}
	var huge [][]byte
	for n := 0; n <= MaxDatagram; n += maxPayload {
		huge = append(huge, data(flagMore, maxPayload))
	}
	join := func(first []byte, rest ...[]byte) [][]byte { return append([][]byte{first}, rest...) }
	tests := map[string]struct {
		frames [][]byte
		says   string
	}{
		"unknown type":           {join([]byte{99, 0, 0, 0, 0, 0, 0, 0}), "unknown frame type 99"},
		"second hello":           {join(hello{helloVersion, 1, 1}.append(nil)), "second hello"},
		"window overrun":         {join(open, overrun...), "which was allowed"},
		"endless empties":        {join(datagrams, empties...), "which was allowed"},
		"huge datagram":          {join(datagrams, huge...), "datagram of more than"},
		"empty data":             {join(open, data(0, 0)), "without data"},
		"piece in bytes":         {join(open, data(flagMore, 1)), "carries bytes"},
		"data after fin":         {join(open, raw(frameFIN, 0, 0x10000, nil), data(0, 1)), "after its end"},
		"second fin":             {join(open, raw(frameFIN, 0, 0x10000, nil), raw(frameFIN, 0, 0x10000, nil)), "second end"},
		"fin within datagram":    {join(datagrams, data(flagMore, 1), raw(frameFIN, 0, 0x10000, nil)), "within a datagram"},
		"never opened":           {join(data(0, 1)), "never opened"},
		"of another use":         {join(open, raw(frameData, 0, 0x20000, []byte("x"))), "its place"},
		"opened twice":           {join(open, raw(frameOpen, 0, 0x20000, nil)), "has not ended"},
		"reset without reason":   {join(open, raw(frameReset, 0, 0x10000, []byte{0})), "without a reason"},
		"empty window":           {join(open, raw(frameWindow, 0, 0x10000, []byte{0, 0, 0, 0})), "a window of 0 bytes"},
		"endless window":         {join(open, raw(frameWindow, 0, 0x10000, []byte{255, 255, 255, 255})), "a window of"},
		"message from an agent":  {join(raw(frameMessage, 0, 0, make([]byte, messagePrefix))), "only gateways do"},
		"header of 1025 bytes":   {join(raw(frameOpen, 0, 0x10000, make([]byte, MaxHeader+1))), "open frame of 1025 bytes"},
		"ping of a stream":       {join(raw(framePing, 0, 0x10000, make([]byte, 8))), "for stream"},
		"open with unknown flag": {join(raw(frameOpen, 0x40, 0x10000, nil)), "flags 0x40"},
	}
	quit := make(chan struct{})
	st := newSite(t, func(node string, s *Stream) {
		if node != "crm-1" {
			echo(node, s)
			return
		}
		<-quit
	})
	defer close(quit)
	good := st.clientWith(ClientConfig{TLS: st.ca.clientTLS(t, "crm-2")})
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			before := st.server.Status().Broken
			s := st.dial()
			s.send(test.frames...)
			if text := string(s.want(frameBye).payload); !strings.Contains(text, test.says) {
				t.Errorf("the peer was told %q, want %q in it", text, test.says)
			}
			eventually(t, "counted", func() bool { return st.server.Status().Broken == before+1 })
			refused := st.refusals()
			if err := refused[len(refused)-1]; !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "crm-1") {
				t.Errorf("reported as %v", err)
			}
		})
	}
	exchange(t, openOne(t, good), "others go on")
}

// openOne is open where a frame has that name.
func openOne(t testing.TB, c *Client) *Stream { return open(t, c, "", false) }

// TestLateFrames sends for streams that have ended already: that is no violation,
// the peer could not know.
func TestLateFrames(t *testing.T) {
	st := newSite(t, func(_ string, s *Stream) { s.Reset(deception.EndDenied) })
	s := st.dial()
	s.send(raw(frameOpen, 0, 0x10000, nil))
	if f := s.want(frameReset); f.stream != 0x10000 || deception.EndReason(f.payload[0]) != deception.EndDenied {
		t.Errorf("reset of %#x", f.stream)
	}
	s.send(raw(frameData, 0, 0x10000, []byte("late")), raw(frameWindow, 0, 0x10000, []byte{0, 0, 1, 0}),
		raw(frameFIN, 0, 0x10000, nil), raw(frameReset, 0, 0x10000, []byte{1}))
	s.send(raw(frameOpen, 0, 0x20000, nil))
	if f := s.want(frameReset); f.stream != 0x20000 {
		t.Errorf("reset of %#x", f.stream)
	}
}

// TestTooManyStreams opens more than a connection carries; the rest is refused
// one by one.
func TestTooManyStreams(t *testing.T) {
	quit := make(chan struct{})
	st := newSite(t, func(_ string, s *Stream) { <-quit })
	defer close(quit)
	s := st.dial()
	go func() {
		var b []byte
		for i := range MaxStreams + 10 {
			b = append(b, raw(frameOpen, 0, streamID(uint16(i), 1), nil)...)
		}
		s.send(b)
	}()
	for i := range 10 {
		f := s.want(frameReset)
		if f.stream != streamID(uint16(MaxStreams+i), 1) || deception.EndReason(f.payload[0]) != deception.EndOverload {
			t.Fatalf("reset of %#x with reason %d", f.stream, f.payload[0])
		}
	}
	// Resetting them makes no room while their goroutines run.
	s.send(raw(frameReset, 0, 0x10000, []byte{byte(deception.EndClientReset)}), raw(frameOpen, 0, 0x20000, nil))
	if f := s.want(frameReset); f.stream != 0x20000 {
		t.Errorf("reset of %#x", f.stream)
	}
	if n := st.server.Status().Peers[0].Streams; n != MaxStreams-1 {
		t.Errorf("%d streams", n)
	}
}

// TestMemoryIsBounded fills more windows than the server has memory for. The
// streams that hold most are reset, one that is read goes on.
func TestMemoryIsBounded(t *testing.T) {
	const limit = 2 << 20
	quit := make(chan struct{})
	st := newSite(t, func(node string, s *Stream) {
		if string(s.Header()) == "echo" {
			echo(node, s)
			return
		}
		<-quit
	})
	defer close(quit)
	st.server.budget.limit = limit
	s := st.dial()
	const streams = 200
	go func() {
		s.send(raw(frameOpen, 0, streamID(streams, 1), []byte("echo")))
		for i := range streams {
			id := streamID(uint16(i), 1)
			s.send(raw(frameOpen, 0, id, nil))
			for range firstWindow / maxPayload {
				s.send(raw(frameData, 0, id, make([]byte, maxPayload)))
			}
		}
		s.send(raw(frameData, 0, streamID(streams, 1), []byte("still read")))
	}()
	resets := 0
	for {
		f, err := s.in.next()
		if err != nil {
			t.Fatal(err)
		}
		if f.kind == frameReset {
			if f.stream == streamID(streams, 1) || deception.EndReason(f.payload[0]) != deception.EndOverload {
				t.Errorf("reset of stream %#x with reason %d", f.stream, f.payload[0])
			}
			resets++
		}
		if held := st.server.Status().Held; held > limit+maxFrame {
			t.Fatalf("%d bytes are held", held)
		}
		if f.kind == frameData {
			break
		}
	}
	if least := streams - limit/(firstWindow/maxPayload*maxFrame); resets < least {
		t.Errorf("%d streams were reset, want at least %d", resets, least)
	}
}

// TestStrangers shows what becomes of those who are no agents, and what is said
// of them.
func TestStrangers(t *testing.T) {
	st := newSite(t, echo)
	other := newAuthority(t)
	good := st.ca.clientTLS(t, "crm-1")("hq")
	with := func(change func(*tls.Config)) *tls.Config {
		cfg := tunnelTLS(good)
		change(cfg)
		return cfg
	}
	talk := func(cfg *tls.Config, b []byte) func(net.Conn) {
		return func(c net.Conn) {
			tc := tls.Client(c, cfg)
			if tc.Handshake() == nil {
				tc.Write(b)
				io.Copy(io.Discard, tc)
			}
		}
	}
	write := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			io.WriteString(c, text)
			c.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, c)
		}
	}
	for name, test := range map[string]struct {
		do   func(net.Conn)
		want error
		says string
	}{
		"port scan":       {func(net.Conn) {}, errGone, ""},
		"HTTP":            {write("GET / HTTP/1.1\r\n\r\n"), nil, "TLS handshake"},
		"garbage":         {write(strings.Repeat("\xff", 5000)), nil, "TLS handshake"},
		"half a hello":    {write("\x16\x03\x01\x02\x00\x01\x00"), errGone, ""},
		"no certificate":  {talk(with(func(c *tls.Config) { c.Certificates = nil }), nil), nil, "certificate"},
		"another CA":      {talk(with(func(c *tls.Config) { c.Certificates = []tls.Certificate{other.node(t, "crm-1")} }), nil), nil, "certificate"},
		"TLS 1.2":         {talk(with(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }), nil), nil, "version"},
		"no ALPN":         {talk(with(func(c *tls.Config) { c.NextProtos = nil }), nil), ErrVersion, ""},
		"later protocol":  {talk(with(func(c *tls.Config) { c.NextProtos = []string{"decoynet/2"} }), nil), ErrVersion, ""},
		"later hello":     {talk(with(func(*tls.Config) {}), hello{helloVersion + 1, 1, 1}.append(nil)), ErrVersion, ""},
		"no hello":        {talk(with(func(*tls.Config) {}), raw(framePing, 0, 0, make([]byte, 8))), ErrProtocol, "before the hello"},
		"no frame at all": {talk(with(func(*tls.Config) {}), []byte("GET / HTTP/1.1\r\n\r\n")), ErrProtocol, ""},
	} {
		t.Run(name, func(t *testing.T) {
			before := len(st.refusals())
			c, err := net.Dial("tcp", st.address.String())
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(patience))
			within(t, "the peer's part", func() { test.do(c) })
			c.Close()
			eventually(t, "refused", func() bool { return len(st.refusals()) == before+1 })
			got := st.refusals()[before]
			if test.want != nil && !errors.Is(got, test.want) || !strings.Contains(got.Error(), test.says) {
				t.Errorf("refused with %q, want %v and %q in it", got, test.want, test.says)
			}
		})
	}
	if s := st.server.Status(); s.Refused != uint64(len(st.refusals())) || s.Strangers != 0 {
		t.Errorf("status: %+v", s)
	}
	exchange(t, open(t, st.client(), "", false), "agents are served")
}

// TestManyStrangers holds more connections open than may be unknown at once. An
// agent still gets in.
func TestManyStrangers(t *testing.T) {
	st := newSite(t, echo)
	for range maxStrangers + 50 {
		c, err := net.Dial("tcp", st.address.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	eventually(t, "all accepted", func() bool { return st.server.Status().Strangers == maxStrangers })
	exchange(t, open(t, st.client(), "", false), "agents are served")
	if n := st.server.Status().Strangers; n > maxStrangers {
		t.Errorf("%d strangers", n)
	}
}

// TestRefusedByName shows that a client is told why its node is not let in, and
// that a node cannot make connections without end.
func TestRefusedByName(t *testing.T) {
	ca := newAuthority(t)
	st := &site{t: t, ca: ca}
	st.server = NewServer(ServerConfig{
		TLS: ca.serverTLS(t, "hq"), Serve: echo,
		Node: func(state tls.ConnectionState) (string, error) {
			name, _ := peerName(state)
			if name == "crm-2" {
				return "", fmt.Errorf("node %s was revoked", name)
			}
			return name, nil
		},
	})
	defer st.server.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	st.address = l.Addr().(*net.TCPAddr).AddrPort()
	go st.server.Serve(l)
	c := st.clientWith(ClientConfig{TLS: ca.clientTLS(t, "crm-2")})
	eventually(t, "the client knows", func() bool { return strings.Contains(c.Status()[0].Err, "crm-2 was revoked") })

	c = st.clientWith(ClientConfig{Connections: maxPeerConns + 1})
	eventually(t, "the client knows", func() bool { return strings.Contains(c.Status()[0].Err, errTooMany.Error()) })
	// One that was lost meanwhile may wait for its next attempt longer than a test does.
	if n := len(st.server.Status().Peers); n > maxPeerConns || n < maxPeerConns-1 {
		t.Errorf("%d connections of one node; as many as may be are %d", n, maxPeerConns)
	}
}

// TestOtherVersion connects to servers that speak TLS, but not this protocol.
func TestOtherVersion(t *testing.T) {
	for name, protocols := range map[string][]string{"later": {"decoynet/2"}, "none": nil} {
		t.Run(name, func(t *testing.T) {
			ca := newAuthority(t)
			cfg := ca.serverTLS(t, "hq")
			cfg.NextProtos = protocols
			l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.(*tls.Conn).Handshake()
					c.Close()
				}
			}()
			st := &site{t: t, ca: ca, address: l.Addr().(*net.TCPAddr).AddrPort()}
			c := st.client()
			eventually(t, "status says so", func() bool { return strings.Contains(c.Status()[0].Err, "different versions") })
			c.Close()
			l.Close()
			within(t, "the server's end", func() { <-done })
		})
	}
}

// TestHostileGateway lets the gateway break the rules.
func TestHostileGateway(t *testing.T) {
	for name, test := range map[string]struct {
		frame []byte
		says  string
	}{
		"opens a stream":   {raw(frameOpen, 0, 0x10005, nil), "only agents do"},
		"never opened":     {raw(frameFIN, 0, 0x10005, nil), "never opened"},
		"message too long": {raw(frameMessage, flagMore, 0, make([]byte, maxPayload)), "message of more than"},
		"within a message": {raw(frameMessage, flagMore, 0, binary.BigEndian.AppendUint64(make([]byte, 8), 1)), "within another"},
	} {
		t.Run(name, func(t *testing.T) {
			ca := newAuthority(t)
			cfg := tunnelTLS(ca.serverTLS(t, "hq"))
			l, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.SetDeadline(time.Now().Add(patience))
					c.Write(hello{helloVersion, 100, firstWindow}.append(nil))
					if name == "within a message" {
						c.Write(raw(frameMessage, flagMore, 0, make([]byte, messagePrefix)))
					}
					for range MaxMessage/maxPayload + 2 {
						c.Write(test.frame)
					}
					io.Copy(io.Discard, c)
					c.Close()
				}
			}()
			st := &site{t: t, ca: ca, address: l.Addr().(*net.TCPAddr).AddrPort()}
			c := st.clientWith(ClientConfig{Told: func(string, []byte) {}})
			eventually(t, "status says so", func() bool { return strings.Contains(c.Status()[0].Err, test.says) })
			c.Close()
			l.Close()
			within(t, "the gateway's end", func() { <-done })
		})
	}
}
