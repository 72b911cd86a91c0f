//go:build linux

package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"
)

// TestInspectTwins has one intruder's address and port contact one decoy's address
// in two networks at once. Each alert is of the network where it happened.
func TestInspectTwins(t *testing.T) {
	t.Parallel()
	o := &relayOffice{office: newOffice(t)}
	o.script = newPuppet(t, o.Linux, 9000)
	l := o.Gateway.Lab()
	annex := l.Switch("annex")
	twin := l.Machine("twin")
	twin.Plug(annex, "eth0", lab.OfficeIntruder.V4.String()+"/24")
	o.Gateway.Plug(annex, "eth7")
	check(t, l.Err())
	o.document(`
node: gw
segments:
  - {name: office, parent: eth0, subnets: [{prefix: 192.0.2.0/24}], claim: unchecked}
  - {name: annex, parent: eth7, subnets: [{prefix: 192.0.2.0/24}], claim: unchecked}
zones: [{name: linux, subnet: [10.1.0.0/24, "fd00:1::/64"], link: br-linux}]
services: [{name: script, zone: linux, address: 10.1.0.5, ports: [9000]}]
decoys:
  - {name: office-script, segment: office, addresses: [192.0.2.100], bind: [{ports: [9000], service: script}]}
  - {name: annex-script, segment: annex, addresses: [192.0.2.100], bind: [{ports: [9000], service: script}]}
inspect: {system-rules: false, rules: [` + o.file + `.rules]}
`)
	writeFile(t, o.file+".rules", `alert tcp any any -> any 9000 (msg:"in the office"; content:"office-mark"; sid:1; rev:1;)
alert tcp any any -> any 9000 (msg:"in the annex"; content:"annex-mark"; sid:2; rev:1;)
`)
	o.up()
	o.waitSuricata()
	from := netip.AddrPortFrom(lab.OfficeIntruder.V4, 29001)
	dial := func(m *lab.Machine) net.Conn {
		conn, err := m.DialFrom(t.Context(), "tcp", net.TCPAddrFromAddrPort(from), "192.0.2.100:9000")
		check(t, err)
		check(t, conn.SetDeadline(time.Now().Add(30*time.Second)))
		return conn
	}
	inOffice := dial(o.Intruder)
	defer inOffice.Close()
	officeEnd := o.script.take(t)
	inAnnex := dial(twin)
	defer inAnnex.Close()
	annexEnd := o.script.take(t)
	for range 3 { // one packet of each in turn
		say(t, inOffice, officeEnd, "office-mark\n")
		say(t, inAnnex, annexEnd, "annex-mark\n")
		say(t, annexEnd, inAnnex, "yes\n")
		say(t, officeEnd, inOffice, "yes\n")
	}
	for rule, segment := range map[string]string{"1": "office", "2": "annex"} {
		f := o.waitFinding(from, "the mark of the "+segment, ruled(rule), "alerts")
		if f.Segment != segment || f.Decoy != segment+"-script" {
			t.Errorf("the alert of the %s: %+v", segment, f)
		}
	}
	st, err := o.inspection()
	check(t, err)
	if st.Events.Unknown != 0 || st.Events.Mismatched != 0 {
		t.Errorf("events were not joined: %+v", st.Events)
	}
}

// TestInspectKernelPath: what no process of ours relays is seen as well, under the
// identifier of the session on record.
func TestInspectKernelPath(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.document(fmt.Sprintf(kernelDocument, "", "", "") + "inspect: {system-rules: false, rules: [" + o.file + ".rules]}\n")
	writeFile(t, o.file+".rules", "alert http any any -> any any (msg:\"agent\"; http.user_agent; content:\"kernel-agent\"; sid:1; rev:1;)\n")
	o.up()
	o.waitSuricata()
	for i, addr := range []string{"192.0.2.120", "[2001:db8:2::105]"} {
		port := 29101 + i
		_, err := o.Intruder.Run(t.Context(), "curl", "-s", "-A", "kernel-agent", "--local-port", fmt.Sprint(port), "http://"+addr+"/")
		check(t, err)
		source := lab.OfficeIntruder.V4
		if i == 1 {
			source = lab.OfficeIntruder.V6
		}
		from := netip.AddrPortFrom(source, uint16(port))
		// The kernel tells of a flow when it has ended; its place is known from then on.
		f := o.waitFinding(from, "the agent, at a decoy", func(f *finding) bool { return f.Rule == "1" && f.Decoy != "" }, "alerts")
		s := o.ended(from)
		if f.Session != s.ID || f.DestIP != strings.Trim(addr, "[]") || s.Path != "kernel" || f.Service != "web" || f.Segment != "office" {
			t.Errorf("the alert is %+v, the session %+v", f, s)
		}
	}
}

// TestInspectExternal has somebody else's Suricata listen at the tap device, with
// the settings that decoynet prints.
func TestInspectExternal(t *testing.T) {
	t.Parallel()
	o := &inspectOffice{relayOffice: &relayOffice{office: newOffice(t)}}
	o.script = newPuppet(t, o.Linux, 9000)
	logs := t.TempDir()
	eve := filepath.Join(logs, "eve.json")
	o.document(fmt.Sprintf(officeDocument, "auto") + "inspect: {suricata: external, eve: " + eve + ", tap: vtap3}\n")
	o.up()
	settings, err := o.Gateway.Run(t.Context(), binary, "rules", "settings", "-c", o.file)
	check(t, err)
	_, err = o.Gateway.Run(t.Context(), binary, "rules", "export", filepath.Join(logs, "decoynet"))
	check(t, err)
	writeFile(t, filepath.Join(logs, "one.rules"), fmt.Sprintf("alert tcp any any -> any any (msg:\"the mark\"; content:\"%s\"; sid:4242; rev:3;)\n", marked))
	writeFile(t, filepath.Join(logs, "suricata.yaml"), "%YAML 1.1\n---\n"+settings+"default-rule-path: "+logs+"\nrule-files: [one.rules, decoynet/decoynet.rules]\nclassification-file: "+logs+"/decoynet/decoynet-classification.config\n")
	s, err := o.Gateway.Start("suricata", "-c", filepath.Join(logs, "suricata.yaml"), "--af-packet=vtap3", "-l", logs)
	check(t, err)
	defer func() { check(t, s.Stop(t.Context())) }()
	eventually(t, 60*time.Second, func() error {
		if !strings.Contains(s.Log(), "Engine started") {
			return fmt.Errorf("suricata has not started: %s", s.Log())
		}
		return nil
	})
	// Few bytes, in a flow that stays open: a shell's first line is told at once.
	client, service := o.pair("192.0.2.100:9000")
	defer client.Close()
	defer service.Close()
	from := localAddr(client)
	say(t, client, service, marked)
	f := o.waitFinding(from, "the mark, while the flow runs", ruled("4242"), "alerts")
	o.waitFinding(from, "a contact, by decoynet's rules", ruled("14200001"), "alerts")
	check(t, client.Close())
	check(t, service.Close())
	if rec := o.ended(from); f.Session != rec.ID || f.Decoy != "office-web" {
		t.Errorf("the alert is %+v, the session %+v", f, rec)
	}
	eventually(t, 60*time.Second, func() error {
		st, err := o.inspection()
		if err == nil && st.Events.Sensor.Captured < 10 {
			err = fmt.Errorf("suricata's own counters are not in the status: %+v", st.Events)
		}
		return err
	})
}

// testInspected: what comes through the tunnel is analysed at the gateway, under the
// branch's own addresses, and agents do not even hear of it.
func (b *branch) testInspected() {
	file := b.file + ".inspect"
	writeFile(b.t, file, branchDocument+"inspect: {system-rules: false}\n")
	_, err := b.decoynet("apply", "-f", file)
	check(b.t, err)
	b.waitSuricata()
	check(b.t, b.curl())
	eventually(b.t, 20*time.Second, func() error {
		list, err := b.findings("alerts", "--node", "hq")
		if err != nil {
			return err
		}
		for _, f := range list {
			if f.Rule == "14200101" && f.Service == "web" { // an HTTP request
				if f.SourceIP != lab.BranchIntruder.V4.String() || f.DestIP != lab.BranchServer.V4.String() || f.Segment != "host" || f.Decoy != "crm" {
					b.t.Errorf("the alert is %+v", f)
				}
				return nil
			}
		}
		return fmt.Errorf("no alert of a request through the tunnel, %d others", len(list))
	})
	st, err := b.agentRun("status", "-o", "json")
	check(b.t, err)
	if strings.Contains(st, `"inspect"`) {
		b.t.Errorf("the agent analyses:\n%s", st)
	}
	writeFile(b.t, file, branchDocument)
	_, err = b.decoynet("apply", "-f", file)
	check(b.t, err)
}
