// Package feed shows flows to Suricata and to other sensors: what a relay reads
// goes through a bounded queue to outputs (a FIFO, a tap device, pcap files), as
// the clean packets that the intruder and the decoy would have exchanged.
//
// Nobody who hands something in ever waits. Relays write records into the chunk of
// their lane; when one is full or a few milliseconds old, all lanes' go to the queue
// of each output, whose own goroutine merges them by time, makes the frames and
// writes them. An output that does not keep up loses flows, whole ones, and is told
// no more about them; others do not notice. What was lost is counted.
package feed

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
)

// Sides of a flow.
const (
	Client = 0 // the intruder
	Server = 1 // the decoy, or the service behind it
)

const (
	// maxOutputs bounds how many outputs there are at once.
	maxOutputs = 4
	// DefaultQueueBytes is what waits in memory for outputs at most.
	DefaultQueueBytes = 64 << 20
	// flushAfter is how old what waits in a lane gets.
	flushAfter = 10 * time.Millisecond
	// heavyFlow is how much was fed of a flow that is dropped before others.
	heavyFlow = 1 << 20
)

// Config is what a feed is made with.
type Config struct {
	Lanes      int    // one for each loop of the relay, so that they do not wait for each other
	QueueBytes int    // of all outputs together; 0: DefaultQueueBytes
	Depth      uint64 // bytes of each direction of a flow that are fed; 0: no limit
	Log        *slog.Logger
}

// Feed is the queue between relays and outputs.
type Feed struct {
	config Config
	lanes  []*lane
	raw    rawFlows
	roster roster
	losses losses
	tags   tagTable
	tuples tupleTable
	clock  clock
	dirty  chan struct{} // a lane has something
	hurry  chan struct{} // a lane has much
	quit   chan struct{}
	done   chan struct{}

	// Sets of outputs, one bit each: those that there are, those whose queue is
	// full, those whose queue is half full.
	mask, full, pressed atomic.Uint64
	depth               atomic.Uint64 // see Config

	flushing sync.Mutex    // held by flush
	filling  atomic.Uint64 // the batch that lanes write to
	whole    atomic.Uint64 // the last one that was handed over by all lanes

	mu      sync.Mutex          // guards the rest
	slots   [maxOutputs]*output // also those that were removed and do not end
	added   int                 // outputs so far
	closed  bool
	outputs atomic.Pointer[[]*output] // those that there are, for readers without the lock

	begun, lost, bad atomic.Uint64
	readers          atomic.Uint32 // of all outputs, one after another
	running          atomic.Int64
}

// New returns a feed without outputs. Close ends it.
func New(c Config) *Feed {
	if c.QueueBytes == 0 {
		c.QueueBytes = DefaultQueueBytes
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	f := &Feed{config: c, dirty: make(chan struct{}, 1), hurry: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	for n := range max(c.Lanes, 1) + 1 { // the last one is that of ready packets
		f.lanes = append(f.lanes, &lane{feed: f, number: n, chunk: newChunk()})
	}
	f.outputs.Store(&[]*output{})
	f.depth.Store(c.Depth)
	f.clock.init()
	f.roster.init()
	f.tuples.init()
	go f.flushLazily()
	return f
}

// SetDepth changes how many bytes of each direction of a flow are fed, for flows that
// begin from now on: those that run would go on behind a hole. 0 is no limit.
func (f *Feed) SetDepth(bytes uint64) { f.depth.Store(bytes) }

// flushLazily hands over what waits in lanes, a moment after the first of it came.
func (f *Feed) flushLazily() {
	defer close(f.done)
	wait := time.NewTimer(time.Hour)
	defer wait.Stop()
	for {
		select {
		case <-f.dirty:
		case <-f.quit:
			return
		}
		wait.Reset(flushAfter)
		select {
		case <-wait.C:
		case <-f.hurry:
		case <-f.quit:
			return
		}
		f.flush()
	}
}

// Begin tells of a new flow. Of the session, ID, Node, Segment, Source,
// Destination, Transport and Start must be set. lane is any number, the same for
// flows of one loop. Nil, whose methods do nothing, is returned where no output
// would take the flow.
func (f *Feed) Begin(s *deception.Session, lane int) *Flow {
	mask, full := f.mask.Load(), f.full.Load()
	if mask == 0 {
		return nil
	}
	f.begun.Add(1)
	if s.Source.Addr().Is6() != s.Destination.Addr().Is6() || !s.Source.IsValid() || !s.Destination.IsValid() {
		f.bad.Add(1)
		return nil
	}
	if full&mask == mask {
		f.countLost(s.ID.Key(), mask)
		return nil
	}
	f.Know(s)
	if lost := full & mask; lost != 0 {
		f.countLost(s.ID.Key(), lost)
	}
	w := &Flow{feed: f, lane: f.lanes[uint(lane)%uint(len(f.lanes)-1)], key: s.ID.Key(), transport: s.Transport, born: f.readers.Load(), depth: f.depth.Load()}
	w.barred = full & mask
	w.lost.Store(w.barred)
	intruder, decoy := frame.Addresses(w.key)
	tags := f.tags.of(s.Node, s.Segment)
	w.header[Client] = frame.NewHeader(s.Transport, intruder, decoy, tags, s.Source, s.Destination)
	w.header[Server] = frame.NewHeader(s.Transport, decoy, intruder, tags, s.Destination, s.Source)
	f.running.Add(1)
	at := s.Start.UnixNano()
	before := f.tuples.replace(w, tuple{s.Source, s.Destination, s.Transport, tags})
	w.lane.mu.Lock()
	defer w.lane.mu.Unlock()
	if before != nil && !before.closed {
		before.closed = true
		before.end(record{
			at: at, kind: kindClientReset, // with no other end of it could the port be free
			offset: uint32(before.fed[Client].Load()), other: uint32(before.fed[Server].Load()),
		})
	}
	w.lane.add(record{flow: w, at: at, kind: kindBegin}, nil)
	return w
}

// countLost counts a flow that outputs, a set of bits, lost the first time.
func (f *Feed) countLost(k deception.SessionKey, outputs uint64) {
	f.lost.Add(1)
	for _, o := range *f.outputs.Load() {
		if o.bit&outputs != 0 {
			o.countLost(k)
		}
	}
}

// Lost is how many flows at least one output did not see whole because it did not
// keep up.
func (f *Feed) Lost() uint64 { return f.lost.Load() }

// Close hands over what waits, ends the outputs, each as Remove does, and the
// feed. What is handed in afterwards is forgotten.
func (f *Feed) Close() error {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return nil
	}
	f.closed = true
	f.mu.Unlock()
	close(f.quit)
	<-f.done
	f.flush()
	f.mask.Store(0)
	f.mu.Lock()
	outputs := f.takeAll()
	f.mu.Unlock()
	return endAll(outputs)
}
