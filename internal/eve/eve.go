// Package eve reads the events that Suricata writes to a file, finds the session
// of each, and hands them over as findings.
//
// The file is the buffer: where nobody takes the findings, reading waits. What was
// handed over is noted in a checkpoint by content and offset, so that rotation,
// truncation, copies and the death of either process lose nothing. Events may be
// handed over twice then; they have the same identifier.
//
// The kernel tells when the file is written to (inotify). Where it does not, on
// other systems and on file systems of others' machines, the file is polled.
package eve

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"decoynet/deception"
)

const (
	// pollEvery is how often the file is looked at, and pollWatched how often where
	// the kernel tells of changes.
	pollEvery   = 20 * time.Millisecond
	pollWatched = 500 * time.Millisecond
	// watchAgain is how long it takes until a watch is tried again.
	watchAgain = 10 * time.Second
	// retryFirst and retryMost are how long it takes until findings that were
	// refused are offered again.
	retryFirst = 50 * time.Millisecond
	retryMost  = time.Second
	// DefaultSettle fits a recorder that writes what it has several times a second.
	DefaultSettle = 2 * time.Second
)

// Config says what is read and who gets it. Path, Checkpoint, Sessions and Deliver
// must be given.
type Config struct {
	// Path is Suricata's file of events, one JSON object a line. It need not exist
	// yet.
	Path string
	// Checkpoint is a file of the reader's own.
	Checkpoint string
	// FromEnd leaves out what Path holds when it is read for the first time: the
	// file of a Suricata that others run may hold years.
	FromEnd  bool
	Node     string // name of this machine, for the findings
	Sessions Sessions
	// Deliver takes at most MaxBatch findings, of about a megabyte together, which
	// are not used by the reader afterwards. If it returns an error (ErrBusy where
	// it has no room), it gets the same again a while later. It is called by one
	// goroutine, and should return when ctx is done.
	Deliver func(ctx context.Context, findings []*deception.Finding) error
	// Settle is how long it takes until what Deliver took outlives the process. The
	// checkpoint is that much behind, at most twice as much. Negative: no time at
	// all. Zero: DefaultSettle.
	Settle time.Duration
	// Stats gets what Suricata says about itself (event_type stats): a JSON object,
	// valid during the call only. It must not block. It may be nil.
	Stats func(event []byte)
	// Missed is told where events may not have been read, and why. It must not block.
	// It may be nil.
	Missed func(why error)
	// Lost returns how many flows the feed has lost so far. It may be nil.
	Lost    func() uint64
	MaxLine int // bytes; DefaultMaxLine where it is 0
	Log     *slog.Logger
}

// Reader reads events until it is closed. Its methods may be called from any
// goroutine.
type Reader struct {
	cfg    Config
	cancel context.CancelFunc
	ended  chan struct{}

	follow follower
	join   *joiner
	hold   holder
	event  event // room for the line being read
	batch  batch
	save   saver
	noted  noted

	watch      *watch // nil: the file is polled
	watchTried time.Time

	mu    sync.Mutex // guards the rest
	stats Stats
	done  []finished // of the checkpoint
}

// New begins to read. What keeps it from reading is in Stats and in the log; it is
// tried again.
func New(cfg Config) *Reader {
	ctx, cancel := context.WithCancel(context.Background())
	r := newReader(cfg)
	r.cancel = cancel
	r.ended = make(chan struct{})
	go r.run(ctx)
	return r
}

// newReader makes a reader that somebody has to drive.
func newReader(cfg Config) *Reader {
	if cfg.MaxLine == 0 {
		cfg.MaxLine = DefaultMaxLine
	}
	if cfg.Settle == 0 {
		cfg.Settle = DefaultSettle
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	r := &Reader{cfg: cfg, join: newJoiner(cfg.Sessions)}
	r.follow = follower{path: cfg.Path, checkpoint: cfg.Checkpoint, maxLine: cfg.MaxLine}
	r.save = saver{path: cfg.Checkpoint, settle: cfg.Settle}
	return r
}

// Close ends reading and waits for that. Findings that were not yet taken are read
// again by the next reader.
func (r *Reader) Close() {
	r.cancel()
	<-r.ended
}

func (r *Reader) run(ctx context.Context) {
	defer close(r.ended)
	defer r.follow.close()
	defer func() { r.watch.close() }()
	for opened := false; ; {
		var err error
		if !opened {
			r.follow.close()
			err = r.open(time.Now())
			opened = err == nil
		}
		wait := time.Duration(0)
		if opened {
			wait, err = r.step(ctx, time.Now())
		}
		if err != nil {
			wait = retryMost
		}
		r.failed(cmp.Or(err, r.save.failure))
		if wait == 0 && ctx.Err() == nil {
			continue
		}
		if !r.sleep(ctx, wait) {
			return
		}
	}
}

// sleep waits until there may be something to do; false where reading is to end.
func (r *Reader) sleep(ctx context.Context, wait time.Duration) bool {
	if now := time.Now(); r.watch == nil && now.Sub(r.watchTried) >= watchAgain {
		r.watchTried = now
		r.watch, _ = newWatch(filepath.Dir(r.cfg.Path)) // it is polled then
		return ctx.Err() == nil                         // what came before that is not told
	}
	var changed <-chan struct{}
	if wait == pollEvery && r.watch != nil {
		changed = r.watch.changed
		wait = pollWatched
		if _, waits := r.hold.first(); waits {
			wait = holdFor / 4
		}
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-changed:
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// open goes on where an earlier reader has ended.
func (r *Reader) open(now time.Time) error {
	c, known, err := loadCheckpoint(r.cfg.Checkpoint)
	if err != nil {
		r.failed(err)
		// Which files were read already is not known; those of the last minutes may not
		// have been.
		r.follow.mark = c.Written.Add(-rereadAge)
		return nil
	}
	if !known {
		r.follow.mark = now.Add(-time.Second)
		if r.cfg.FromEnd {
			if err := r.follow.skip(); err != nil {
				return err
			}
		}
		// The next reader has to know when this one began.
		c = r.reached()
		r.save.saved = c
		return c.save(r.cfg.Checkpoint)
	}
	r.follow.done, r.follow.mark = c.Done, c.Written
	r.save.saved = c
	if err := r.follow.resume(c.position()); err != nil {
		return err
	}
	r.relearn()
	return nil
}

// rereadAge is how old a file may be to be read again where the checkpoint is
// damaged.
const rereadAge = 10 * time.Minute

// step does some of the work. It returns how long there is nothing to do.
func (r *Reader) step(ctx context.Context, now time.Time) (time.Duration, error) {
	r.expire(now)
	if wait := r.deliver(ctx, now); wait > 0 {
		return wait, nil
	}
	r.lines(now)
	if wait := r.deliver(ctx, now); wait > 0 {
		return wait, nil
	}
	r.save.settled(r.reached(), now)
	r.noteDone(r.save.saved.Done)
	if r.batch.full {
		r.batch.full = false
		return 0, nil // there are more lines
	}
	n, moved, err := r.follow.fill(now)
	r.progress(n)
	if err != nil {
		return 0, err
	}
	if n > 0 || moved {
		return 0, nil
	}
	return pollEvery, nil
}

// Done tells whether a rotated file was read to its end, so that it may be removed.
func (r *Reader) Done(path string) bool {
	info, err := os.Stat(path)
	if err != nil {
		return false
	}
	head, err := headAt(path)
	if err != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	_, more := beyond(r.done, head, &sibling{path: path, size: info.Size()})
	return !more
}

// lines takes the lines that were read until a batch is full.
func (r *Reader) lines(now time.Time) {
	for len(r.follow.torn) > 0 {
		end := r.follow.torn[0]
		r.follow.torn = r.follow.torn[1:]
		r.torn(end, now)
	}
	t := r.follow.tail
	if t == nil {
		return
	}
	for !r.batch.enough() {
		line, at, ok := t.line()
		if !ok {
			return
		}
		r.take(line, t.base+int64(at), now, func() checkpoint { return r.follow.checkpointAt(t.position(at)) })
	}
	r.batch.full = true
}

// reached returns the place before which everything was handed over.
func (r *Reader) reached() checkpoint {
	if c, ok := r.hold.first(); ok {
		return c
	}
	if r.follow.tail == nil {
		return r.follow.checkpointAt(position{})
	}
	return r.follow.checkpointAt(r.follow.tail.here())
}

// ErrBusy is what Deliver may return if it has no room at the moment. Other errors
// are shown as failures.
var ErrBusy = errors.New("no room for findings")

const (
	// MaxBatch is how many findings are handed over at once, at most.
	MaxBatch      = 256
	maxBatchBytes = 1 << 20
)

// batch is what is to be handed over next.
type batch struct {
	findings []*deception.Finding
	bytes    int
	full     bool // reading stopped because of it
	refused  int  // times in a row
	next     time.Time
}

func (b *batch) add(f *deception.Finding) {
	b.findings = append(b.findings, f)
	b.bytes += len(f.Document)
}

func (b *batch) enough() bool { return len(b.findings) >= MaxBatch || b.bytes >= maxBatchBytes }

// part is what of it may be handed over at once.
func (b *batch) part() []*deception.Finding {
	bytes := 0
	for i, f := range b.findings {
		if bytes += len(f.Document); i == MaxBatch || i > 0 && bytes > maxBatchBytes {
			return b.findings[:i]
		}
	}
	return b.findings
}

// deliver hands the batch over. It returns how long to wait where nobody takes it.
func (r *Reader) deliver(ctx context.Context, now time.Time) time.Duration {
	b := &r.batch
	for len(b.findings) > 0 {
		if wait := b.next.Sub(now); wait > 0 {
			return wait
		}
		part := b.part()
		if err := r.cfg.Deliver(ctx, part); err != nil {
			wait := min(retryMost, retryFirst<<min(b.refused, 8))
			b.refused++
			b.next = now.Add(wait)
			r.refused(err)
			return wait
		}
		r.delivered(part)
		b.refused = 0
		b.findings = b.findings[len(part):]
	}
	*b = batch{full: b.full}
	return 0
}

// saver writes down what was reached when that has had the time to settle. Where it
// cannot, reading goes on: an old checkpoint costs duplicates only.
type saver struct {
	path    string
	settle  time.Duration
	saved   checkpoint
	pending checkpoint
	since   time.Time // when pending was reached, zero where nothing is pending
	failure error     // of the last attempt
	retry   time.Time // when there may be another one
}

func (s *saver) settled(reached checkpoint, now time.Time) {
	if s.since.IsZero() && !reached.same(&s.saved) {
		s.pending, s.since = reached, now
	}
	if s.since.IsZero() || now.Sub(s.since) < s.settle || now.Before(s.retry) {
		return
	}
	if s.failure = s.pending.save(s.path); s.failure != nil {
		s.retry = now.Add(retryMost)
		return
	}
	s.saved, s.since = s.pending, time.Time{}
	if s.settle > 0 {
		s.settled(reached, now)
	}
}
