//go:build !linux

package tunnel

import "net"

// unsentLimit is for kernels that let a program bound what waits in a socket.
func unsentLimit(net.Conn) func(int) { return nil }
