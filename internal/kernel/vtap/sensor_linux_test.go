package vtap

import (
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"decoynet/internal/kernel/netns/netnstest"

	"github.com/google/go-cmp/cmp"
)

// A configuration that listens to the device as an administrator would write it.
const sensorConfig = `%YAML 1.1
---
vars: {address-groups: {HOME_NET: any, EXTERNAL_NET: any}, port-groups: {}}
outputs:
  - eve-log: {enabled: yes, filetype: regular, filename: eve.json, ethernet: yes, types: [alert]}
af-packet:
  - {interface: vtap0, cluster-id: 99, cluster-type: cluster_flow, defrag: yes}
vlan: {use-for-tracking: true}
unix-command: {enabled: no}
logging: {default-log-level: notice, outputs: [{console: {enabled: yes}}]}
`

const sensorRule = `alert icmp any any -> any any (msg:"ping"; itype:8; content:"deco"; sid:1; rev:1;)
`

// alert is what Suricata writes of one.
type alert struct {
	Source string `json:"src_ip"`
	VLAN   []int
	Ether  struct {
		Source      string `json:"src_mac"`
		Destination string `json:"dest_mac"`
	}
}

// Suricata, on the device, sees addresses, tags and the MAC addresses that lead to
// the session; it goes on where the process that writes is another.
func TestSuricataOnTheDevice(t *testing.T) {
	ns := netnstest.New(t, "tap")
	tap := apply(t, ns, "vtap0")
	dir := t.TempDir()
	for name, text := range map[string]string{"suricata.yaml": sensorConfig, "test.rules": sensorRule} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "ip", "netns", "exec", ns.Name(), "suricata", "--af-packet=vtap0", "-k", "none",
		"-c", filepath.Join(dir, "suricata.yaml"), "-S", filepath.Join(dir, "test.rules"), "-l", dir)
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait() // it was told to end
		if text, err := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("Suricata said (%v):\n%s", err, text)
		}
	}()
	wait := func(what string, ok func() bool) {
		t.Helper()
		for !ok() {
			if time.Sleep(50 * time.Millisecond); ctx.Err() != nil {
				t.Fatalf("not before the time was over: %s", what)
			}
		}
	}
	wait("Suricata runs", func() bool {
		text, err := os.ReadFile(log.Name())
		return err == nil && strings.Contains(string(text), "Engine started")
	})
	send := func(tap *Tap, source string, tags ...uint16) {
		t.Helper()
		p := packet{to: decoyMAC, from: intruderMAC, tags: tags, src: source, dst: "192.0.2.10", proto: 1, payload: echo(1)}
		write(t, tap, p.frame(t))
	}
	send(tap, "198.51.100.1")
	send(tap, "198.51.100.2", 7)
	send(tap, "198.51.100.3", 8, 5)
	if err := tap.Close(); err != nil {
		t.Fatal(err)
	}
	send(apply(t, ns, "vtap0"), "198.51.100.4", 4094)
	var got map[string][]int
	wait("four alerts", func() bool {
		text, err := os.ReadFile(filepath.Join(dir, "eve.json"))
		if err != nil {
			t.Fatal(err)
		}
		got = map[string][]int{}
		for line := range strings.Lines(string(text)) {
			var a alert
			if json.Unmarshal([]byte(line), &a) != nil {
				break // half a line
			}
			if a.Ether.Source != intruderMAC || a.Ether.Destination != decoyMAC {
				t.Errorf("MAC addresses in %s", line)
			}
			got[a.Source] = a.VLAN
		}
		return len(got) >= 4
	})
	want := map[string][]int{"198.51.100.1": nil, "198.51.100.2": {7}, "198.51.100.3": {8, 5}, "198.51.100.4": {4094}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("alerts (-want +got):\n%s", diff)
	}
}

// A sensor that stands still costs the writer nothing; what it lost is in its own
// count, and what there was in the device's.
func TestLossIsTheSensorsOwn(t *testing.T) {
	ns := netnstest.New(t, "tap")
	tap := apply(t, ns, "vtap0")
	cmd, cancel := netnstest.Command(t, ns, "tcpdump", "-n", "-B", "512", "-i", "vtap0", "-w", "/dev/null")
	defer cancel()
	var notes netnstest.Buffer
	cmd.Stderr = &notes
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }() // below, or by cancel
	netnstest.Eventually(t, "tcpdump listens", func() bool { return strings.Contains(notes.String(), "listening on") })
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	const frames = 20_000
	p := packet{to: decoyMAC, from: intruderMAC, src: "198.51.100.1", dst: "192.0.2.10", proto: 17, payload: make([]byte, 1400)}
	frame := p.frame(t)
	for range frames {
		write(t, tap, frame)
	}
	for _, signal := range []syscall.Signal{syscall.SIGCONT, syscall.SIGTERM} {
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
	}
	dropped := regexp.MustCompile(`(\d+) packets dropped by kernel`)
	var lost string
	netnstest.Eventually(t, "tcpdump tells its count", func() bool {
		if m := dropped.FindStringSubmatch(notes.String()); m != nil {
			lost = m[1]
		}
		return lost != ""
	})
	if lost == "0" || tap.Stats().Frames != frames || tap.Stats().Failed != 0 {
		t.Errorf("tcpdump lost %s; the device took %+v", lost, tap.Stats())
	}
	var links []struct {
		Stats struct {
			RX struct{ Packets int }
		} `json:"stats64"`
	}
	if err := json.Unmarshal([]byte(netnstest.IP(t, ns, "-s -j link show vtap0")), &links); err != nil {
		t.Fatal(err)
	}
	if len(links) != 1 || links[0].Stats.RX.Packets != frames {
		t.Errorf("the kernel counts %+v", links)
	}
}
