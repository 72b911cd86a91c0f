package feed

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"

	"decoynet/deception"
)

const httpRules = `alert http any any -> any any (msg:"uri"; flow:to_server,established; http.uri; content:"/secret"; sid:1;)
alert http any any -> any any (msg:"body"; flow:to_client,established; file.data; content:"hunter2"; sid:2;)
`

const protocolRules = httpRules + `alert ssh any any -> any any (msg:"ssh"; flow:to_server,established; ssh.software; content:"evilssh"; sid:3;)
alert ftp any any -> any any (msg:"ftp"; flow:to_server,established; content:"USER anonymous"; sid:4;)
alert dns any any -> any any (msg:"dns"; dns.query; content:"evil.example"; sid:5;)
alert tcp any any -> any any (msg:"across segments"; flow:to_server,established; content:"BEGIN-MARK"; content:"END-MARK"; distance:1990; within:8; sid:6;)
alert udp any any -> any any (msg:"large datagram"; content:"TAIL-MARK"; sid:7;)
`

// dnsQuery is a query for the A record of a name.
func dnsQuery(id uint16, name string) string {
	b := binary.BigEndian.AppendUint16(nil, id)
	b = append(b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	for _, label := range strings.Split(name, ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return string(append(b, 0, 0, 1, 0, 1))
}

// dnsAnswer is the answer to a query: 192.0.2.53.
func dnsAnswer(query string) string {
	b := []byte(query)
	b[2], b[3], b[7] = 0x81, 0x80, 1
	return string(append(b, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 53))
}

const (
	request  = "GET /secret HTTP/1.1\r\nHost: decoy\r\n\r\n"
	response = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nhunter2"
)

// TestProtocols plays flows of many kinds and has Suricata and tshark say what
// they see.
func TestProtocols(t *testing.T) {
	type want struct {
		name    string
		flow    func(f *Feed, s *deception.Session)
		from    string
		to      string
		udp     bool
		app     string      // of the flow record
		alerts  map[int]int // how often which rule fires
		records map[string]int
		state   string // of the flow's TCP engine
	}
	mark := "BEGIN-MARK" + strings.Repeat("x", 1990) + "END-MARK"
	large := strings.Repeat("u", 5000) + "TAIL-MARK"
	v6 := func(port int) string { return fmt.Sprintf("[2001:db8::7]:%d", port) }
	flows := []want{
		{
			name: "http", from: "192.0.2.7:40001", to: "198.51.100.4:80", app: "http", state: "closed",
			flow: func(f *Feed, s *deception.Session) {
				begin(f, s).client(request).server(response).fin(Client).fin(Server).end(deception.EndClientClosed)
			},
			alerts: map[int]int{1: 1, 2: 1}, records: map[string]int{"http": 1, "fileinfo": 1},
		},
		{
			name: "http, pipelined and in pieces", from: "192.0.2.7:40002", to: "198.51.100.4:80", app: "http", state: "closed",
			flow: func(f *Feed, s *deception.Session) {
				begin(f, s).client(request + request[:11]).client(request[11:] + request).server(response + response).server(response).
					end(deception.EndServiceClosed)
			},
			alerts: map[int]int{1: 3, 2: 3}, records: map[string]int{"http": 3, "fileinfo": 3},
		},
		{
			name: "half-closed by the client", from: "192.0.2.7:40003", to: "198.51.100.4:80", app: "http", state: "closed",
			flow: func(f *Feed, s *deception.Session) {
				begin(f, s).client(request).fin(Client).server(response[:20]).server(response[20:]).end(deception.EndClientClosed)
			},
			alerts: map[int]int{1: 1, 2: 1}, records: map[string]int{"http": 1, "fileinfo": 1},
		},
		{
			name: "reset by the client", from: "192.0.2.7:40004", to: "198.51.100.4:80", app: "http", state: "closed",
			flow: func(f *Feed, s *deception.Session) {
				begin(f, s).client(request).server(response).end(deception.EndClientReset)
			},
			alerts: map[int]int{1: 1, 2: 1}, records: map[string]int{"http": 1, "fileinfo": 1},
		},
		{
			name: "reset by the service before it answers", from: "192.0.2.7:40005", to: "198.51.100.4:80", app: "http", state: "closed",
			flow: func(f *Feed, s *deception.Session) {
				begin(f, s).client(request).end(deception.EndServiceReset)
			},
			alerts: map[int]int{1: 1}, records: map[string]int{"http": 1},
		},
		{
			name: "refused", from: "192.0.2.7:40006", to: "198.51.100.4:80", app: "failed", state: "closed",
			flow: func(f *Feed, s *deception.Session) { begin(f, s).end(deception.EndRefused) },
		},
		{
			name: "still open", from: "192.0.2.7:40007", to: "198.51.100.4:80", app: "http", state: "established",
			flow:   func(f *Feed, s *deception.Session) { begin(f, s).client(request).server(response) },
			alerts: map[int]int{1: 1, 2: 1}, records: map[string]int{"http": 1, "fileinfo": 1},
		},
		{
			name: "ssh, the service speaks first", from: "192.0.2.7:40008", to: "198.51.100.4:22", app: "ssh", state: "closed",
			flow: func(f *Feed, s *deception.Session) {
				begin(f, s).server("SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n").client("SSH-2.0-evilssh_1.0\r\n").end(deception.EndClientClosed)
			},
			alerts: map[int]int{3: 1}, records: map[string]int{"ssh": 1},
		},
		{
			name: "ftp, the service speaks first", from: "192.0.2.7:40009", to: "198.51.100.4:21", app: "ftp", state: "closed",
			flow: func(f *Feed, s *deception.Session) {
				begin(f, s).server("220 (vsFTPd 3.0.3)\r\n").client("USER anonymous\r\n").server("331 password\r\n").
					client("PASS a@b\r\n").server("230 in\r\n").client("QUIT\r\n").server("221 bye\r\n").end(deception.EndServiceClosed)
			},
			alerts: map[int]int{4: 1}, records: map[string]int{"ftp": 4},
		},
		{
			name: "http over IPv6", from: v6(40010), to: "[2001:db8:1::4]:80", app: "http", state: "closed",
			flow: func(f *Feed, s *deception.Session) {
				begin(f, s).client(request).server(response).fin(Server).fin(Client).end(deception.EndServiceClosed)
			},
			alerts: map[int]int{1: 1, 2: 1}, records: map[string]int{"http": 1, "fileinfo": 1},
		},
		{
			name: "more than a segment at once", from: "192.0.2.7:40011", to: "198.51.100.4:9999", app: "failed", state: "closed",
			flow: func(f *Feed, s *deception.Session) {
				begin(f, s).client(mark).server(strings.Repeat("y", 300_000)).end(deception.EndClientClosed)
			},
			alerts: map[int]int{6: 1},
		},
		{
			name: "more than a segment at once over IPv6", from: v6(40012), to: "[2001:db8:1::4]:9999", app: "failed", state: "closed",
			flow: func(f *Feed, s *deception.Session) {
				begin(f, s).client(mark).server(strings.Repeat("y", 70_001)).end(deception.EndIdle)
			},
			alerts: map[int]int{6: 1},
		},
		{
			name: "dns", from: "192.0.2.7:40013", to: "198.51.100.4:53", udp: true, app: "dns",
			flow: func(f *Feed, s *deception.Session) {
				q := dnsQuery(7, "evil.example")
				begin(f, s).client(q).server(dnsAnswer(q)).end(deception.EndIdle)
			},
			alerts: map[int]int{5: 1}, records: map[string]int{"dns": 2},
		},
		{
			name: "dns over IPv6", from: v6(40014), to: "[2001:db8:1::4]:53", udp: true, app: "dns",
			flow: func(f *Feed, s *deception.Session) {
				q := dnsQuery(8, "evil.example")
				begin(f, s).client(q).server(dnsAnswer(q)).end(deception.EndIdle)
			},
			alerts: map[int]int{5: 1}, records: map[string]int{"dns": 2},
		},
		{
			name: "a datagram of 5 kB", from: "192.0.2.7:40015", to: "198.51.100.4:9998", udp: true, app: "failed",
			flow:   func(f *Feed, s *deception.Session) { begin(f, s).client(large).server(large).end(deception.EndIdle) },
			alerts: map[int]int{7: 2},
		},
		{
			name: "a datagram of 5 kB over IPv6", from: v6(40016), to: "[2001:db8:1::4]:9998", udp: true, app: "failed",
			flow: func(f *Feed, s *deception.Session) {
				begin(f, s).client(large).server("").client("x").end(deception.EndIdle)
			},
			alerts: map[int]int{7: 1},
		},
	}
	sensor, out := newSensor(t, protocolRules), newPcapFile(t)
	f := New(Config{Lanes: 3})
	f.Add("file", out)
	ids := make([]deception.SessionID, len(flows))
	for i, fl := range flows {
		transport := deception.TCP
		if fl.udp {
			transport = deception.UDP
		}
		s := session(transport, fl.from, fl.to)
		ids[i] = s.ID
		fl.flow(f, s)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	noComplaint(t, out.file.Name())
	events := sensor.read(t, out.file.Name())
	noEvents(t, events)
	if lost := f.Lost(); lost != 0 {
		t.Errorf("%d flows were lost", lost)
	}
	for i, fl := range flows {
		t.Run(fl.name, func(t *testing.T) {
			alerts, records := map[int]int{}, map[string]int{}
			ended := false
			for _, e := range events {
				if e.session != ids[i] {
					continue
				}
				switch e.Type {
				case "alert":
					alerts[e.Alert.SID]++
					if _, ok := e.key(); !ok {
						t.Errorf("an alert of no packet, after the flow's end: %s", e.Raw)
					}
				case "flow":
					ended = true
					if app := cmpOr(e.App, "failed"); app != fl.app {
						t.Errorf("application %q, want %q", app, fl.app)
					}
					if state := fmt.Sprint(e.TCP["state"]); fl.state != "" && state != fl.state {
						t.Errorf("TCP state %q, want %q: %s", state, fl.state, e.Raw)
					}
				default:
					records[e.Type]++
				}
			}
			if !ended {
				t.Error("no flow record")
			}
			same(t, "alerts", alerts, fl.alerts)
			same(t, "records", records, fl.records)
		})
	}
}

func cmpOr(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func same[K int | string](t *testing.T, what string, got, want map[K]int) {
	t.Helper()
	var keys []K
	for k := range got {
		keys = append(keys, k)
	}
	for k := range want {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range slices.Compact(keys) {
		if got[k] != want[k] {
			t.Errorf("%s %v: %d, want %d", what, k, got[k], want[k])
		}
	}
}

// TestSameAddressesInTwoNetworks: the same five-tuple at the same time, in two
// VLANs, is two flows.
func TestSameAddressesInTwoNetworks(t *testing.T) {
	sensor, out := newSensor(t, httpRules), newPcapFile(t)
	f := New(Config{Lanes: 1})
	f.Add("file", out)
	const from, to = "10.0.0.7:40001", "10.0.0.4:80"
	office, plant := session(deception.TCP, from, to), session(deception.TCP, from, to)
	plant.Segment = "plant"
	a, b := begin(f, office), begin(f, plant)
	a.client(request[:10])
	b.client("GET /other HTTP/1.1\r\nHost: decoy\r\n\r\n")
	a.client(request[10:])
	b.server("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
	a.server(response)
	b.end(deception.EndClientClosed)
	a.end(deception.EndClientClosed)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	events := sensor.read(t, out.file.Name())
	noEvents(t, events)
	urls := map[deception.SessionID]string{}
	tags := map[deception.SessionID]int{}
	for _, e := range events {
		if e.Type == "http" {
			urls[e.session] += fmt.Sprint(e.HTTP["url"], " ", e.HTTP["status"])
			tags[e.session] = e.VLAN[0]
		}
		if e.Type == "alert" && e.session != office.ID {
			t.Errorf("an alert of the wrong flow: %s", e.Raw)
		}
	}
	if urls[office.ID] != "/secret 200" || urls[plant.ID] != "/other 404" || tags[office.ID] == tags[plant.ID] {
		t.Errorf("requests %v with tags %v", urls, tags)
	}
}

// TestPortUsedAgain: a flow with the addresses and ports of one whose end was not
// told yet, from another loop, is a flow of its own.
func TestPortUsedAgain(t *testing.T) {
	sensor, out := newSensor(t, httpRules), newPcapFile(t)
	f := New(Config{Lanes: 4})
	f.Add("file", out)
	const from, to = "192.0.2.7:40001", "198.51.100.4:80"
	var sessions []*deception.Session
	var before *script
	for i := range 200 {
		s := session(deception.TCP, from, to)
		sessions = append(sessions, s)
		p := &script{s: s, w: f.Begin(s, i), at: s.Start}
		p.client(request)
		if before != nil {
			before.end(deception.EndClientReset)
		}
		p.server(response)
		if before = p; i%3 == 0 {
			p.end(deception.EndClientReset)
			before = nil
		}
	}
	before.end(deception.EndClientClosed)
	if st := f.Stats(); st.Running != 0 {
		t.Errorf("%d flows run", st.Running)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range f.tuples.shards {
		if n := len(f.tuples.shards[i].flows); n != 0 {
			t.Errorf("%d flows are still known by their addresses", n)
		}
	}
	events := sensor.read(t, out.file.Name())
	noEvents(t, events)
	alerts, flows := map[deception.SessionID]int{}, map[deception.SessionID]int{}
	for _, e := range events {
		id, _ := e.key() // Suricata's flow_id is the same for two that begin in one microsecond
		switch e.Type {
		case "alert":
			alerts[id]++
		case "flow":
			flows[id]++
		}
	}
	for i, s := range sessions {
		if alerts[s.ID] != 2 || flows[s.ID] != 1 {
			t.Errorf("flow %d has %d alerts and %d flow records, want 2 and 1", i, alerts[s.ID], flows[s.ID])
		}
		if known, partial, _ := f.Find(s.ID.Key()); partial || known.Running() {
			t.Errorf("flow %d is partial, or still runs: %+v", i, known)
		}
	}
}
