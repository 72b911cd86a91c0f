//go:build linux

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/internal/lab"
)

// record is a recorded session as `get sessions -o json` prints it, under the
// names that others store and search.
type record struct {
	Timestamp       time.Time `json:"@timestamp"`
	ID              string    `json:"event.id"`
	Action          string    `json:"event.action"`
	Start           time.Time `json:"event.start"`
	End             time.Time `json:"event.end"`
	Duration        int64     `json:"event.duration"`
	SourceIP        string    `json:"source.ip"`
	SourcePort      uint16    `json:"source.port"`
	SourceNATIP     string    `json:"source.nat.ip"`
	SourceNATPort   uint16    `json:"source.nat.port"`
	SourceBytes     int64     `json:"source.bytes"`
	DestIP          string    `json:"destination.ip"`
	DestPort        uint16    `json:"destination.port"`
	DestNATIP       string    `json:"destination.nat.ip"`
	DestNATPort     uint16    `json:"destination.nat.port"`
	DestBytes       int64     `json:"destination.bytes"`
	Transport       string    `json:"network.transport"`
	NetworkType     string    `json:"network.type"`
	CommunityID     string    `json:"network.community_id"`
	Node            string    `json:"decoynet.node"`
	Segment         string    `json:"decoynet.segment"`
	Decoy           string    `json:"decoynet.decoy"`
	Service         string    `json:"decoynet.service"`
	Path            string    `json:"decoynet.path"`
	SourceMode      string    `json:"decoynet.source_mode"`
	EndReason       string    `json:"decoynet.end_reason"`
	SourceHead      []byte    `json:"decoynet.source_head"`
	DestinationHead []byte    `json:"decoynet.destination_head"`
}

func addrPort(ip string, port uint16) netip.AddrPort {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a, port)
}

func (s *record) source() netip.AddrPort    { return addrPort(s.SourceIP, s.SourcePort) }
func (s *record) sourceNAT() netip.AddrPort { return addrPort(s.SourceNATIP, s.SourceNATPort) }
func (s *record) dest() netip.AddrPort      { return addrPort(s.DestIP, s.DestPort) }
func (s *record) destNAT() netip.AddrPort   { return addrPort(s.DestNATIP, s.DestNATPort) }

// records lists sessions by the binary's own command.
func (o *office) records(args ...string) ([]record, error) {
	out, err := o.decoynet(append([]string{"get", "sessions", "-o", "json", "--limit", "0"}, args...)...)
	if err != nil {
		return nil, err
	}
	var list []record
	for line := range strings.Lines(out) {
		var s record
		if err := json.Unmarshal([]byte(line), &s); err != nil {
			return nil, fmt.Errorf("read %q: %w", line, err)
		}
		list = append(list, s)
	}
	return list, nil
}

// ended waits for the record of the newest ended session from source in this
// test; an earlier one may have had the same port.
func (o *office) ended(source netip.AddrPort) record {
	o.t.Helper()
	return o.recorded(source, func(s *record) bool { return s.EndReason != "" })
}

func (o *office) recorded(source netip.AddrPort, match func(*record) bool) record {
	o.t.Helper()
	var found record
	eventually(o.t, 15*time.Second, func() error {
		list, err := o.records("--source", source.Addr().String())
		if err != nil {
			return err
		}
		for i := range slices.Backward(list) {
			if s := &list[i]; s.source() == source && !s.Start.Before(o.since) && match(s) {
				found = *s
				return nil
			}
		}
		return fmt.Errorf("no such session from %s among %d", source, len(list))
	})
	return found
}

// wantReason checks how the newest session from source ended.
func (o *office) wantReason(source netip.AddrPort, reasons ...string) record {
	o.t.Helper()
	s := o.ended(source)
	if !slices.Contains(reasons, s.EndReason) {
		o.t.Errorf("the session of %s ended as %q, want %q", source, s.EndReason, reasons)
	}
	return s
}

// run runs a program as the intruder, which must succeed.
func (o *office) run(name string, args ...string) string {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), 30*time.Second)
	defer cancel()
	out, err := o.Intruder.Run(ctx, name, args...)
	check(o.t, err)
	return out
}

// runInput is run with something to read.
func (o *office) runInput(input, name string, args ...string) string {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), 30*time.Second)
	defer cancel()
	cmd := o.Intruder.Command(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(input), &stdout, &stderr
	if err := cmd.Run(); err != nil {
		o.t.Fatalf("%s %v: %v: %s", name, args, err, stderr.String())
	}
	return stdout.String()
}

// curl fetches a URL as the intruder and returns the answer's body and the
// client's own end of the connection, as curl itself tells it.
func (o *office) curl(url string, args ...string) (body string, from netip.AddrPort) {
	o.t.Helper()
	const marker = "\n--- "
	out := o.run("curl", append([]string{"-sSk", "-m", "20", "-w", marker + "%{http_code} %{local_ip} %{local_port}", url}, args...)...)
	at := strings.LastIndex(out, marker)
	var code int
	var ip string
	var port uint16
	if at < 0 {
		o.t.Fatalf("curl %s: %q", url, out)
	}
	if _, err := fmt.Sscanf(out[at+len(marker):], "%d %s %d", &code, &ip, &port); err != nil || code/100 != 2 {
		o.t.Fatalf("curl %s: status %d (%v)", url, code, err)
	}
	return out[:at], addrPort(ip, port)
}

// dial connects as the intruder; the connection is closed with the test.
func (o *office) dial(address string) *net.TCPConn {
	o.t.Helper()
	conn, err := o.tryDial(netip.AddrPort{}, address)
	check(o.t, err)
	o.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// tryDial connects as the intruder, from the given port where there is one.
// Like a scanner it lets several connections have one port.
func (o *office) tryDial(from netip.AddrPort, address string) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(o.t.Context(), 10*time.Second)
	defer cancel()
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		ctlErr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		})
		return errors.Join(ctlErr, err)
	}}
	dialer.SetMultipathTCP(false)
	if from.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(from)
	}
	var conn net.Conn
	err := o.Intruder.Do(func() (err error) {
		conn, err = dialer.DialContext(ctx, "tcp", address)
		return err
	})
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn.(*net.TCPConn), nil
}

// localAddr is the intruder's end of a connection.
func localAddr(conn net.Conn) netip.AddrPort {
	ap := netip.MustParseAddrPort(conn.LocalAddr().String())
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// refused tells whether a connection attempt met a closed port.
func (o *office) refused(address string) bool {
	conn, err := o.tryDial(netip.AddrPort{}, address)
	if err == nil {
		_ = conn.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}

// capture is tcpdump at one place.
type capture struct {
	t       *testing.T
	where   string
	process *lab.Process
}

// capture starts tcpdump and returns when it sees packets. It ends with the test.
func (o *office) capture(at *lab.Machine, link, filter string, options ...string) *capture {
	o.t.Helper()
	p, err := at.Start("tcpdump", append([]string{"-l", "-nn", "-tt", "-e", "--immediate-mode", "-i", link, filter}, options...)...)
	check(o.t, err)
	c := &capture{t: o.t, where: at.String() + " " + link, process: p}
	o.t.Cleanup(func() { _ = p.Kill() })
	eventually(o.t, 10*time.Second, func() error {
		if !strings.Contains(p.Log(), "listening on") {
			return fmt.Errorf("tcpdump does not run yet: %s", p.Log())
		}
		return nil
	})
	return c
}

// lines returns the packets seen so far that have all words in their line.
func (c *capture) lines(words ...string) []string {
	c.t.Helper()
	log, err := os.ReadFile(c.process.LogPath()) // Log has the end of it only
	check(c.t, err)
	var out []string
	for line := range strings.Lines(string(log)) {
		// A line without its end is still being written; a packet's begins
		// with its time.
		if !strings.HasSuffix(line, "\n") || len(line) == 0 || line[0] < '0' || line[0] > '9' {
			continue
		}
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

// want waits for a packet with all words.
func (c *capture) want(words ...string) {
	c.t.Helper()
	err := lab.Eventually(c.t.Context(), 3*time.Second, func() error {
		if len(c.lines(words...)) == 0 {
			return fmt.Errorf("no packet at %s has %q", c.where, words)
		}
		return nil
	})
	if err != nil {
		c.t.Errorf("%v; seen:\n%s", err, strings.Join(c.lines(), "\n"))
	}
}

// none checks that no packet with all words was seen.
func (c *capture) none(words ...string) {
	c.t.Helper()
	if seen := c.lines(words...); len(seen) > 0 {
		c.t.Errorf("packets at %s have %q:\n%s", c.where, words, strings.Join(seen, "\n"))
	}
}

// dotted writes an address and port as tcpdump does.
func dotted(a netip.AddrPort) string { return fmt.Sprintf("%s.%d", a.Addr(), a.Port()) }

// wantPeer checks that a server's own log names the peer.
func (o *office) wantPeer(s *lab.Server, peer netip.AddrPort) {
	o.t.Helper()
	if err := s.WaitPeer(o.t.Context(), 5*time.Second, peer); err != nil {
		o.t.Error(err)
	}
}

// writeDocument writes the document without waiting for anything.
func writeDocument(file, text string) error { return os.WriteFile(file, []byte(text), 0o600) }
