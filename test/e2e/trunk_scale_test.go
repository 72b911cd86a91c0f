//go:build linux

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
	"decoynet/internal/lab/vm"
)

const (
	// envVLANs is how many VLANs TestManyVLANs has; `make vm-scale` says 256.
	envVLANs     = "DECOYNET_VLANS"
	usualVLANs   = 16
	vlanDecoys   = 256
	firstVLAN    = 1000
	manyPorts    = "21, 22, 23, 25, 80, 443, 445, 3389, 8080, 8443"
	everyPortsAt = "10.128.0.200"
)

var manyPortNumbers = []uint16{21, 22, 23, 25, 80, 443, 445, 3389, 8080, 8443}

// vlanBase is the network address of the i-th VLAN's /23.
func vlanBase(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(128 + i/128), byte(i % 128 * 2), 0})
}

// vlanHost is an address of that network.
func vlanHost(i, host int) netip.Addr {
	b := vlanBase(i).As4()
	return netip.AddrFrom4([4]byte{b[0], b[1], b[2] + byte(host>>8), byte(host)})
}

// manyVLANs is the document: a segment a VLAN, each with 256 decoy addresses of ten
// ports; one address has all ports instead.
func manyVLANs(n int) string {
	var b strings.Builder
	b.WriteString("node: gw\nsegments:\n")
	for i := range n {
		fmt.Fprintf(&b, "  - {name: s%d, parent: eth1, vlan: %d, claim: unchecked, subnets: [{prefix: %s/23}]}\n", i, firstVLAN+i, vlanBase(i))
	}
	b.WriteString(`zones:
  - {name: linux, subnet: 10.1.0.0/24, link: br-linux}
services:
  - {name: ten, zone: linux, address: 10.1.0.2, ports: [` + manyPorts + `]}
  - {name: every, zone: linux, address: 10.1.0.3, ports: [1-65535]}
decoys:
`)
	for i := range n {
		addrs := fmt.Sprintf("%s-%s", vlanHost(i, 1), vlanHost(i, vlanDecoys))
		if i == 0 {
			addrs = fmt.Sprintf("%s-%s, %s-%s", vlanHost(0, 1), vlanHost(0, 199), vlanHost(0, 201), vlanHost(0, vlanDecoys+1))
		}
		fmt.Fprintf(&b, "  - {name: d%[1]d, segment: s%[1]d, addresses: [%[2]s], bind: [{ports: [%[3]s], service: ten}]}\n", i, addrs, manyPorts)
	}
	b.WriteString("  - {name: every, segment: s0, addresses: [" + everyPortsAt + "], bind: [{ports: [1-65535], service: every}]}\n")
	return b.String()
}

// TestManyVLANs has a trunk with many VLANs of 256 decoys each. What it takes is
// measured outside of the process, in /proc.
func TestManyVLANs(t *testing.T) {
	t.Parallel()
	n := usualVLANs
	if s := os.Getenv(envVLANs); s != "" {
		var err error
		n, err = strconv.Atoi(s)
		check(t, err)
	}
	if !vm.Run(t, vm.Options{
		Modules:  []string{"8021q", "macvlan", "veth"},
		Programs: []string{"nft", "ping"},
		Files:    trunkFiles(t),
		Env:      []string{envVLANs + "=" + strconv.Itoa(n)},
		Memory:   1800,
		Timeout:  10 * time.Minute,
	}) {
		return
	}
	o, server := newManyOffice(t, n)
	began := time.Now()
	o.start()
	o.waitReady(time.Minute)
	t.Logf("%d VLANs, %d decoy addresses: ready after %v", n, n*vlanDecoys+1, time.Since(began).Round(10*time.Millisecond))
	for range 10 {
		i, host, port := rand.IntN(n), 1+rand.IntN(199), manyPortNumbers[rand.IntN(len(manyPortNumbers))]
		o.visitVLAN(i, netip.AddrPortFrom(vlanHost(i, host), port), server)
	}
	o.visitVLAN(0, netip.MustParseAddrPort(everyPortsAt+":54321"), nil)
	o.wantModest(n)
	began = time.Now()
	check(t, o.process.Signal(syscall.SIGTERM))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	check(t, o.process.Wait(ctx))
	t.Logf("clean end after %v", time.Since(began).Round(10*time.Millisecond))
	out, err := o.Gateway.Run(t.Context(), "sh", "-c", "ip netns list; ip -o link show type macvlan; ip -o link show type vlan")
	if err != nil || out != "" {
		t.Errorf("it leaves %s, %v", out, err)
	}
}

// newManyOffice has an intruder at the other end of the trunk.
func newManyOffice(t *testing.T, n int) (*office, *lab.Server) {
	t.Helper()
	l, dir := labtest.New(t), t.TempDir()
	o := &office{t: t, since: time.Now(), daemon: &daemon{}, data: filepath.Join(dir, "data"), file: filepath.Join(dir, "decoynet.yaml")}
	o.Gateway, o.Linux, o.Intruder = l.Machine("gw"), l.Machine("linux"), l.Machine("intruder")
	o.Gateway.Forward()
	o.Zone = o.Gateway.Bridge("br-linux", "10.1.0.1/24")
	o.Linux.Plug(o.Zone, "eth0", "10.1.0.2/24", "10.1.0.3/24")
	o.Linux.Route("default", "10.1.0.1")
	labtest.Built(t, l)
	_, err := o.Intruder.Run(t.Context(), "sh", "-ec", fmt.Sprintf("ip link add eth0 up type veth peer name eth1 netns %d", o.Gateway.PID()))
	check(t, err)
	_, err = o.Gateway.Run(t.Context(), "ip", "link", "set", "eth1", "up")
	check(t, err)
	// One server has all ports of the second address.
	_, err = o.Linux.Run(t.Context(), "nft", "add table ip every; add chain ip every in { type nat hook prerouting priority dstnat; }; add rule ip every in ip daddr 10.1.0.3 tcp dport 1-65535 dnat to 10.1.0.2:80")
	check(t, err)
	server, err := lab.TCPPeer(t.Context(), o.Linux, lab.Listen{Addrs: []string{"10.1.0.2"}, Ports: manyPortNumbers})
	check(t, err)
	o.document(manyVLANs(n))
	return o, server
}

// visitVLAN has the intruder join the VLAN and connect to a decoy.
func (o *office) visitVLAN(i int, to netip.AddrPort, server *lab.Server) {
	o.t.Helper()
	_, err := o.Intruder.Run(o.t.Context(), "sh", "-ec", fmt.Sprintf(`ip link show v%[1]d >/dev/null 2>&1 || {
		ip link add link eth0 name v%[1]d type vlan id %[1]d; ip address add %[2]s/23 dev v%[1]d; ip link set v%[1]d up; }`, firstVLAN+i, vlanHost(i, 500)))
	check(o.t, err)
	conn, seen, err := o.askPeer(netip.AddrPort{}, to)
	if err != nil {
		o.t.Errorf("ask %s in VLAN %d: %v", to, firstVLAN+i, err)
		return
	}
	defer conn.Close()
	source := localAddr(conn)
	if server != nil {
		o.wantPeer(server, source)
	}
	s := o.recorded(source, func(s *record) bool { return s.dest() == to })
	if want := fmt.Sprintf("s%d", i); s.Segment != want || seen != source {
		o.t.Errorf("the server saw %s of %s; recorded in segment %s, not %s", seen, source, s.Segment, want)
	}
}

// wantModest looks at what the process holds.
func (o *office) wantModest(n int) {
	o.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", o.process.PID())
	// Flows that have ended and probes of health come and go.
	eventually(o.t, 5*time.Second, func() error {
		fds, err := os.ReadDir(proc + "fd")
		if most := 2*n + 60; err == nil && len(fds) > most {
			err = fmt.Errorf("%d descriptors for %d segments, more than %d", len(fds), n, most)
		}
		return err
	})
	fds, err := os.ReadDir(proc + "fd")
	check(o.t, err)
	status, err := os.ReadFile(proc + "status")
	check(o.t, err)
	kB := map[string]int{}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) == 3 && f[2] == "kB" {
			kB[f[0]], err = strconv.Atoi(f[1])
			check(o.t, err)
		}
	}
	o.t.Logf("%d descriptors, RSS %d MB, at most %d MB", len(fds), kB["VmRSS:"]>>10, kB["VmHWM:"]>>10)
	if rss := kB["VmRSS:"] >> 10; rss == 0 || rss >= 150 {
		o.t.Errorf("RSS is %d MB, not below 150", rss)
	}
}
