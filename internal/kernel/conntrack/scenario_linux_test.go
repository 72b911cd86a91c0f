package conntrack_test

import (
	"bufio"
	"io"
	"net"
	"time"

	"decoynet/deception"
)

// scenario is one way for a flow to go, at a port of its own.
type scenario struct {
	name string
	port uint16 // of the decoy, the service and the intruder, + 10,000
	udp  bool
	// serve is the service's part; nil where nothing listens.
	serve func(net.Conn)
	// visit is the intruder's; tool, instead of it, a program of his.
	visit func(net.Conn)
	tool  []string
	// Reasons with the rules' mark and by what the kernel tells alone.
	marked, plain      deception.EndReason
	inferred           bool // without the mark
	established        bool
	toService, toGuest uint64 // payload
}

func closeWithReset(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

func drain(c net.Conn) { _, _ = io.Copy(io.Discard, c) }

func echoLine(c net.Conn) {
	line, err := bufio.NewReader(c).ReadString('\n')
	if err == nil {
		_, _ = io.WriteString(c, line)
	}
}

const hello = "hello decoy\n" // 12 bytes

var scenarios = []scenario{
	{
		name: "client closes", port: 2001, established: true, toService: 12, toGuest: 12,
		serve:  func(c net.Conn) { echoLine(c); drain(c) },
		visit:  func(c net.Conn) { _, _ = io.WriteString(c, hello); _, _ = c.Read(make([]byte, 64)) },
		marked: deception.EndClientClosed, plain: deception.EndClientClosed,
	},
	{
		name: "service closes", port: 2002, established: true, toService: 12, toGuest: 12,
		serve:  echoLine,
		visit:  func(c net.Conn) { _, _ = io.WriteString(c, hello); drain(c) },
		marked: deception.EndServiceClosed, plain: deception.EndServiceClosed,
	},
	{
		name: "client resets", port: 2003, established: true, toService: 12, toGuest: 12,
		serve:  func(c net.Conn) { echoLine(c); drain(c) },
		visit:  func(c net.Conn) { _, _ = io.WriteString(c, hello); _, _ = c.Read(make([]byte, 64)); closeWithReset(c) },
		marked: deception.EndClientReset, plain: deception.EndClientReset, inferred: true,
	},
	{
		name: "service resets", port: 2004, established: true, toService: 12, toGuest: 12,
		serve:  func(c net.Conn) { echoLine(c); closeWithReset(c) },
		visit:  func(c net.Conn) { _, _ = io.WriteString(c, hello); drain(c) },
		marked: deception.EndServiceReset,
		// The kernel does not tell whose reset it was.
		plain: deception.EndClientReset, inferred: true,
	},
	{
		name: "service refuses", port: 2005,
		marked: deception.EndRefused, plain: deception.EndRefused,
	},
	{
		name: "half-closed by the client", port: 2006, established: true, toService: 12, toGuest: 200000,
		serve: func(c net.Conn) {
			drain(c)
			time.Sleep(50 * time.Millisecond)
			_, _ = c.Write(make([]byte, 200000))
		},
		visit:  func(c net.Conn) { _, _ = io.WriteString(c, hello); _ = c.(*net.TCPConn).CloseWrite(); drain(c) },
		marked: deception.EndClientClosed, plain: deception.EndClientClosed,
	},
	{
		name: "idle", port: 2007, established: true, toService: 12, toGuest: 12,
		serve: func(c net.Conn) { echoLine(c); time.Sleep(4 * time.Second); closeWithReset(c) },
		visit: func(c net.Conn) {
			_, _ = io.WriteString(c, hello)
			_, _ = c.Read(make([]byte, 64))
			time.Sleep(4 * time.Second)
			closeWithReset(c)
		},
		marked: deception.EndIdle, plain: deception.EndIdle,
	},
	{
		name: "datagrams answered", port: 2008, udp: true, established: true, toService: 12, toGuest: 12,
		serve:  echoLine,
		visit:  func(c net.Conn) { _, _ = io.WriteString(c, hello); _, _ = c.Read(make([]byte, 64)) },
		marked: deception.EndIdle, plain: deception.EndIdle,
	},
	{
		name: "datagram refused", port: 2009, udp: true, toService: 12,
		visit:  func(c net.Conn) { _, _ = io.WriteString(c, hello); _, _ = c.Read(make([]byte, 64)) },
		marked: deception.EndRefused, plain: deception.EndIdle,
	},
	{
		name: "half-open scan", port: 2010,
		serve:  drain,
		tool:   []string{"hping3", "-q", "-S", "-c", "1", "-k", "-s", "12010", "-p", "2010", decoyAddr},
		marked: deception.EndClientReset, plain: deception.EndClientReset, inferred: true,
	},
	{
		name: "no answer", port: filteredPort,
		marked: deception.EndRefused, plain: deception.EndRefused,
	},
	{
		name: "datagram without answer", port: filteredPort + 1, udp: true, toService: 12,
		visit:  func(c net.Conn) { _, _ = io.WriteString(c, hello) },
		marked: deception.EndIdle, plain: deception.EndIdle,
	},
}

// filteredPort and the next are dropped by the service's own filter.
const filteredPort = 2011
