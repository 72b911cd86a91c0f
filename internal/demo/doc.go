// Package demo plays decoynet's whole job on one machine: an office network of
// namespaces, decoynet on its gateway, an intruder who attacks the decoys with
// everyday tools, and a judgement of what every server then says it saw.
//
// The judgement takes nobody's word alone. The intruder's own network card is
// watched, each server's own log is read, and decoynet's sessions must agree
// with both: a server that saw any address or port which the intruder did not
// use fails the demo.
package demo
