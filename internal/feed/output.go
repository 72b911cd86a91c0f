package feed

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"decoynet/deception"
)

const (
	// tickEvery is how often an output with nothing to write is flushed.
	tickEvery = 125 * time.Millisecond
	// leastQueue is an output's share of the queue at least: two chunks.
	leastQueue = 1 << 20
	// haltedAfter is how long an output may get nothing done before it is full with
	// haltedBytes in its queue, or a quarter of its share. Filling the rest would go on
	// for long and cost relays something, for flows that would be lost anyhow.
	haltedAfter = 2 * time.Second
	haltedBytes = 4 << 20
	// endGrace is how long an output that is ended may still write what waits, and
	// then how long it may take to end when it is closed.
	endGrace = time.Second
)

// ErrRestart is returned by a Writer where whoever reads it is a new one that has
// seen nothing so far, not even what the call was to write.
var ErrRestart = errors.New("another reader")

// Writer is an output. It is called by one goroutine and may block. Where it is an
// io.Closer, Close may be called at the same time as the others, which then
// return soon.
type Writer interface {
	// Frame writes an Ethernet frame, or keeps a copy to write. at is in Unix
	// nanoseconds, and never less than that of the frame before.
	Frame(at int64, frame []byte) error
	// Flush writes what Frame kept. It is called when nothing more waits, and eight
	// times a second where nothing happens.
	Flush() error
}

// Archive is a Writer that keeps frames for people. It is spared those that only
// have a sensor look at what it has, or keep a flow in its mind.
type Archive interface {
	Writer
	// Archive only tells the two apart.
	Archive()
}

// output is a Writer with its queue.
type output struct {
	feed   *Feed
	name   string
	w      Writer
	slot   int
	bit    uint64
	number int  // of its name, see losses
	gone   bool // it was removed; guarded by feed.mu
	wake   chan struct{}
	stop   chan struct{} // closed: write what waits, and end
	abort  chan struct{} // closed: end
	done   chan struct{}
	close  func() error // of the writer, once

	mu     sync.Mutex // guards the rest of this block
	queue  []item
	queued int64 // memory of the chunks of queue and of those being written
	limit  int64
	err    error // the last one

	lost, flows, again, cut, frames, bytes, errors atomic.Uint64
	moved                                          atomic.Int64 // when it last got something done, see clock.elapsed

	synthesis
	merger
}

// Add gives the feed a further output. It is not ok where there is no room for
// another one, earlier ones that were removed and hang included, or the feed is closed.
func (f *Feed) Add(name string, w Writer) (ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	slot := slices.Index(f.slots[:], nil)
	if f.closed || slot < 0 {
		return false
	}
	o := &output{
		feed: f, name: name, w: w, slot: slot, bit: f.newBit(), number: f.losses.number(name),
		wake: make(chan struct{}, 1), stop: make(chan struct{}), abort: make(chan struct{}), done: make(chan struct{}),
		close: func() error { return nil },
	}
	if c, ok := w.(io.Closer); ok {
		o.close = sync.OnceValue(c.Close)
	}
	o.moved.Store(o.feed.clock.elapsed())
	o.lanes = make([]source, len(f.lanes))
	o.start(o)
	f.slots[slot] = o
	f.arrange()
	go o.run()
	return true
}

// newBit returns the bit of an output. It is not that of one before in the same
// slot: flows that run know which outputs lost them. f.mu is held.
func (f *Feed) newBit() uint64 {
	for {
		bit := uint64(1) << (f.added % 64)
		f.added++
		if f.mask.Load()&bit == 0 {
			return bit
		}
	}
}

// Remove ends an output: it writes what waits for it, if that does not take long,
// and is closed.
func (f *Feed) Remove(name string) error {
	f.flush()
	f.mu.Lock()
	var gone []*output
	for _, o := range f.slots {
		if o != nil && !o.gone && o.name == name {
			gone = append(gone, o)
			o.gone = true
		}
	}
	f.arrange()
	f.mu.Unlock()
	return endAll(gone)
}

// takeAll removes all outputs. f.mu is held.
func (f *Feed) takeAll() []*output {
	all := *f.outputs.Load()
	for _, o := range all {
		o.gone = true
	}
	f.arrange()
	return all
}

// vacate gives the slot of an output that has ended to the next one. Until then
// that would write to the same places of flows.
func (f *Feed) vacate(o *output) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.slots[o.slot] = nil
}

// arrange tells everybody which outputs there are. f.mu is held.
func (f *Feed) arrange() {
	var all []*output
	var mask uint64
	for _, o := range f.slots {
		if o != nil && !o.gone {
			all = append(all, o)
			mask |= o.bit
		}
	}
	for _, o := range all {
		o.mu.Lock()
		o.limit = max(int64(f.config.QueueBytes/len(all)), leastQueue)
		o.mu.Unlock()
	}
	f.outputs.Store(&all)
	f.mask.Store(mask)
	f.full.And(mask)
	f.pressed.And(mask)
}

// nextEpoch numbers the readers of all outputs.
func (f *Feed) nextEpoch() uint32 { return f.readers.Add(1) }

// offer puts a chunk into the queue. Where there is no room, every flow that the
// chunk tells of is lost to this output.
func (o *output) offer(it item) {
	c := it.chunk
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.feed.full.Load()&o.bit != 0 || o.queued+c.size() > o.room() {
		o.feed.full.Or(o.bit)
		o.markAllLost(c, it.batch)
		return
	}
	c.refs.Add(1)
	o.queued += c.size()
	o.queue = append(o.queue, it)
	if o.queued > o.limit/2 {
		o.feed.pressed.Or(o.bit)
	}
}

// room is how much memory the queue may hold now. o.mu is held.
func (o *output) room() int64 {
	if few := min(haltedBytes, o.limit/4); o.queued > few && o.feed.clock.elapsed()-o.moved.Load() > int64(haltedAfter) {
		return few
	}
	return o.limit
}

// lose has a flow lost to this output.
func (o *output) lose(w *Flow) {
	o.mu.Lock()
	o.markLost(w, o.feed.filling.Load())
	o.mu.Unlock()
	o.feed.soon()
}

// loseAll has all flows lost that a chunk tells of.
func (o *output) loseAll(c *chunk) {
	o.mu.Lock()
	o.markAllLost(c, o.feed.filling.Load())
	o.mu.Unlock()
}

// markAllLost is markLost for each flow of a chunk. o.mu is held.
func (o *output) markAllLost(c *chunk, batch uint64) {
	for i := range c.records {
		o.markLost(c.records[i].flow, batch)
	}
}

// markLost notes that a flow is lost, and has the output end it where it stands in
// the queue. o.mu is held.
func (o *output) markLost(w *Flow, batch uint64) {
	before := w.lost.Or(o.bit)
	if before&o.bit != 0 {
		return
	}
	if before == 0 {
		o.feed.lost.Add(1)
	}
	o.countLost(w.key)
	o.queue = append(o.queue, item{lost: w, lane: w.lane.number, batch: batch})
}

func (o *output) countLost(k deception.SessionKey) {
	o.lost.Add(1)
	o.feed.losses.flows[o.number].Add(1)
	o.mark(k)
}

// mark notes that the output did not see all of a session.
func (o *output) mark(k deception.SessionKey) { o.feed.roster.mark(k, 1<<o.number) }

func (o *output) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// run makes frames of what waits, until the output is ended.
func (o *output) run() {
	defer close(o.done)
	defer o.feed.vacate(o)
	tick := time.NewTicker(tickEvery)
	defer tick.Stop()
	var items []item
	for stopping := false; ; {
		items = o.take(items[:0], stopping)
		if len(items) > 0 {
			o.writeAll(items)
			continue
		}
		o.note(o.w.Flush())
		if o.aborted() && !stopping { // while it was flushed
			stopping = true
			continue
		}
		if stopping {
			now, _ := o.feed.clock.now()
			o.nudgeAll(now, 0)
			o.note(o.w.Flush())
			if o.aborted() {
				o.forgetAll() // what the writer still kept was not seen
			}
			return
		}
		select {
		case <-o.wake:
		case <-tick.C:
			o.moved.Store(o.feed.clock.elapsed())
			o.attend()
		case <-o.stop:
			stopping = true
		}
	}
}

// take moves items of batches that are whole to an empty slice; all of them where
// no more will come.
func (o *output) take(items []item, all bool) []item {
	whole := o.feed.whole.Load()
	o.mu.Lock()
	defer o.mu.Unlock()
	left := o.queue[:0]
	for _, it := range o.queue {
		if all || it.batch <= whole {
			items = append(items, it)
		} else {
			left = append(left, it)
		}
	}
	clear(o.queue[len(left):])
	o.queue = left
	o.ease()
	return items
}

func (o *output) aborted() bool {
	select {
	case <-o.abort:
		return true
	default:
		return false
	}
}

// took makes room in the queue.
func (o *output) took(size int64) {
	o.moved.Store(o.feed.clock.elapsed())
	o.mu.Lock()
	defer o.mu.Unlock()
	o.queued -= size
	o.ease()
}

// ease has flows taken again where the queue has room. o.mu is held.
func (o *output) ease() {
	if o.queued <= o.limit/2 && (o.feed.full.Load()|o.feed.pressed.Load())&o.bit != 0 {
		o.feed.full.And(^o.bit)
		o.feed.pressed.And(^o.bit)
	}
}

// note keeps what a writer says went wrong.
func (o *output) note(err error) {
	if err == nil {
		return
	}
	if errors.Is(err, ErrRestart) {
		o.epoch = o.feed.nextEpoch()
		o.forgetAll()
		return
	}
	if o.aborted() {
		return
	}
	o.errors.Add(1)
	o.mu.Lock()
	first := o.err == nil || o.err.Error() != err.Error()
	o.err = err
	o.mu.Unlock()
	if first {
		o.feed.config.Log.Warn("an output of the feed failed; the flow is lost to it", "output", o.name, "error", err)
	}
}

// endAll ends outputs that the feed no longer knows, all at the same time.
func endAll(outputs []*output) error {
	errs := make([]error, len(outputs))
	var all sync.WaitGroup
	for i, o := range outputs {
		all.Go(func() { errs[i] = o.end() })
	}
	all.Wait()
	return errors.Join(errs...)
}

func (o *output) end() error {
	close(o.stop)
	if !within(o.done, endGrace) {
		close(o.abort)
		err := o.close()
		if !within(o.done, endGrace) {
			return fmt.Errorf("end output %s of the feed: it still writes", o.name)
		}
		if err != nil {
			return fmt.Errorf("close output %s of the feed: %w", o.name, err)
		}
		return nil
	}
	if err := o.close(); err != nil {
		return fmt.Errorf("close output %s of the feed: %w", o.name, err)
	}
	return nil
}

func within(done <-chan struct{}, limit time.Duration) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}
