// Package conntrack turns the kernel's connection tracking events of one
// namespace into facts about flows: who contacted which decoy, which service
// answered, what the service saw as its peer, how much went each way, and how it
// ended. It is what the sessions of the kernel path are recorded from.
//
// [Listen] and [Dump] read events, [Tracker] is the pure state machine that makes
// flows of them, and [Tune] sets the namespace's connection tracking so that the
// events hold what the Tracker wants.
//
// What the kernel does not tell: it counts IP packets with all their headers,
// not payload ([Flow] estimates), and it counts a super-packet of a virtual link
// once.
package conntrack
