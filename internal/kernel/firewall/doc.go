// Package firewall writes decoynet's part of the nftables rules: one table,
// inet decoynet, in each namespace that needs it, and nothing outside it.
//
// There are two kinds of rules. [ApplyZones] contains the zones of deception
// services in the gateway host's namespace: a service answers the connections
// that the egress gateway dialed for intruders, and reaches nothing else.
// [ApplyKernelPath] makes decoys whose flows never enter user space: DNAT by
// map in the segment's namespace, and the host's side of it.
//
// [ApplyGuard] keeps the host's own services out of reach from trunk ports, and
// [ApplyLimits] bounds how many ARP requests a segment answers.
//
// All take the whole desired state, compare it with what the kernel holds and
// send the difference in one transaction, so a repeat sends nothing and a change
// of one decoy touches no other. Objects of the table are told apart by the first
// word of their name (zone, segment, kernel-path): a call leaves what other
// parts of decoynet keep in the same table as it is.
package firewall
