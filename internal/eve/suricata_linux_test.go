package eve

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
)

// suricataYAML is what a Suricata of others might be set to, with the settings that
// decoynet needs.
const suricataYAML = `%%YAML 1.1
---
vars:
  address-groups: {HOME_NET: any, EXTERNAL_NET: any}
  port-groups: {SSH_PORTS: 22}
default-log-dir: %s
stats: {enabled: yes, interval: 1}
outputs:
  - eve-log:
      enabled: yes
      filetype: regular
      filename: eve.json
      ethernet: yes
      community-id: true
      metadata: yes
      types:
        - alert: {payload: yes, payload-printable: yes, packet: yes, metadata: yes, http-body-printable: yes}
        - anomaly: {enabled: yes, types: {decode: yes, stream: yes, applayer: yes}}
        - http: {extended: yes, dump-all-headers: both}
        - files: {force-hash: [md5, sha256]}
        - dns
        - smtp
        - ftp
        - ssh
        - stats
        - flow
        - netflow
app-layer:
  protocols:
    ssh: {enabled: yes, hassh: yes}
    ftp: {enabled: yes}
    smtp: {enabled: yes}
    http: {enabled: yes}
    dns: {tcp: {enabled: yes, detection-ports: {dp: 53}}, udp: {enabled: yes, detection-ports: {dp: 53}}}
`

const suricataRules = `alert http any any -> any any (msg:"request"; flow:to_server; http.uri; content:"/etc/passwd"; sid:1; rev:3; priority:1;)
alert http any any -> any any (msg:"response"; flow:to_client; http.stat_code; content:"200"; sid:2;)
alert tcp any any -> any any (msg:"at the end of the flow"; flow:to_server; content:"only-when-it-ends"; sid:3;)
alert ssh any any -> any any (msg:"banner"; ssh.software; content:"evil"; sid:4;)
alert dns any any -> any any (msg:"query"; dns.query; content:"secret"; sid:5;)
`

// capture writes a pcap file of flows as they are fed to Suricata: the session's key
// in the MAC addresses.
type capture struct {
	b  []byte
	at time.Time
}

func newCapture() *capture {
	h := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	h = binary.LittleEndian.AppendUint16(h, 2)
	h = binary.LittleEndian.AppendUint16(h, 4)
	h = append(h, make([]byte, 8)...)
	h = binary.LittleEndian.AppendUint32(h, 262144)
	return &capture{b: binary.LittleEndian.AppendUint32(h, 1), at: began}
}

// packet writes one packet of a session. Checksums are left out; Suricata is told so.
func (c *capture) packet(s *deception.Session, vlan uint16, back bool, layer4 []byte) {
	a, b := frame.Addresses(s.ID.Key())
	from, to := s.Source.Addr(), s.Destination.Addr()
	if back {
		a, b, from, to = b, a, to, from
	}
	p := append(append([]byte{}, b[:]...), a[:]...)
	if vlan > 0 {
		p = binary.BigEndian.AppendUint16(append(p, 0x81, 0x00), vlan)
	}
	if from.Is4() {
		p = append(p, 0x08, 0x00, 0x45, 0)
		p = binary.BigEndian.AppendUint16(p, uint16(20+len(layer4)))
		p = append(p, 0, 0, 0x40, 0, 64, byte(s.Transport), 0, 0)
	} else {
		p = append(p, 0x86, 0xdd, 0x60, 0, 0, 0)
		p = binary.BigEndian.AppendUint16(p, uint16(len(layer4)))
		p = append(p, byte(s.Transport), 64)
	}
	p = append(append(append(p, from.AsSlice()...), to.AsSlice()...), layer4...)
	c.at = c.at.Add(time.Millisecond)
	c.b = binary.LittleEndian.AppendUint32(c.b, uint32(c.at.Unix()))
	c.b = binary.LittleEndian.AppendUint32(c.b, uint32(c.at.Nanosecond()/1000))
	c.b = binary.LittleEndian.AppendUint32(c.b, uint32(len(p)))
	c.b = binary.LittleEndian.AppendUint32(c.b, uint32(len(p)))
	c.b = append(c.b, p...)
}

func (c *capture) udp(s *deception.Session, back bool, data []byte) {
	p := ports(s, back)
	p = binary.BigEndian.AppendUint16(p, uint16(8+len(data)))
	c.packet(s, 0, back, append(append(p, 0, 0), data...))
}

func ports(s *deception.Session, back bool) []byte {
	from, to := s.Source.Port(), s.Destination.Port()
	if back {
		from, to = to, from
	}
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, from), to)
}

// stream is a TCP flow that is written to a capture.
type stream struct {
	c    *capture
	s    *deception.Session
	vlan uint16
	sent [2]uint32 // by the intruder, by the decoy
}

const (
	fin = 0x01
	syn = 0x02
	ack = 0x10
)

func (c *capture) tcp(s *deception.Session, vlan uint16) *stream {
	x := &stream{c: c, s: s, vlan: vlan, sent: [2]uint32{1000, 9000}}
	x.segment(false, syn, nil)
	x.sent[0]++
	x.segment(true, syn|ack, nil)
	x.sent[1]++
	x.segment(false, ack, nil)
	return x
}

func (x *stream) segment(back bool, flags byte, data []byte) {
	mine, theirs := x.sent[0], x.sent[1]
	if back {
		mine, theirs = theirs, mine
	}
	p := binary.BigEndian.AppendUint32(ports(x.s, back), mine)
	if flags == syn {
		theirs = 0
	}
	p = binary.BigEndian.AppendUint32(p, theirs)
	p = append(p, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0)
	x.c.packet(x.s, x.vlan, back, append(p, data...))
}

// say sends data, which the other side acknowledges.
func (x *stream) say(back bool, data string) *stream {
	for len(data) > 0 {
		part := data[:min(len(data), 1400)]
		data = data[len(part):]
		x.whisper(back, part)
		x.segment(!back, ack, nil)
	}
	return x
}

// whisper sends data that nobody acknowledges.
func (x *stream) whisper(back bool, data string) {
	x.segment(back, ack|0x08, []byte(data))
	if back {
		x.sent[1] += uint32(len(data))
	} else {
		x.sent[0] += uint32(len(data))
	}
}

func (x *stream) end() {
	x.segment(false, fin|ack, nil)
	x.sent[0]++
	x.segment(true, fin|ack, nil)
	x.sent[1]++
	x.segment(false, ack, nil)
}

// runSuricata analyses a capture and returns the file of events.
func runSuricata(t *testing.T, f folder, c *capture) {
	t.Helper()
	for name, text := range map[string]string{"suricata.yaml": fmt.Sprintf(suricataYAML, f.dir), "rules": suricataRules, "in.pcap": string(c.b)} {
		if err := os.WriteFile(f.path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "suricata", "-c", f.path("suricata.yaml"), "-r", f.path("in.pcap"), "-S", f.path("rules"),
		"-k", "none", "--runmode", "single", "-l", f.dir).CombinedOutput()
	if err != nil {
		t.Fatalf("suricata: %v\n%s", err, out)
	}
}

// Every event that Suricata itself writes about flows of sessions is joined to its
// session, with the intruder as its source, whichever packet or pseudo packet
// made it.
func TestSuricata(t *testing.T) {
	sessions := roster{}
	byPort := map[uint16]deception.Session{} // an intruder's port has one session here but for the overlapping ones
	open := func(transport deception.Transport, from, to string) *deception.Session {
		s := session(0)
		s.Transport, s.Source, s.Destination = transport, netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
		sessions.add(s)
		byPort[s.Source.Port()] = s
		return &s
	}
	c := newCapture()
	const get = "GET /etc/passwd HTTP/1.1\r\nHost: bait\r\nUser-Agent: curl/8\r\n\r\n"
	const ok = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n\r\nroot:x:0\n"
	c.tcp(open(deception.TCP, "10.9.0.1:50001", "192.168.32.100:80"), 3).say(false, get).say(true, ok).end()
	c.tcp(open(deception.TCP, "[fd00::9]:50002", "[fd00::100]:8080"), 3).say(false, get).say(true, ok).end()
	c.tcp(open(deception.TCP, "10.9.0.1:50003", "192.168.32.100:22"), 3).say(true, "SSH-2.0-OpenSSH_9.2\r\n").say(false, "SSH-2.0-evil\r\n").end()
	c.tcp(open(deception.TCP, "10.9.0.1:50005", "192.168.32.100:25"), 3).say(true, "220 mail ESMTP\r\n").say(false, "EHLO x\r\n").
		say(true, "250 mail\r\n").say(false, "MAIL FROM:<a@b>\r\n").say(true, "250 ok\r\n").say(false, "RCPT TO:<c@d>\r\n").say(true, "250 ok\r\n").
		say(false, "DATA\r\n").say(true, "354 go\r\n").say(false, "Subject: hi\r\n\r\nhi\r\n.\r\n").say(true, "250 ok\r\n").end()
	c.tcp(open(deception.TCP, "10.9.0.1:50006", "192.168.32.100:21"), 3).say(true, "220 ftp\r\n").say(false, "USER root\r\n").
		say(true, "331 pass\r\n").say(false, "PASS x\r\n").say(true, "530 no\r\n").end()
	// Nobody acknowledges; Suricata finds it when the flow is over.
	c.tcp(open(deception.TCP, "10.9.0.1:50007", "192.168.32.100:9999"), 3).whisper(false, "only-when-it-ends")
	c.tcp(open(deception.TCP, "10.9.0.1:50008", "192.168.32.100:80"), 3).whisper(false, get)
	name := "\x00\x01\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06secret\x04bait\x00\x00\x01\x00\x01"
	dns := open(deception.UDP, "10.9.0.1:50009", "192.168.32.100:53")
	c.udp(dns, false, []byte(name))
	c.udp(dns, true, []byte(strings.Replace(name, "\x01\x00", "\x81\x83", 1)))
	c.tcp(open(deception.TCP, "10.9.0.1:50010", "192.168.32.100:80"), 3).say(false, "GET / HTTP/9.9 \x01\r\n\x00\r\n\r\n").say(true, "nonsense\r\n\r\n").end()
	// The same addresses and ports in two networks at one time.
	one := open(deception.TCP, "10.9.0.1:51000", "192.168.32.100:80")
	two := open(deception.TCP, "10.9.0.1:51000", "192.168.32.100:80")
	first, second := c.tcp(one, 1), c.tcp(two, 2)
	first.say(false, strings.Replace(get, "/etc/passwd", "/etc/passwd?one", 1))
	second.say(false, strings.Replace(get, "/etc/passwd", "/etc/passwd?two", 1))
	second.say(true, ok).end()
	first.say(true, ok).end()

	f, k := newFolder(t), newSink()
	runSuricata(t, f, c)
	cfg := f.config(sessions, k)
	stats := 0
	cfg.Stats = func([]byte) { stats++ }
	r := start(t, cfg)
	drive(t, r, time.Now())
	checkSuricata(t, f, k, byPort, one.ID, two.ID)
	st := r.Stats()
	if stats == 0 || st.Unknown+st.Mismatched+st.Addressless+st.Unlisted+st.Broken+st.Repaired > 0 || len(r.hold.list) > 0 {
		t.Errorf("%d stats events, %d held, %+v", stats, len(r.hold.list), st)
	}
	t.Logf("findings: %v", st.Findings)
}

// checkSuricata compares the findings with the lines of the file.
func checkSuricata(t *testing.T, f folder, k *sink, byPort map[uint16]deception.Session, one, two deception.SessionID) {
	t.Helper()
	want := map[string]int{} // kind and intruder's port
	pseudo := 0
	for line := range strings.Lines(read(t, f.path("eve.json"))) {
		var e struct {
			Type  string `json:"event_type"`
			From  uint16 `json:"src_port"`
			To    uint16 `json:"dest_port"`
			Ether any    `json:"ether"`
			VLAN  []int  `json:"vlan"`
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		if e.Type == "stats" {
			continue
		}
		if e.Ether == nil {
			pseudo++
		}
		want[fmt.Sprint(e.Type, max(e.From, e.To))]++
	}
	if pseudo < 3 {
		t.Errorf("%d events without MAC addresses: this test no longer shows how they are joined", pseudo)
	}
	got, sids := map[string]int{}, map[uint32]int{}
	for _, x := range k.all() {
		got[fmt.Sprint(x.Kind, x.Source.Port())]++
		s := byPort[x.Source.Port()]
		switch {
		case x.Source.Port() == 51000:
			url := string(x.Document)
			if strings.Contains(url, "?one") && x.Session != one || strings.Contains(url, "?two") && x.Session != two {
				t.Errorf("%s of %s is joined to the other network's", x.Kind, x.Session)
			}
		case x.Session != s.ID || x.Source != s.Source || x.Destination != s.Destination || x.Transport != s.Transport:
			t.Errorf("%s from %s to %s is joined to %s, not to %s", x.Kind, x.Source, x.Destination, x.Session, s.ID)
		}
		doc := decode(t, x.Document)
		if doc["src_port"] != float64(x.Source.Port()) || doc["community_id"] == nil {
			t.Errorf("document %s", x.Document)
		}
		if x.Alert != nil {
			sids[x.Alert.SID]++
			if x.Alert.ToService != (x.Alert.SID != 2) {
				t.Errorf("rule %d matched towards the service: %v", x.Alert.SID, x.Alert.ToService)
			}
		}
	}
	for key, n := range want {
		if got[key] != n {
			t.Errorf("%d findings for %d events of %s", got[key], n, key)
		}
	}
	for sid := uint32(1); sid <= 5; sid++ {
		if sids[sid] == 0 {
			t.Errorf("no alert of rule %d", sid)
		}
	}
	for _, kind := range []string{"http50001", "http50002", "ssh50003", "smtp50005", "ftp50006", "fileinfo50001", "dns50009", "anomaly50010", "flow50007", "netflow50001"} {
		if got[kind] == 0 {
			t.Errorf("nothing of %s", kind)
		}
	}
}
