// Package lab builds small networks out of Linux namespaces, in a few lines:
//
//	l, err := lab.New("")
//	defer l.Close()
//	lan := l.Switch("lan")
//	a, b := l.Machine("a"), l.Machine("b")
//	a.Plug(lan, "eth0", "192.0.2.1/24", "2001:db8::1/64")
//	b.Plug(lan, "eth0", "192.0.2.2/24", "2001:db8::2/64")
//	out, err := a.Run(ctx, "ping", "-c1", "192.0.2.2")
//
// A machine has a network, mount and host-name namespace of its own, and in
// them a private /run and /sys: what a program started there puts below
// /run/netns or pins below /sys/fs/bpf is seen by no other machine, and goes
// away with the machine. Everything else of the file system, and the process
// table, is the host's.
//
// Calls that build the topology return no error, so that a topology reads as a
// drawing: the first failure is kept in the lab, returned by [Lab.Err], by
// every later [Machine.Run] and its like, and by [Lab.Close].
//
// A lab lives as long as the process that made it. Nothing of it is written
// down: [List], [Attach] and [Remove] find it by the mark that each machine's
// /run mount carries, and so does the clean-up, which therefore finds also what
// a program left running behind our back. When the owner dies, however it
// dies, its lab goes with it.
package lab
