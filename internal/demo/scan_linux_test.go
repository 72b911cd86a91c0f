package demo

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"decoynet/internal/lab"
)

func TestParseScan(t *testing.T) {
	got, err := parseScan(`# Nmap 7.93 scan initiated Sun Nov 22 10:00:00 2026 as: nmap -oG - 192.0.2.0/24
Host: 192.0.2.20 ()	Status: Up
Host: 192.0.2.20 ()	Ports: 22/open/tcp//ssh///, 8080/closed/tcp//http-proxy///	Ignored State: filtered (3)
Host: 192.0.2.10 (production)	Status: Up
# Nmap done at Sun Nov 22 10:00:02 2026 -- 256 IP addresses (2 hosts up) scanned in 1.62 seconds
`)
	if err != nil {
		t.Fatal(err)
	}
	want := map[netip.Addr]map[uint16]string{
		addr("192.0.2.20"): {22: "open", 8080: "closed"},
		addr("192.0.2.10"): {},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for _, bad := range []string{"Host: nobody ()\tStatus: Up\n", "Host: 192.0.2.20 ()\tPorts: x/open/tcp//ssh///\n"} {
		if _, err := parseScan(bad); err == nil {
			t.Errorf("parseScan(%q) has no error", bad)
		}
	}
}

func TestCheckScan(t *testing.T) {
	p, err := readPlan(Document, branchHosts())
	if err != nil {
		t.Fatal(err)
	}
	machines := []netip.Addr{lab.OfficeProduction.V4}
	found := func() map[netip.Addr]map[uint16]string {
		hosts := map[netip.Addr]map[uint16]string{machines[0]: {80: "open"}}
		for _, a := range p.decoys(lab.OfficeLAN4.Addr()) {
			hosts[a] = map[uint16]string{80: "open", 443: "open", 8080: "closed", 22: "open", 6379: "open"}
			if a.Compare(addr("192.0.2.200")) >= 0 { // the kernel path's have the web only
				hosts[a][22], hosts[a][6379] = "closed", "closed"
			}
		}
		return hosts
	}
	errs, open := p.checkScan(found(), machines)
	if len(errs) > 0 || open != 145*4+51*2 {
		t.Errorf("a true scan: %d open, %v", open, errs)
	}
	for want, change := range map[string]func(map[netip.Addr]map[uint16]string){
		"decoy 192.0.2.21 is not up":                         func(h map[netip.Addr]map[uint16]string) { delete(h, addr("192.0.2.21")) },
		"machine 192.0.2.10 is not up":                       func(h map[netip.Addr]map[uint16]string) { delete(h, machines[0]) },
		"192.0.2.99 is up, and is nobody's":                  func(h map[netip.Addr]map[uint16]string) { h[addr("192.0.2.99")] = nil },
		"port 80 of decoy 192.0.2.250 is filtered, not open": func(h map[netip.Addr]map[uint16]string) { h[addr("192.0.2.250")][80] = "filtered" },
		"port 22 of decoy 192.0.2.200 is open, not closed":   func(h map[netip.Addr]map[uint16]string) { h[addr("192.0.2.200")][22] = "open" },
	} {
		hosts := found()
		change(hosts)
		errs, _ := p.checkScan(hosts, machines)
		if got := fmt.Sprint(errs); got != "["+want+"]" {
			t.Errorf("%s, want [%s]", got, want)
		}
	}
}

func TestLeftovers(t *testing.T) {
	before := []string{"ip link: 1: lo", "mount: / ext4 /dev/sda1", "ip route: default via 10.0.0.1"}
	for after, want := range map[string][2]string{
		strings.Join(before, "\n"): {},
		strings.Join(append([]string{"file: /run/netns/decoynet-office"}, before...), "\n"):         {"file: /run/netns/decoynet-office", ""},
		strings.Join(append([]string{"ip route: local default dev lo proto 142"}, before...), "\n"): {"ip route: local default dev lo proto 142", ""},
		strings.Join(append([]string{"mount: /run tmpfs decoynet-lab:demo-7:gw"}, before...), "\n"): {"mount: /run tmpfs decoynet-lab:demo-7:gw", ""},
		strings.Join(append([]string{"ip link: 7: docker0"}, before...), "\n"):                      {"", "new: ip link: 7: docker0"},
		strings.Join(before[:2], "\n"): {"", "gone: ip route: default via 10.0.0.1"},
	} {
		ours, others := leftovers(before, strings.Split(after, "\n"))
		if got := [2]string{strings.Join(ours, ";"), strings.Join(others, ";")}; got != want {
			t.Errorf("after %q: %q, want %q", after, got, want)
		}
	}
}

func TestStable(t *testing.T) {
	const line = "2: eth0 inet 10.0.0.2/24 scope global eth0 valid_lft %ds preferred_lft %ds"
	a, b := stable(fmt.Sprintf(line, 10, 20)), stable(fmt.Sprintf(line, 9, 19))
	if a != b || !strings.Contains(a, "10.0.0.2/24 scope global eth0") {
		t.Errorf("%q and %q", a, b)
	}
}

func TestCommandEnv(t *testing.T) {
	got := map[string]string{}
	for _, e := range CommandEnv([]string{"HOME=/root", "PATH=/bin", "PATH=/bin:/sbin"}) {
		key, value, _ := strings.Cut(e, "=")
		if _, twice := got[key]; twice {
			t.Errorf("%s twice", key)
		}
		got[key] = value
	}
	want := map[string]string{"HOME": "/root", "PATH": "/run/bin:/bin:/sbin"}
	if !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestCheckHostScan(t *testing.T) {
	p, err := readPlan(Document, branchHosts())
	if err != nil {
		t.Fatal(err)
	}
	target, own := lab.BranchServer.V4, []uint16{crmPort, crmAdminPort}
	found := func() map[uint16]string {
		return map[uint16]string{22: "closed", 80: "open", 443: "open", 2222: "open", 6379: "open", crmPort: "open", crmAdminPort: "open"}
	}
	if errs, open := p.checkHostScan(target, found(), own); len(errs) > 0 || open != 4 {
		t.Errorf("a true scan: %d open, %v", open, errs)
	}
	for want, change := range map[string]func(map[uint16]string){
		"port 80 of 198.51.100.10 is closed, not open":   func(ports map[uint16]string) { ports[80] = "closed" },
		"port 22 of 198.51.100.10 is open, not closed":   func(ports map[uint16]string) { ports[22] = "open" },
		"port 8080 of 198.51.100.10 is closed, not open": func(ports map[uint16]string) { ports[crmPort] = "closed" },
	} {
		ports := found()
		change(ports)
		errs, _ := p.checkHostScan(target, ports, own)
		if got := fmt.Sprint(errs); got != "["+want+"]" {
			t.Errorf("%s, want [%s]", got, want)
		}
	}
}
