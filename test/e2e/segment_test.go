//go:build linux

package e2e

import (
	"bufio"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"decoynet/internal/lab"
)

// TestSegment looks at decoys as a neighbour on the wire does, and compares them
// with a plain host in the same network.
func TestSegment(t *testing.T) {
	t.Parallel()
	o := newRelayOffice(t, "auto")
	st, err := o.status()
	check(t, err)
	mac := st.Segments[0].MAC
	production := o.capture(o.Production, "eth0", "ether src "+mac+" and not multicast")
	before, err := o.Production.Snapshot(t.Context())
	check(t, err)
	for _, part := range []struct {
		name string
		test func(o *relayOffice)
	}{
		{"Sweep", (*relayOffice).testSweep},
		{"Neighbours6", func(o *relayOffice) { o.testNeighbours6(mac) }},
		{"Ping", (*relayOffice).testPing},
		{"Refusals", (*relayOffice).testRefusals},
		{"Scan", (*relayOffice).testScan},
		{"OwnHost", (*relayOffice).testOwnHost},
		{"OneMAC", func(o *relayOffice) { o.testOneMAC(mac) }},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(o.in(t)) })
	}
	after, err := o.Production.Snapshot(t.Context())
	check(t, err)
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("the production host has changed (-before +after):\n%s", diff)
	}
	production.none()
	o.down()
	o.wantNoErrorLogged()
}

// testSweep has nmap ask the whole subnet by ARP who is there.
func (o *relayOffice) testSweep() {
	var want []string
	for _, r := range [][2]int{{5, 5}, {10, 10}, {100, 150}, {200, 200}, {247, 247}, {66, 66}} {
		for i := r[0]; i <= r[1]; i++ {
			want = append(want, fmt.Sprintf("192.0.2.%d", i))
		}
	}
	var got []string
	for line := range strings.Lines(o.run("nmap", "-n", "-sn", "-T4", "-oG", "-", "192.0.2.0/24")) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Host:" {
			got = append(got, f[1])
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		o.t.Errorf("hosts that answer ARP (-want +got):\n%s", diff)
	}
}

// testNeighbours6 asks by neighbour discovery: the addresses of decoys are
// there, those beside them are not.
func (o *relayOffice) testNeighbours6(mac string) {
	ask := func(addr string) (string, error) {
		out, err := o.Intruder.Run(o.t.Context(), "ndisc6", "-q", "-1", "-n", "-r", "2", "-w", "700", addr, "eth0")
		return strings.ToLower(strings.TrimSpace(out)), err
	}
	var asking sync.WaitGroup
	for addr, decoy := range map[string]bool{
		"2001:db8:2::ff": false, "2001:db8:2::100": true, "2001:db8:2::108": true, "2001:db8:2::10f": true,
		"2001:db8:2::110": false, "2001:db8:2::1ff": false, "2001:db8:2::200": true, "2001:db8:2::201": false,
	} {
		asking.Go(func() {
			got, err := ask(addr)
			if decoy && (err != nil || got != mac) {
				o.t.Errorf("%s is at %q (%v), want %s", addr, got, err, mac)
			} else if !decoy && err == nil {
				o.t.Errorf("%s is no decoy and is at %s", addr, got)
			}
		})
	}
	asking.Wait()
}

func (o *relayOffice) testPing() {
	ping := func(addr string, size int) error {
		_, err := o.Intruder.Run(o.t.Context(), "ping", "-n", "-q", "-c", "1", "-W", "2", "-s", fmt.Sprint(size), addr)
		return err
	}
	var pings sync.WaitGroup
	for _, addr := range both {
		for _, size := range []int{56, 4000} { // one packet, and fragments
			pings.Go(func() {
				if err := ping(addr, size); err != nil {
					o.t.Errorf("ping decoy: %v", err)
				}
			})
		}
	}
	for _, addr := range []string{"192.0.2.99", "192.0.2.151", "192.0.2.246", "2001:db8:2::ff", "2001:db8:2::110"} {
		pings.Go(func() {
			if ping(addr, 56) == nil {
				o.t.Errorf("%s is no decoy and answers ping", addr)
			}
		})
	}
	pings.Wait()
}

// numbers are what differs between two answers of the same kind.
var numbers = regexp.MustCompile(`(ack|seq) \d+|\.\d+: Flags|(\d+\.){3}\d+(\.\d+)?|2001:db8:2::[0-9a-f]+(\.\d+)?|^[0-9.]+ \S+ > \S+ `)

// testRefusals contacts ports that are not bound, and compares the answers on
// the wire with those of the production host: the same kind, and at once.
func (o *relayOffice) testRefusals() {
	for i, hosts := range [][2]string{{"192.0.2.100", "192.0.2.10"}, {"2001:db8:2::100", "2001:db8:2::10"}} {
		seen := o.capture(o.Intruder, "eth0", fmt.Sprintf("host %s or host %s", hosts[0], hosts[1]))
		for kind, command := range map[string][]string{
			"tcp": {"nc", "-n", "-z", "-w", "2", "-p", fmt.Sprint(21000 + i), "", "81"},
			"udp": {"sh", "-c", fmt.Sprintf("echo x | nc -n -u -w 1 -q 0 -p %d $0 1234; true", 21000+i)},
		} {
			var answers []string
			for _, host := range hosts {
				args := slices.Clone(command)
				var toPort string
				if kind == "tcp" {
					args[len(args)-2], toPort = host, ".81:"
				} else {
					args, toPort = append(args, host), ".1234:"
				}
				began := time.Now()
				_, err := o.Intruder.Run(o.t.Context(), args[0], args[1:]...)
				if kind == "tcp" && (err == nil || time.Since(began) > time.Second) {
					o.t.Errorf("nc to port 81 of %s: %v after %s", host, err, time.Since(began))
				}
				answers = append(answers, seen.answer(host, toPort, kind))
			}
			if diff := cmp.Diff(answers[1], answers[0]); diff != "" {
				o.t.Errorf("the refusal of %s by %s is not that of %s (-want +got):\n%s", kind, hosts[0], hosts[1], diff)
			}
			o.t.Logf("refusal: %s", answers[0])
		}
	}
}

// answer waits for a host's refusal of what was sent to its port, and returns it
// without what is particular to it; it must have come at once.
func (c *capture) answer(host, toPort, kind string) string {
	c.t.Helper()
	words := []string{": " + host + ".", "Flags [R"}
	if kind == "udp" {
		words = []string{": " + host + " >", "unreachable"} // ICMP has no port
	}
	c.want(words...)
	asked, answered := c.lines("> "+host+toPort), c.lines(words...)
	if len(asked) == 0 || len(answered) == 0 {
		c.t.Fatalf("no refusal of %s by %s in:\n%s", kind, host, strings.Join(c.lines(), "\n"))
	}
	var at [2]float64
	for i, line := range []string{asked[0], answered[0]} {
		if _, err := fmt.Sscan(line, &at[i]); err != nil {
			c.t.Fatal(err)
		}
	}
	if took := at[1] - at[0]; took > 0.5 {
		c.t.Errorf("%s was refused by %s after %.3f s", kind, host, took)
	}
	return numbers.ReplaceAllString(answered[0], "_")
}

// testScan has nmap judge decoys and the production host: open ports are open,
// all others are closed for the same reason.
func (o *relayOffice) testScan() {
	state := regexp.MustCompile(`(?m)^(\d+/\w+) +(\S+) +\S+ +(.*)$`)
	scan := func(host, ports string) map[string]string {
		args := []string{"-n", "-Pn", "-sS", "-sU", "-T4", "--reason", "-p", ports, host}
		if strings.Contains(host, ":") {
			args = append(args, "-6")
		}
		out := map[string]string{}
		for _, m := range state.FindAllStringSubmatch(o.run("nmap", args...), -1) {
			out[m[1]] = m[2] + " " + m[3]
		}
		return out
	}
	for _, hosts := range [][2]string{{"192.0.2.102", "192.0.2.10"}, {"2001:db8:2::102", "2001:db8:2::10"}} {
		const ports = "T:79,80,81,443,T:65535,U:53,80"
		got, want := scan(hosts[0], ports), scan(hosts[1], ports)
		if diff := cmp.Diff(want, got); diff != "" || len(got) != 7 {
			o.t.Errorf("nmap sees %s otherwise than %s (-production +decoy):\n%s", hosts[0], hosts[1], diff)
		}
	}
	got := scan("192.0.2.103", "T:2222,6379,8000,U:161")
	for port, want := range map[string]string{
		"2222/tcp": "open syn-ack", "6379/tcp": "open syn-ack", "8000/tcp": "closed reset", // its service is down
	} {
		if !strings.HasPrefix(got[port], want) {
			o.t.Errorf("%s is %q, want %q", port, got[port], want)
		}
	}
	if !strings.HasPrefix(got["161/udp"], "open") {
		o.t.Errorf("161/udp is %q, want open", got["161/udp"])
	}
}

// testOwnHost contacts the machine that decoynet runs on, and the production
// host, as if there were no decoys.
func (o *relayOffice) testOwnHost() {
	for _, addr := range []netip.Addr{lab.OfficeGateway.V4, lab.OfficeGateway.V6} {
		own := newPuppet(o.t, o.Gateway, 7000+addr.BitLen())
		client := o.dial(at(addr.String(), 7000+addr.BitLen()))
		say(o.t, client, own.take(o.t), "hello")
		o.run("ping", "-n", "-q", "-c", "1", "-W", "2", addr.String())
	}
	for _, addr := range []netip.Addr{lab.OfficeProduction.V4, lab.OfficeProduction.V6} {
		body, from := o.curl("http://" + at(addr.String(), 80) + "/")
		if !strings.HasPrefix(body, "machine production\n") {
			o.t.Errorf("the production host says %q", body)
		}
		o.wantPeer(o.ProductionWeb, from)
	}
}

// testOneMAC asks for the MAC addresses behind decoys: it is one, another than
// the machine's own, and the same after a restart.
func (o *relayOffice) testOneMAC(mac string) {
	arping := func(addr string) (string, error) {
		out, err := o.Intruder.Run(o.t.Context(), "arping", "-r", "-c", "1", "-i", "eth0", addr)
		return strings.ToLower(strings.TrimSpace(out)), err
	}
	if own, err := arping(lab.OfficeGateway.V4.String()); err != nil || own == mac || own == "" {
		o.t.Errorf("the machine itself answers from %q (%v), decoys from %s", own, err, mac)
	}
	for round := range 2 {
		if round == 1 {
			o.down()
			o.up()
		}
		var asking sync.WaitGroup
		for _, addr := range []string{"192.0.2.100", "192.0.2.125", "192.0.2.247"} {
			asking.Go(func() {
				// A second answer would be a second line.
				if got, err := arping(addr); err != nil || got != mac {
					o.t.Errorf("%s is at %q (%v), want %s", addr, got, err, mac)
				}
			})
		}
		asking.Wait()
	}
}

// lineReader hands out a stream's lines with a deadline.
type lineReader struct{ lines chan string }

func newLineReader(r *bufio.Reader) *lineReader {
	l := &lineReader{lines: make(chan string, 100)}
	go func() {
		defer close(l.lines)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			l.lines <- strings.TrimRight(line, "\r\n")
		}
	}()
	return l
}

// next returns the next line, and false at the end of the stream.
func (l *lineReader) next(d time.Duration) (string, bool) {
	select {
	case line, ok := <-l.lines:
		return line, ok
	case <-time.After(d):
		return fmt.Sprintf("nothing within %s", d), false
	}
}
