package vm_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
	"decoynet/internal/lab/vm"

	"github.com/vishvananda/netlink"
)

func TestMain(m *testing.M) { labtest.Main(m) }

// within bounds everything that a test waits for.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func output(t *testing.T, ctx context.Context, m *lab.Machine, name string, args ...string) string {
	t.Helper()
	out, err := m.Run(ctx, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestVLANTrunk has a switch with VLANs, a node on its trunk port, and an
// intruder and a bystander on access ports of two VLANs. The capture is made on
// the switch's side of the trunk.
func TestVLANTrunk(t *testing.T) {
	if !vm.Run(t, vm.Options{Modules: []string{"8021q"}, Programs: []string{"tcpdump"}}) {
		return
	}
	ctx := within(t, time.Minute)
	l := labtest.New(t)
	lan := l.Switch("lan")
	node, intruder, bystander := l.Machine("node"), l.Machine("intruder"), l.Machine("bystander")
	node.Plug(lan, "eth0")
	intruder.Plug(lan, "eth0", "192.168.32.66/24")
	bystander.Plug(lan, "eth0", "192.168.32.67/24")
	labtest.Built(t, l)
	output(t, ctx, lan.Machine(), "sh", "-ec", `
		ip link set `+lan.Bridge()+` type bridge vlan_filtering 1
		bridge vlan del dev node-eth0 vid 1
		bridge vlan add dev node-eth0 vid 110
		bridge vlan add dev node-eth0 vid 120
		bridge vlan add dev intruder-eth0 vid 110 pvid untagged
		bridge vlan add dev bystander-eth0 vid 120 pvid untagged`)
	if err := node.Do(func() error { return addVLAN("eth0", "office", 110, "192.168.32.1/24") }); err != nil {
		t.Fatal(err)
	}
	capture, err := lan.Machine().Start("tcpdump", "-Z", "root", "-nel", "-i", "node-eth0", "vlan and icmp")
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Eventually(ctx, 20*time.Second, said(capture, "listening on")); err != nil {
		t.Fatal(err)
	}
	if _, err := bystander.Run(ctx, "ping", "-c1", "-W1", "192.168.32.1"); err == nil {
		t.Error("the address of VLAN 110 is reached from VLAN 120")
	}
	output(t, ctx, intruder, "ping", "-c1", "-W10", "192.168.32.1")
	for _, want := range []string{
		"vlan 110, p 0, ethertype IPv4 (0x0800), 192.168.32.66 > 192.168.32.1: ICMP echo request",
		"vlan 110, p 0, ethertype IPv4 (0x0800), 192.168.32.1 > 192.168.32.66: ICMP echo reply",
	} {
		if err := lab.Eventually(ctx, 20*time.Second, said(capture, want)); err != nil {
			t.Error(err)
		}
	}
}

// addVLAN adds an 802.1Q device with an address, and sets it and its parent up.
func addVLAN(parent, name string, id int, address string) error {
	below, err := netlink.LinkByName(parent)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = name, below.Attrs().Index
	link := &netlink.Vlan{LinkAttrs: attrs, VlanId: id, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	if err := netlink.LinkAdd(link); err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// said tells whether the program has written the text.
func said(p *lab.Process, text string) func() error {
	return func() error {
		if log := p.Log(); !strings.Contains(log, text) {
			return &silence{text, log}
		}
		return nil
	}
}

type silence struct{ want, log string }

func (s *silence) Error() string { return "no " + s.want + " in:\n" + s.log }

// TestModulesOnDemand uses what the kernel has in modules without naming any.
func TestModulesOnDemand(t *testing.T) {
	if !vm.Run(t, vm.Options{Programs: []string{"nft", "ipset", "iptables-legacy"}}) {
		return
	}
	ctx := within(t, time.Minute)
	l := labtest.New(t)
	m := l.Machine("m")
	labtest.Built(t, l)
	for _, c := range [][]string{
		{"ip", "link", "add", "d0", "type", "dummy"},
		{"ip", "link", "add", "link", "d0", "name", "d0.110", "type", "vlan", "id", "110"},
		{"ip", "link", "add", "link", "d0", "name", "m0", "type", "macvlan", "mode", "bridge"},
		{"ip", "link", "add", "v0", "type", "vxlan", "id", "10010", "dstport", "4789", "local", "192.0.2.1"},
		{"ip", "tuntap", "add", "t0", "mode", "tap"},
		{"tc", "qdisc", "add", "dev", "d0", "clsact"},
		{"tc", "filter", "add", "dev", "d0", "ingress", "bpf", "bytecode", "1,6 0 0 0"},
		{"nft", "add table inet t; add chain inet t c { type filter hook prerouting priority mangle; }; add set inet t s { typeof ip daddr . tcp dport; };" +
			" add rule inet t c ip daddr . tcp dport @s meta l4proto tcp tproxy ip to :1; add rule inet t c limit rate 10/second ct state new counter"},
		{"ipset", "create", "bound", "hash:ip,port"},
		{"iptables-legacy", "-t", "mangle", "-A", "PREROUTING", "-p", "tcp", "-m", "set", "--match-set", "bound", "dst,dst", "-j", "TPROXY", "--on-port", "1"},
	} {
		output(t, ctx, m, c[0], c[1:]...)
	}
	rules := output(t, ctx, m, "nft", "list", "ruleset")
	if !strings.Contains(rules, "tproxy ip to :1") {
		t.Errorf("no TPROXY rule in:\n%s", rules)
	}
	rules = output(t, ctx, m, "iptables-legacy", "-t", "mangle", "-S")
	if !strings.Contains(rules, "--match-set bound dst,dst -j TPROXY") {
		t.Errorf("no TPROXY rule in:\n%s", rules)
	}
}

// TestFiles has files of the caller's, by relative and absolute paths, in a guest
// with other settings than usual.
func TestFiles(t *testing.T) {
	o := vm.Options{
		Files:   map[string]string{"here": "testdata", "/opt/there/doc": "doc.go"},
		Env:     []string{"GREETING=hello  there"},
		Modules: []string{"dummy", "nf-tables", "8021q"},
		CPUs:    2,
		Memory:  900,
	}
	if !vm.Run(t, o) {
		return
	}
	for _, path := range []string{"here/nested/note.txt", "/opt/there/doc"} {
		if text, err := os.ReadFile(path); err != nil || len(text) == 0 {
			t.Errorf("read %s: %q, %v", path, text, err)
		}
	}
	if got := os.Getenv("GREETING"); got != "hello  there" {
		t.Errorf("GREETING=%q", got)
	}
	if dir, err := os.Getwd(); err != nil || filepath.Base(dir) != "vm" {
		t.Errorf("working directory %s, %v", dir, err)
	}
	modules, err := os.ReadFile("/proc/modules")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"dummy", "nf_tables", "8021q"} {
		if !strings.Contains("\n"+string(modules), "\n"+name+" ") {
			t.Errorf("module %s is not loaded", name)
		}
	}
	if out, err := exec.Command("nproc").Output(); err != nil || string(out) != "2\n" {
		t.Errorf("nproc: %q, %v", out, err)
	}
	year := time.Now().Year()
	if year < 2025 {
		t.Errorf("the clock says %d", year)
	}
}
