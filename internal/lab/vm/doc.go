// Package vm runs a test inside a virtual machine, for what the kernel of the
// machine at hand lacks: VLAN devices, ipset, the iptables of old.
//
// The guest is Debian's kernel (package linux-image-amd64) in QEMU's software
// emulation, so it needs no hardware support and no rights. Its root file system
// is an archive in memory, made for the one test: busybox, the test's own binary,
// the kernel's network modules and the programs that the test names, with their
// libraries. Nothing is written to the host's disks.
//
//	func TestTrunk(t *testing.T) {
//		if !vm.Run(t, vm.Options{Modules: []string{"8021q"}, Programs: []string{"tcpdump"}}) {
//			return // outside: the same test has run in a guest, and t has its outcome
//		}
//		l := labtest.New(t) // inside: root on a kernel of one's own
//		...
//	}
//
// The guest has a loopback interface and no other: switches, intruders and nodes
// are namespaces inside, made by internal/lab as elsewhere. It is several times
// slower than the host, so limits in a test that runs there must be generous.
package vm
