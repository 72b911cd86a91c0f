package doctor_test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"decoynet/internal/doctor"
	"decoynet/internal/lab/labtest"
	"decoynet/internal/lab/vm"
)

// TestTrunkOfKernels looks at a trunk on a kernel with VLAN devices, which are the
// gateways of the VLANs at the other end: first before segments stand, then with
// their VLAN device in a namespace of its own and a macvlan on it.
func TestTrunkOfKernels(t *testing.T) {
	if !vm.Run(t, vm.Options{Modules: []string{"8021q", "macvlan", "veth"}}) {
		return
	}
	l := labtest.New(t)
	s := &trunk{t: t, gw: l.Machine("gw"), core: l.Machine("core")}
	labtest.Built(t, l)
	s.run(s.core, fmt.Sprintf("ip link add port1 type veth peer name eth1 netns %d && ip link set port1 up", s.gw.PID()))
	s.run(s.gw, "ip link set eth1 up")
	for _, id := range []string{"110", "120"} {
		s.run(s.core, fmt.Sprintf("ip link add link port1 name port1.%[1]s type vlan id %[1]s && ip address add 198.18.%[1]s.1/24 dev port1.%[1]s && ip link set port1.%[1]s up", id))
	}
	well := func(when string) {
		t.Helper()
		list := s.examine(state(110, 120), func(d *doctor.Subject) { d.Listen = time.Second })
		t.Logf("%s:\n%s", when, text(list))
		const want = "VLANs 110, 120: the gateway answers the segment's own MAC address, with packets of 1500 bytes"
		if find(list, "", "") != nil || doctor.Problems(list) > 0 || !strings.Contains(text(list), want) {
			t.Errorf("complaints about a trunk that works, %s", when)
		}
	}
	well("before segments stand")

	// As they stand while decoynet runs.
	// In the test's own /run/netns, which the doctor looks into.
	out, err := exec.Command("nsenter", "--net="+s.gw.NetnsPath(), "sh", "-ec", `ip netns add decoynet-_trunk
		for id in 110 120; do
			ip link add link eth1 name v$id netns decoynet-_trunk type vlan id $id
			ip -n decoynet-_trunk link set v$id up
			ip netns add decoynet-vlan$id
			ip -n decoynet-_trunk link add link v$id name lan0 netns decoynet-vlan$id type macvlan mode bridge
			ip -n decoynet-vlan$id link set lan0 up
			ip -n decoynet-vlan$id link set lo up
			ip -n decoynet-vlan$id route add 198.18.$id.0/24 dev lan0
			ip -n decoynet-vlan$id route add local 198.18.$id.100/30 dev lo
		done`).CombinedOutput()
	if err != nil {
		t.Fatalf("make segments: %v: %s", err, out)
	}
	s.run(s.core, "ping -c1 -w5 198.18.110.101") // the decoys are there
	well("while segments stand")

	s.run(s.core, "ip link set port1.120 down")
	s.only(s.examine(state(110, 120)), doctor.Problem, "vlan120", "VLAN 120 never showed a frame")
	s.run(s.core, "ip link set port1.120 up mtu 1400 && ip address add 198.18.120.1/24 dev port1.120 || true")
	s.only(s.examine(state(110, 120)), doctor.Problem, "vlan120", "198.18.120.1 answers a packet of 1500 bytes in fragments of")
}
