package conntrack

import "time"

// Timeouts that Tune sets. A tuple towards a service is taken as long as its
// entry lives, and a new flow that would need it has its source port moved by the
// kernel: so closed connections go quickly. Half-closed ones (one FIN seen)
// keep the kernel's own patience, since a client may close its side and read on.
const (
	timeoutClosed  = 1 * time.Second // after a RST, or both FINs
	timeoutLastAck = 5 * time.Second // some retransmissions of the last FIN
)
