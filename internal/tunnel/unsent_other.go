//go:build !linux

package tunnel

import "net"

// limitUnsent is for kernels that let a program bound what waits in a socket.
func limitUnsent(net.Conn) {}
