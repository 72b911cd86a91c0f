//go:build linux

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"decoynet/bench/parity/script"
	"decoynet/bench/parity/verdict"
	"decoynet/internal/lab"
)

// parityDocument leads two decoys' ports to everything that the test has clients for.
const parityDocument = `
node: gw
segments:
  - name: office
    parent: eth0
    claim: unchecked
    subnets: [{prefix: 192.0.2.0/24, gateway: 192.0.2.1}]
zones:
  - {name: linux, subnet: 10.1.0.0/24, link: br-linux}
services:
  - {name: web, zone: linux, address: 10.1.0.2, ports: [80, 443]}
  - {name: redis, zone: linux, address: 10.1.0.3, ports: [6379]}
  - {name: ssh, zone: linux, address: 10.1.0.4, ports: [22]}
  - {name: spoken, zone: linux, address: 10.1.0.5, ports: [%[1]s]}
  - {name: servers, zone: linux, address: 10.1.0.6, ports: [21, 445, 5432, 8081, 8443, 40000-40009]}
decoys:
  - name: everything
    segment: office
    addresses: [192.0.2.150]
    bind:
      - {ports: [80, 443], service: web}
      - {ports: [6379], service: redis}
      - {ports: [22], service: ssh}
      - {ports: [%[1]s], service: spoken}
  - name: more
    segment: office
    addresses: [192.0.2.151]
    bind:
      - {ports: [21, 445, 5432, 8081, 8443, 40000-40009], service: servers}
inspect:
  suricata: off
  feeds: [fifo]
  pcap: {size: off}
`

// parityRules fire on what the clients say and on what the servers answer.
const parityRules = `alert http any any -> any any (msg:"agent"; http.user_agent; content:"curl"; sid:1;)
alert http any any -> any any (msg:"path"; http.uri; content:"passwd"; sid:2;)
alert http any any -> any any (msg:"answer"; flow:to_client; http.response_body; content:"peer"; sid:3;)
alert tls any any -> any any (msg:"name"; tls.sni; content:"intranet"; sid:4;)
alert ssh any any -> any any (msg:"client"; ssh.software; content:"OpenSSH"; sid:5;)
alert smtp any any -> any any (msg:"mail"; file.data; content:"invoice"; sid:6;)
alert ftp any any -> any any (msg:"login"; flow:to_server; content:"PASS"; sid:7;)
alert tcp any any -> any 6379 (msg:"redis"; flow:established,to_server; content:"CONFIG"; nocase; sid:8;)
alert dns any any -> any any (msg:"query"; dns.query; content:"example"; sid:9;)
alert tcp any any -> any 23 (msg:"telnet"; flow:established,to_server; content:"root"; sid:10;)
alert smb any any -> any any (msg:"share"; smb.share; content:"files"; sid:11;)
alert smb any any -> any any (msg:"content of a share"; file.data; content:"1024"; sid:12;)
alert pgsql any any -> any any (msg:"statement"; flow:to_server; content:"pg_shadow"; sid:13;)
alert ftp-data any any -> any any (msg:"content by FTP"; file.data; content:"1024"; sid:14;)
alert http2 any any -> any any (msg:"HTTP/2"; http.uri; content:"passwd"; sid:15;)
alert snmp any any -> any any (msg:"community"; snmp.community; content:"public"; sid:16;)
alert tftp any any -> any any (msg:"file by TFTP"; content:"running-config"; sid:17;)
alert sip any any -> any any (msg:"SIP"; sip.method; content:"OPTIONS"; sid:18;)
`

// dialogue is a conversation that both ends know: what begins with > the client
// says, with < the server.
type dialogue struct {
	port  uint16
	turns []string
}

var dialogues = []dialogue{
	{25, []string{
		"<220 mail ESMTP\r\n", ">EHLO pc\r\n", "<250-mail\r\n250 8BITMIME\r\n", ">MAIL FROM:<a@example.com>\r\n", "<250 ok\r\n",
		">RCPT TO:<b@example.com>\r\n", "<250 ok\r\n", ">DATA\r\n", "<354 go on\r\n",
		">Subject: hello\r\nContent-Type: text/plain; name=\"x.txt\"\r\n\r\nyour invoice\r\n.\r\n", "<250 queued\r\n", ">QUIT\r\n", "<221 bye\r\n",
	}},
	{21, []string{
		"<220 FTP\r\n", ">USER anonymous\r\n", "<331 password\r\n", ">PASS guest@\r\n", "<230 in\r\n", ">SYST\r\n", "<215 UNIX\r\n",
		">PWD\r\n", "<257 \"/\"\r\n", ">QUIT\r\n", "<221 bye\r\n",
	}},
	{23, []string{"<\xff\xfd\x18\xff\xfd\x1f", ">\xff\xfb\x18", "<login: ", ">root\r\n", "<Password: ", ">admin\r\n", "<\r\nLogin incorrect\r\n"}},
	// A query for example.com, and an answer, both with their length (RFC 1035, 4.2.2).
	{53, []string{
		">\x00\x1d\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01",
		"<\x00\x2d\x12\x34\x81\x80\x00\x01\x00\x01\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\xc0\x00\x02\x01",
	}},
	// MQTT 3.1.1: CONNECT and CONNACK, PUBLISH, DISCONNECT.
	{1883, []string{">\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02id", "<\x20\x02\x00\x00", ">\x30\x06\x00\x01a\x6f\x6e\x21", ">\xe0\x00"}},
	{5432, []string{">\x00\x00\x00\x08\x04\xd2\x16\x2f", "<N", ">\x00\x00\x00\x13\x00\x03\x00\x00user\x00sa\x00\x00\x00", "<R\x00\x00\x00\x08\x00\x00\x00\x03"}},
	{5900, []string{"<RFB 003.008\n", ">RFB 003.008\n", "<\x01\x02", ">\x02", "<0123456789abcdef", ">fedcba9876543210", "<\x00\x00\x00\x01\x00\x00\x00\x04none"}},
	{502, []string{">\x00\x01\x00\x00\x00\x06\x01\x03\x00\x00\x00\x02", "<\x00\x01\x00\x00\x00\x07\x01\x03\x04\x00\x01\x00\x02"}},
	{8080, []string{
		">GET /etc/passwd HTTP/1.1\r\nHost: intranet\r\n", ">User-Agent: curl/8\r\n\r\n", "<HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", "<peer none",
		">POST /login HTTP/1.1\r\nHost: intranet\r\nContent-Length: 8\r\n\r\n", ">user=adm", "<HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n",
	}},
}

// datagrams are dialogues by UDP: each turn is a datagram.
var datagrams = []dialogue{
	// NTP: a client's mode 3, a server's mode 4.
	{123, []string{">\x23\x00\x06\x20" + strings.Repeat("\x00", 44), "<\x24\x01\x06\xe8" + strings.Repeat("\x00", 8) + "GPS\x00" + strings.Repeat("\x01", 32)}},
	// SNMPv2c: GetRequest for sysDescr.0 of the community public, and the Response.
	{161, []string{
		">\x30\x26\x02\x01\x01\x04\x06public\xa0\x19\x02\x01\x01\x02\x01\x00\x02\x01\x00\x30\x0e\x30\x0c\x06\x08\x2b\x06\x01\x02\x01\x01\x01\x00\x05\x00",
		"<\x30\x2b\x02\x01\x01\x04\x06public\xa2\x1e\x02\x01\x01\x02\x01\x00\x02\x01\x00\x30\x13\x30\x11\x06\x08\x2b\x06\x01\x02\x01\x01\x01\x00\x04\x05Linux",
	}},
	{5060, []string{
		">OPTIONS sip:100@192.0.2.150 SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.66:5060;branch=z9hG4bK1\r\nFrom: <sip:100@192.0.2.66>;tag=1\r\nTo: <sip:100@192.0.2.150>\r\nCall-ID: 1@192.0.2.66\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n",
		"<SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 192.0.2.66:5060;branch=z9hG4bK1\r\nFrom: <sip:100@192.0.2.66>;tag=1\r\nTo: <sip:100@192.0.2.150>;tag=2\r\nCall-ID: 1@192.0.2.66\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n",
	}},
}

// TestSensorSeesFeedAsWire has real clients talk to decoys, and compares what
// Suricata says of the feed with what it says of the intruder's own wire.
func TestSensorSeesFeedAsWire(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	var ports []string
	for _, d := range dialogues {
		ports = append(ports, fmt.Sprint(d.port))
		speak(t, o.Linux, d)
	}
	// The office's own answers at any address would have these ports as well.
	check(t, o.UDP.Stop(t.Context()))
	for port, answer := range datagramServers() {
		ports = append(ports, fmt.Sprintf("%d/udp", port))
		answerDatagrams(t, o.Linux, port, answer)
	}
	startServers(t, o)
	o.document(fmt.Sprintf(parityDocument, strings.Join(ports, ", ")))
	o.up()
	dir := t.TempDir()
	wire, fed := filepath.Join(dir, "wire.pcap"), filepath.Join(dir, "feed.pcap")
	stop := recordBoth(t, o, wire, fed)
	const rounds = 2
	for range rounds {
		talk(t, o)
	}
	o.down()
	stop()

	flows := flowsIn(t, wire)
	if want := rounds * (len(dialogues) + len(datagrams) + len(programs)); len(flows) < want {
		t.Fatalf("%d flows on the wire, want %d at least", len(flows), want)
	}
	rules := filepath.Join(dir, "test.rules")
	check(t, os.WriteFile(rules, []byte(parityRules), 0o600))
	suricata, err := verdict.NewSuricata(dir)
	check(t, err)
	events := func(capture, name string) verdict.Events {
		file, err := suricata.Read(t.Context(), capture, rules, filepath.Join(dir, name))
		check(t, err)
		e, err := verdict.ReadEvents(file, flows)
		check(t, err)
		return e
	}
	want, got := events(wire, "wire"), events(fed, "feed")
	wantVariety(t, want, got)
	if n := len(verdict.ByKind(got.Records)["ftp_data"]); n != 2*rounds {
		t.Errorf("%d records of files by FTP in the feed, want %d", n, 2*rounds)
	}
	compareEvents(t, "alerts", want.Alerts, got.Alerts, 80)
	compareEvents(t, "records", withoutAnswers(want.Records), withoutAnswers(got.Records), 300)
	compareEvents(t, "files", want.Files, got.Files, 20)
	compareEvents(t, "applications", want.Applications, got.Applications, 80)
}

// wantVariety has every rule fire and every protocol recorded: what nobody says
// cannot be missed.
func wantVariety(t *testing.T, want, got verdict.Events) {
	t.Helper()
	kinds := verdict.ByKind(want.Records)
	for _, kind := range parityKinds {
		if len(kinds[kind]) == 0 {
			t.Errorf("the wire has no record of %s", kind)
		}
	}
	alerts := strings.Join(slices.Sorted(maps.Keys(got.Alerts)), "\n")
	for sid := range strings.Count(parityRules, "sid:") {
		if !strings.Contains("\n"+alerts, fmt.Sprintf("\n1:%d:", sid+1)) {
			t.Errorf("rule %d has not fired", sid+1)
		}
	}
}

// withoutAnswers cuts what records of files repeat of the request and of its answer.
// When the server takes its time, the feed has Suricata look at the request before
// there is an answer; the requests have records of their own.
func withoutAnswers(records map[string]int) map[string]int {
	out := map[string]int{}
	for r, n := range records {
		if strings.HasPrefix(r, "fileinfo | ") {
			r, _, _ = strings.Cut(r, `,"stored":`)
		}
		out[r] += n
	}
	return out
}

func compareEvents(t *testing.T, what string, want, got map[string]int, least int) {
	t.Helper()
	count, missed, more := verdict.Compare(want, got, what == "alerts")
	t.Logf("%s: %d of %d, %d more", what, count.Kept, count.Total, count.More)
	if count.Total < least {
		t.Errorf("%d %s on the wire, want %d at least", count.Total, what, least)
	}
	for _, m := range missed {
		t.Errorf("of the wire only, %s: %s", what, m)
	}
	for _, m := range more {
		if strings.Contains(m, passiveData) {
			t.Logf("of the feed only, and explained, %s: %s", what, m)
			continue
		}
		t.Errorf("of the feed only, %s: %s", what, m)
	}
}

// passiveData is what events of files fetched by FTP have in common: the passive
// ports. Suricata knows what comes there from the client's RETR on, which it hears
// when that is acknowledged; on the wire the file may come first. In the feed each
// read is acknowledged at once.
const passiveData = " > 192.0.2.151:4000"

// recordBoth records what the intruder's card and the feed show.
func recordBoth(t *testing.T, o *office, wire, fed string) (stop func()) {
	t.Helper()
	dump, err := o.Intruder.Start("tcpdump", "-i", "eth0", "-s", "0", "-U", "-B", "16384", "-Z", "root", "-w", wire, "net", "192.0.2.150/31", "and", "(tcp or udp)")
	check(t, err)
	eventually(t, 10*time.Second, func() error {
		if !strings.Contains(dump.Log(), "listening on") {
			return fmt.Errorf("tcpdump said %q", dump.Log())
		}
		return nil
	})
	read, err := o.Gateway.Start("dd", "if="+filepath.Join(o.data, "inspect", "feed.fifo"), "of="+fed, "bs=1M")
	check(t, err)
	return func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		check(t, read.Wait(ctx))
		time.Sleep(1500 * time.Millisecond) // the kernel hands over what is less than a block a second late
		check(t, dump.Stop(ctx))
		if !strings.Contains(dump.Log(), "\n0 packets dropped by kernel") {
			t.Fatalf("the recording lacks packets: %s", dump.Log())
		}
	}
}

// programs are real clients, run on the intruder's machine; those that begin with !
// are turned away. $SSH is how ssh logs in, $KEY its key alone, $DIR the client's
// folder.
var programs = []string{
	"curl -s --http1.1 http://192.0.2.150/",
	"curl -s --http1.0 http://192.0.2.150/etc/passwd",
	"curl -s -A scanner/1.0 -X OPTIONS http://192.0.2.150/",
	"curl -s -d user=admin http://192.0.2.150/login",
	"curl -s -I http://192.0.2.150/ http://192.0.2.150/again",
	"curl -s -k https://192.0.2.150/",
	"curl -s -k --tls-max 1.2 https://192.0.2.150/",
	"curl -s -k --connect-to intranet:443:192.0.2.150:443 https://intranet/",
	"curl -s --http2-prior-knowledge http://192.0.2.151:8081/etc/passwd",
	"curl -s --http2-prior-knowledge http://192.0.2.151:8081/numbers.txt",
	"curl -s --http2-prior-knowledge -I -A scanner/1.0 http://192.0.2.151:8081/",
	"curl -s -k --http2 https://192.0.2.151:8443/",
	"echo | openssl s_client -connect 192.0.2.150:443 -servername intranet -tls1_2",
	"! echo | openssl s_client -connect 192.0.2.150:443 -servername intranet -tls1_3",
	"echo | openssl s_client -connect 192.0.2.151:8443 -servername intranet -tls1_3",
	"redis-cli -h 192.0.2.150 ping",
	"redis-cli -h 192.0.2.150 config get dir",
	"ssh-keyscan -t ed25519 192.0.2.150",
	"! ssh -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null root@192.0.2.150 id",
	"ssh $SSH id",
	"scp -O -F none -i $KEY -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null $DIR/upload demo@192.0.2.150:",
	"echo put $DIR/upload | sftp -s /usr/lib/openssh/sftp-server -F none -i $KEY -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -b - demo@192.0.2.150",
	"curl -s ftp://192.0.2.151/",
	"curl -s --disable-epsv ftp://192.0.2.151/numbers.txt",
	"curl -s -T $DIR/upload ftp://192.0.2.151/incoming/",
	"! curl -s -u root:toor ftp://192.0.2.151/",
	"smbclient -s /dev/null -U demo%demo //192.0.2.151/files -c 'ls; get numbers.txt /dev/null'",
	"smbclient -s /dev/null -U demo%demo //192.0.2.151/files -c \"put $DIR/upload upload.txt; rename upload.txt other.txt; del other.txt\"",
	"smbclient -s /dev/null -m NT1 --option='client min protocol=NT1' -U demo%demo //192.0.2.151/files -c 'get numbers.txt /dev/null'",
	"smbclient -s /dev/null -U demo%demo -L 192.0.2.151",
	"! smbclient -s /dev/null -U admin%admin //192.0.2.151/files -c ls",
	"psql 'host=192.0.2.151 user=demo password=demo dbname=postgres' -c 'SELECT version()' -c 'SELECT * FROM pg_shadow'",
	"! psql 'host=192.0.2.151 user=demo password=wrong dbname=postgres' -c 'SELECT 1'",
	"busybox nslookup www.example.com 192.0.2.150",
	"curl -s tftp://192.0.2.150/running-config",
}

// parityKinds are the records that the clients must give cause to.
var parityKinds = []string{"dns", "fileinfo", "ftp", "ftp_data", "http", "mqtt", "pgsql", "sip", "smb", "smtp", "snmp", "ssh", "tftp", "tls"}

// talk has all clients talk, one after another.
func talk(t *testing.T, o *office) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	dir := t.TempDir()
	check(t, os.WriteFile(filepath.Join(dir, "upload"), bytes.Repeat([]byte("0123456789abcde\n"), 512), 0o600))
	env := []string{
		"KEY=" + o.SSH.KeyFile, "DIR=" + dir,
		"SSH=" + strings.Join(o.SSH.ClientArgs(netip.MustParseAddrPort("192.0.2.150:22")), " "),
	}
	for _, p := range programs {
		cmd := o.Intruder.Command(ctx, "timeout", "20", "sh", "-c", p)
		cmd.Env = append(cmd.Env, env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", p, err, out)
		}
	}
	converse(ctx, t, o, "tcp", dialogues)
	converse(ctx, t, o, "udp", datagrams)
}

// converse has the client's side of the dialogues said.
func converse(ctx context.Context, t *testing.T, o *office, network string, dialogues []dialogue) {
	t.Helper()
	for _, d := range dialogues {
		conn, err := o.Intruder.Dial(ctx, network, fmt.Sprintf("192.0.2.150:%d", d.port))
		check(t, err)
		err = d.play(conn, '>')
		check(t, errors.Join(err, conn.Close()))
	}
}

// speak serves a dialogue until the test ends.
func speak(t *testing.T, m *lab.Machine, d dialogue) {
	t.Helper()
	l, err := m.Listen(t.Context(), "tcp", fmt.Sprintf("10.1.0.5:%d", d.port))
	check(t, err)
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			group.Go(func() {
				_ = d.play(conn, '<') // a check of the service's health says nothing
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		check(t, l.Close())
		group.Wait()
	})
}

// play says one side's turns and waits for the other's, and then for its end.
func (d dialogue) play(conn net.Conn, mine byte) error {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	for _, turn := range d.turns {
		said := []byte(turn[1:])
		if turn[0] == mine {
			if _, err := conn.Write(said); err != nil {
				return fmt.Errorf("say %q: %w", said, err)
			}
			continue
		}
		heard := make([]byte, len(said))
		if _, err := io.ReadFull(conn, heard); err != nil || !bytes.Equal(heard, said) {
			return fmt.Errorf("heard %q for %q: %w", heard, said, err)
		}
	}
	return nil
}

// flowsIn lists the flows of a recording.
func flowsIn(t *testing.T, file string) []verdict.Flow {
	t.Helper()
	c, err := script.Read(file)
	check(t, err)
	var flows []verdict.Flow
	for _, f := range c.Flows {
		if f.Why != "" {
			t.Fatalf("flow %s of the recording: %s", f.Client, f.Why)
		}
		flows = append(flows, verdict.Flow{Transport: f.Transport.String(), Client: f.Client, Server: f.Server})
	}
	return flows
}
