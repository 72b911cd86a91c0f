// Package demo plays decoynet's whole job on one machine: an office network of
// namespaces with decoynet on its gateway, a branch office behind a router that
// translates addresses, whose business server becomes a node and holds decoys at
// its own address, an intruder in each who attacks the decoys with everyday
// tools, and a judgement of what every server then says it saw.
//
// The judgement takes nobody's word alone. The intruders' own network cards are
// watched, each server's own log is read, and decoynet's sessions must agree
// with both: a server that saw any address or port which no intruder used fails
// the demo. So does an alert of the Suricata that looks on, which must be about
// what an intruder did; and no visit may be without one.
package demo
