package carrier

import (
	"io"
	"runtime/debug"
)

// What the server does with a flow, said by the header's first byte.
const (
	jobAnswer = 'a' // answers each request
	jobSource = 's' // sends for as long as it can
	jobSink   = 'k' // sends a byte for every receipt's worth that it got
	jobHold   = 'h' // says that it is there, and waits for the end
	jobSettle = 'm' // gives memory back to the system before it says so
)

// exchange is the size of a request, and of its answer.
const exchange = 100

// chunk is how much is written at a time, as a relay does it.
const chunk = 64 << 10

// receipt is how much a sink takes for the byte that says so.
const receipt = 256 << 10

var zeros [chunk]byte // never written to

// Serve does what a flow's header asks for.
func Serve(header []byte, f Flow) {
	defer f.Close()
	switch header[0] {
	case jobAnswer:
		var b [exchange]byte
		for {
			if _, err := io.ReadFull(f, b[:]); err != nil {
				break
			}
			if _, err := f.Write(b[:]); err != nil {
				return
			}
		}
	case jobSource:
		for {
			if _, err := f.Write(zeros[:]); err != nil {
				return
			}
		}
	case jobSink:
		sink(f)
	case jobSettle, jobHold:
		if header[0] == jobSettle {
			debug.FreeOSMemory()
		}
		if _, err := f.Write(zeros[:1]); err != nil {
			return
		}
		_, _ = f.Read(make([]byte, 1)) // its end
	}
	_ = f.CloseWrite() // a peer that is gone needs no FIN
}

// sink reads to the end.
func sink(f Flow) {
	b := make([]byte, chunk)
	for total := 0; ; {
		n, err := f.Read(b)
		if err != nil {
			return
		}
		for total += n; total >= receipt; total -= receipt {
			if _, err := f.Write(zeros[:1]); err != nil {
				return
			}
		}
	}
}
