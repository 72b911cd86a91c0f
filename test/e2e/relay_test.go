//go:build linux

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"
)

// officeDocument has the services of the demo, and some that the tests start
// when they need them. What differs between tests is the steering.
const officeDocument = `
node: gw
segments:
  - name: office
    parent: eth0
    steering: %s
    subnets:
      - {prefix: 192.0.2.0/24, gateway: 192.0.2.1}
      - {prefix: "2001:db8:2::/64"}
zones:
  - name: linux
    subnet: [10.1.0.0/24, "fd00:1::/64"]
    link: br-linux
services:
  - {name: web, zone: linux, address: [10.1.0.2, "fd00:1::2"], ports: [80, 443]}
  - {name: files, zone: linux, address: [10.1.0.2, "fd00:1::2"], ports: [8080]}
  - {name: redis, zone: linux, address: [10.1.0.3, "fd00:1::3"], ports: [6379]}
  - {name: ssh, zone: linux, address: [10.1.0.4, "fd00:1::4"], ports: [22]}
  - {name: snmp, zone: linux, address: [10.1.0.5, "fd00:1::5"], ports: [161/udp]}
  - {name: script, zone: linux, address: [10.1.0.5, "fd00:1::5"], ports: [9000]}
  - {name: late, zone: linux, address: [10.1.0.5, "fd00:1::5"], ports: [8000]}
  - {name: victim, zone: linux, address: [10.1.0.5, "fd00:1::5"], ports: [8001]}
decoys:
  - name: office-web
    segment: office
    addresses: [192.0.2.100-192.0.2.150, 192.0.2.247, "2001:db8:2::100-2001:db8:2::10f"]
    bind:
      - {ports: [80, 443], service: web}
      - {ports: [8080], service: files}
      - {ports: [2222], service: ssh, target: 22}
      - {ports: [6379], service: redis}
      - {ports: [161/udp], service: snmp}
      - {ports: [9000], service: script}
      - {ports: [8000], service: late}
      - {ports: [8001], service: victim}
  - name: office-idle
    segment: office
    idle: 2s
    addresses: [192.0.2.200, "2001:db8:2::200"]
    bind:
      - {ports: [9000], service: script}
      - {ports: [161/udp], service: snmp}
`

var steerings = []string{"sk_lookup", "tproxy", "iptables"}

// relayOffice is an office with officeDocument and a service that is the
// test's own puppet.
type relayOffice struct {
	*office
	script *puppet
}

// in returns the office as a subtest sees it.
func (o *relayOffice) in(t *testing.T) *relayOffice {
	view := *o
	view.office = o.office.in(t)
	return &view
}

func newRelayOffice(t *testing.T, steering string) *relayOffice {
	t.Helper()
	o := &relayOffice{office: newOffice(t)}
	o.script = newPuppet(t, o.Linux, 9000)
	o.document(fmt.Sprintf(officeDocument, steering))
	o.up()
	return o
}

// TestRelay has real clients talk to real servers through decoys, however the
// connections are steered to the relay.
func TestRelay(t *testing.T) {
	for _, steering := range steerings {
		t.Run(steering, func(t *testing.T) {
			t.Parallel()
			o := newRelayOffice(t, steering)
			for _, part := range []struct {
				name string
				test func(*relayOffice)
			}{
				{"ServiceDown", (*relayOffice).testServiceDown}, // first: one service is down from the start
				{"Web", (*relayOffice).testWeb},
				{"Redis", (*relayOffice).testRedis},
				{"SSH", (*relayOffice).testSSH},
				{"UDP", (*relayOffice).testUDP},
				{"LargeDatagrams", (*relayOffice).testLargeDatagrams},
				{"SpeaksFirst", (*relayOffice).testSpeaksFirst},
				{"HalfClose", (*relayOffice).testHalfClose},
				{"Reset", (*relayOffice).testReset},
				{"Idle", (*relayOffice).testIdle},
				{"ServiceKilled", (*relayOffice).testServiceKilled},
				{"LowPorts", (*relayOffice).testLowPorts},
				{"PortReuse", (*relayOffice).testPortReuse},
				{"Transfer", (*relayOffice).testTransfer},
				{"ManyAtOnce", (*relayOffice).testManyAtOnce},
				{"Containment", (*relayOffice).testContainment},
			} {
				t.Run(part.name, func(t *testing.T) { part.test(o.in(t)) })
			}
			o.down()
			o.wantNoErrorLogged()
		})
	}
}

// wantNoErrorLogged checks that decoynet itself had nothing to complain about.
func (o *office) wantNoErrorLogged() {
	o.t.Helper()
	for line := range strings.Lines(o.process.Log()) {
		if !strings.Contains(line, "level=DEBUG") && !strings.Contains(line, "level=INFO") {
			o.t.Errorf("decoynet logged %s", line)
		}
	}
}

// both are addresses of office-web in both families, from the ends and the
// middle of its ranges.
var both = []string{"192.0.2.100", "192.0.2.125", "192.0.2.150", "192.0.2.247", "2001:db8:2::100", "2001:db8:2::10f"}

// oneEach is one address of office-web a family.
var oneEach = []string{"192.0.2.101", "2001:db8:2::101"}

func at(addr string, port int) string { return net.JoinHostPort(addr, fmt.Sprint(port)) }

func (o *relayOffice) testWeb() {
	for _, addr := range both {
		for _, scheme := range []string{"http", "https"} {
			body, from := o.curl(fmt.Sprintf("%s://%s/", scheme, at(addr, map[string]int{"http": 80, "https": 443}[scheme])))
			if want := fmt.Sprintf("peer %s %d\n", from.Addr(), from.Port()); !strings.HasSuffix(body, want) {
				o.t.Errorf("%s at %s answered %q to %s", scheme, addr, body, from)
			}
			o.wantPeer(o.Web, from)
			s := o.wantReason(from, "client_closed", "service_closed")
			if s.sourceNAT() != from || s.SourceMode != "kept" || s.DestIP != addr {
				o.t.Errorf("session of %s to %s: %+v", from, addr, s)
			}
		}
	}
}

func (o *relayOffice) testRedis() {
	syns := o.capture(o.Intruder, "eth0", "tcp[tcpflags] == tcp-syn or (ip6[6] == 6 and ip6[53] == 2)")
	for i, addr := range both {
		key, value := fmt.Sprintf("key-%d", i), fmt.Sprintf("loot of %s", addr)
		if out := o.run("redis-cli", "-h", addr, "-p", "6379", "set", key, value); out != "OK\n" {
			o.t.Errorf("redis set at %s: %q", addr, out)
		}
		if out := o.run("redis-cli", "-h", addr, "-p", "6379", "get", key); out != value+"\n" {
			o.t.Errorf("redis get at %s: %q", addr, out)
		}
		decoy := netip.AddrPortFrom(netip.MustParseAddr(addr), 6379)
		sources := syns.sourcesTo(decoy, 2)
		for _, from := range sources {
			o.wantPeer(o.Redis, from)
			o.wantReason(from, "client_closed")
		}
	}
	// The value really lies in the server, not somewhere on the way.
	if out, err := o.Linux.Run(o.t.Context(), "redis-cli", "get", "key-0"); err != nil || out != "loot of 192.0.2.100\n" {
		o.t.Errorf("the server holds %q, %v", out, err)
	}
}

// sourcesTo waits for so many SYNs to the destination and returns who sent
// them: the client's own ends of its connections, as they left it.
func (c *capture) sourcesTo(to netip.AddrPort, n int) []netip.AddrPort {
	c.t.Helper()
	var out []netip.AddrPort
	eventually(c.t, 3*time.Second, func() error {
		out = out[:0]
		for _, line := range c.lines(" > " + dotted(to) + ": ") {
			head, _, _ := strings.Cut(line, " > "+dotted(to)+": ")
			from := head[strings.LastIndexByte(head, ' ')+1:]
			dot := strings.LastIndexByte(from, '.')
			ap, err := netip.ParseAddrPort(net.JoinHostPort(from[:dot], from[dot+1:]))
			if err != nil {
				return err
			}
			out = append(out, ap)
		}
		if len(out) != n {
			return fmt.Errorf("%d SYNs to %s were seen, want %d", len(out), to, n)
		}
		return nil
	})
	return out
}

// ssh(1) logs in with a key and works in a shell with a terminal; the server
// itself says who it talks to.
func (o *relayOffice) testSSH() {
	syns := o.capture(o.Intruder, "eth0", "tcp[tcpflags] == tcp-syn or (ip6[6] == 6 and ip6[53] == 2)")
	for _, addr := range oneEach {
		decoy := netip.AddrPortFrom(netip.MustParseAddr(addr), 2222)
		args := append([]string{"-tt"}, o.SSH.ClientArgs(decoy)...)
		out := o.runInput("echo seen=$SSH_CONNECTION; id -un; exit\n", "ssh", args...)
		from := syns.sourcesTo(decoy, 1)[0]
		if want := fmt.Sprintf("seen=%s %d ", from.Addr(), from.Port()); !strings.Contains(out, want) || !strings.Contains(out, "demo\r\n") {
			o.t.Errorf("ssh to %s said %q, want %q and demo", addr, out, want)
		}
		o.wantPeer(o.SSH.Server, from)
		o.wantReason(from, "client_closed", "service_closed")
	}
}

func (o *relayOffice) testUDP() {
	for i, addr := range both {
		from := netip.AddrPortFrom(o.ownAddr(addr), uint16(20100+i))
		out := o.runInput("public", "nc", "-u", "-n", "-W", "1", "-w", "5", "-p", fmt.Sprint(from.Port()), addr, "161")
		if want := fmt.Sprintf("peer %s %d\npublic", from.Addr(), from.Port()); out != want {
			o.t.Errorf("nc -u to %s got %q, want %q", addr, out, want)
		}
		o.wantPeer(o.UDP, from)
		s := o.recorded(from, func(s *record) bool { return s.Transport == "udp" })
		if s.sourceNAT() != from || s.DestIP != addr || s.Service != "snmp" {
			o.t.Errorf("session of %s to %s: %+v", from, addr, s)
		}
	}
}

// ownAddr is the intruder's address of the family.
func (o *office) ownAddr(family string) netip.Addr {
	if strings.Contains(family, ":") {
		return lab.OfficeIntruder.V6
	}
	return lab.OfficeIntruder.V4
}

// Datagrams beyond the MTU of 1500 arrive in fragments and leave in fragments.
// Not a byte of them is missing, neither at the intruder nor on record.
func (o *relayOffice) testLargeDatagrams() {
	type exchange struct {
		from     netip.AddrPort
		up, down int64
	}
	var done []exchange
	for _, addr := range []string{"192.0.2.200", "2001:db8:2::200"} { // with a short idle time
		conn, err := o.Intruder.Dial(o.t.Context(), "udp", at(addr, 161))
		check(o.t, err)
		e := exchange{from: localAddr(conn)}
		prefix := fmt.Sprintf("peer %s %d\n", e.from.Addr(), e.from.Port())
		for _, size := range []int{1, 1400, 1452, 1453, 1472, 1473, 4000, 8192} {
			data := strings.Repeat("x", size-1) + "!"
			answer := make([]byte, 10000)
			check(o.t, conn.SetDeadline(time.Now().Add(3*time.Second)))
			_, err := conn.Write([]byte(data))
			check(o.t, err)
			n, err := conn.Read(answer)
			if err != nil || string(answer[:n]) != prefix+data {
				o.t.Errorf("%d bytes to %s: %d bytes back, %v", size, addr, n, err)
			}
			e.up, e.down = e.up+int64(size), e.down+int64(n)
		}
		check(o.t, conn.Close())
		done = append(done, e)
	}
	for _, e := range done {
		s := o.wantReason(e.from, "idle")
		wantBytes(o.t, s, e.up, e.down)
		if s.sourceNAT() != e.from {
			o.t.Errorf("session of %s was seen as %s", e.from, s.sourceNAT())
		}
	}
}

// The first bytes of a service arrive without the client saying anything.
func (o *relayOffice) testSpeaksFirst() {
	for _, addr := range both {
		conn := o.dial(at(addr, 2222))
		check(o.t, conn.SetReadDeadline(time.Now().Add(3*time.Second)))
		banner := make([]byte, 8)
		if n, err := conn.Read(banner); err != nil || string(banner[:n]) != "SSH-2.0-" {
			o.t.Errorf("ssh at %s said %q, %v", addr, banner[:n], err)
		}
	}
}

const filesConfig = `daemon off;
user root;
worker_processes 1;
pid DIR/pid;
error_log DIR/error.log;
events { worker_connections 256; }
http {
	access_log off;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	client_max_body_size 0;
	server {
		listen 8080;
		listen [::]:8080;
		root DIR/files;
		dav_methods PUT;
	}
}
`

// testTransfer moves 100 MB each way and compares checksums, and the bytes on
// record with those that curl counted.
func (o *relayOffice) testTransfer() {
	dir := o.t.TempDir()
	check(o.t, os.Mkdir(filepath.Join(dir, "files"), 0o755))
	conf := filepath.Join(dir, "nginx.conf")
	check(o.t, os.WriteFile(conf, []byte(strings.ReplaceAll(filesConfig, "DIR", dir)), 0o600))
	server, err := o.Linux.Start("nginx", "-p", dir, "-e", filepath.Join(dir, "error.log"), "-c", conf)
	check(o.t, err)
	o.t.Cleanup(func() {
		if err := server.Stop(context.Background()); err != nil {
			o.t.Error(err)
		}
	})
	data := make([]byte, 100<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data) // never fails
	source := filepath.Join(dir, "files", "loot")
	check(o.t, os.WriteFile(source, data, 0o644))
	want := sha256.Sum256(data)

	o.waitOpen(oneEach[0], 8080)
	for _, addr := range oneEach {
		url := "http://" + at(addr, 8080)
		copied := filepath.Join(dir, "copy")
		o.transfer(url+"/loot", "-o", copied)
		wantSum(o.t, "download from "+addr, copied, want)
		check(o.t, os.Remove(copied))
		o.transfer(url+"/upload", "-T", source)
		uploaded := filepath.Join(dir, "files", "upload")
		wantSum(o.t, "upload to "+addr, uploaded, want)
		check(o.t, os.Remove(uploaded))
	}
}

// transfer has curl move something and compares what it counts with the record.
func (o *relayOffice) transfer(url string, args ...string) {
	o.t.Helper()
	const format = "%{http_code} %{local_ip} %{local_port} %{size_request} %{size_upload} %{size_header} %{size_download} %{speed_download} %{speed_upload}"
	// Without Expect, for which the server answers with a header of its own.
	out := o.run("curl", append([]string{"-sS", "-m", "60", "-H", "Expect:", "-H", "Connection: close", "-w", format, url}, args...)...)
	var code int
	var ip string
	var port uint16
	var head, up, headBack, down int64
	var speedDown, speedUp float64
	if _, err := fmt.Sscan(out, &code, &ip, &port, &head, &up, &headBack, &down, &speedDown, &speedUp); err != nil || code/100 != 2 {
		o.t.Fatalf("curl %s: %q, %v", url, out, err)
	}
	s := o.ended(addrPort(ip, port))
	if s.SourceBytes != head+up || s.DestBytes != headBack+down {
		o.t.Errorf("%s: recorded %d/%d bytes, curl counted %d/%d", url, s.SourceBytes, s.DestBytes, head+up, headBack+down)
	}
	o.t.Logf("%s: %.0f MB/s", url, max(speedDown, speedUp)/1e6)
}

func wantSum(t *testing.T, what, file string, want [32]byte) {
	t.Helper()
	data, err := os.ReadFile(file)
	check(t, err)
	if got := sha256.Sum256(data); got != want {
		t.Errorf("%s: %d bytes with checksum %s, want %s", what, len(data), hex.EncodeToString(got[:]), hex.EncodeToString(want[:]))
	}
}

// testManyAtOnce runs three hundred curls at once, against all decoys. Two of
// them may have one source port, towards two decoys: then one port is moved.
func (o *relayOffice) testManyAtOnce() {
	const script = `i=0
while [ $i -lt 300 ]; do
	curl -sS -m 20 -o /dev/null -w '%{http_code} %{local_ip} %{local_port} %{remote_ip}\n' http://192.0.2.$((100 + i % 51))/ &
	i=$((i + 1))
done
wait`
	before := time.Now()
	out := o.run("sh", "-c", script)
	o.t.Logf("300 curls took %s", time.Since(before).Round(time.Millisecond))
	type flow struct{ from, to netip.AddrPort }
	want := map[flow]bool{}
	for line := range strings.Lines(out) {
		var code int
		var from, to string
		var port uint16
		if _, err := fmt.Sscan(line, &code, &from, &port, &to); err != nil || code != 200 {
			o.t.Errorf("one of the curls said %q", line)
		}
		want[flow{addrPort(from, port), addrPort(to, 80)}] = true
	}
	if len(want) != 300 {
		o.t.Fatalf("%d of 300 curls came back", len(want))
	}
	moved := 0
	eventually(o.t, 5*time.Second, func() error {
		list, err := o.records("--since", before.UTC().Format(time.RFC3339Nano), "--service", "web")
		if err != nil {
			return err
		}
		peers, err := o.Web.Peers()
		if err != nil {
			return err
		}
		seen := map[netip.AddrPort]bool{}
		for _, p := range peers {
			seen[p] = true
		}
		found := 0
		moved = 0
		for _, s := range list {
			if !want[flow{s.source(), s.dest()}] || s.EndReason == "" {
				continue
			}
			found++
			if s.SourceMode != "kept" {
				moved++
			}
			if !seen[s.sourceNAT()] || s.sourceNAT().Addr() != s.source().Addr() {
				return fmt.Errorf("the server has not logged %s, as which %s is on record", s.sourceNAT(), s.source())
			}
		}
		if found != 300 {
			return fmt.Errorf("%d of the 300 are on record", found)
		}
		return nil
	})
	if moved > 6 {
		o.t.Errorf("%d of 300 source ports were moved", moved)
	}
	o.t.Logf("%d source ports were moved", moved)
}

// waitOpen waits until a decoy's port takes connections.
func (o *office) waitOpen(addr string, port int) time.Duration {
	o.t.Helper()
	return o.waitPort(addr, port, true)
}

// waitPort waits until a decoy's port is open or refused, and says how long that
// took. Three seconds are promised; a busy machine gets some more.
func (o *office) waitPort(addr string, port int, open bool) time.Duration {
	o.t.Helper()
	began := time.Now()
	eventually(o.t, 8*time.Second, func() error {
		conn, err := o.tryDial(netip.AddrPort{}, at(addr, port))
		if err == nil {
			_ = conn.Close()
		}
		if open != (err == nil) {
			return fmt.Errorf("%s: open is %v (%v), want %v", at(addr, port), err == nil, err, open)
		}
		return nil
	})
	return time.Since(began).Round(time.Millisecond)
}
