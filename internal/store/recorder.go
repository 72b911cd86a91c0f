package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"decoynet/deception"
)

// Defaults of RecorderConfig.
const (
	DefaultQueueBytes = 64 << 20 // some 600,000 short sessions: a minute at full speed
	DefaultFlush      = 200 * time.Millisecond
	DefaultRetain     = 30 * 24 * time.Hour
	DefaultMaxBytes   = 8 << 30
)

// RecorderConfig says where and how sessions are recorded. Zero values stand
// for the defaults.
type RecorderConfig struct {
	// Path is the file, whose directory must exist, or the address of a
	// PostgreSQL database, which must exist, as postgres://user:password@host/database.
	Path string
	// Name tells recorders of one database from each other, and is the same in
	// every run; the machine's host name where it is empty. A file has one
	// recorder, whatever its name.
	Name       string
	QueueBytes int           // memory for sessions that wait to be written
	Flush      time.Duration // how long a session may wait for others
	Retain     time.Duration // age at which ended sessions, events and probes are deleted; negative: never
	// MaxBytes is the size from which the oldest sessions, events and probes of a file
	// are deleted; negative: none. The size of a database is its server's matter.
	MaxBytes int64
}

// RecorderStats is the state of recording, for status.
type RecorderStats struct {
	Queued        int    // records waiting to be written
	QueuedBytes   int    // memory they take
	Written       uint64 // ended sessions written, delivered ones included
	WrittenStarts uint64 // sessions written while they ran
	Findings      uint64 // written, each counted once
	// Lost counts ended sessions that were given up because they could not be
	// written in time; LostStarts announcements of a start likewise (the end of
	// such a session is usually recorded, with all that the start held);
	// LostHeads sessions recorded without their first bytes. LostEvents,
	// LostSeen and LostProbes count events, reports of egresses, and what was told
	// of probes (more of which is usually told later); LostFindings findings.
	Lost, LostStarts, LostHeads, LostEvents, LostSeen, LostProbes, LostFindings uint64
	// FailingSince is when writing began to fail, zero while it works.
	FailingSince time.Time
	LastError    error // the newest failure, also after it is over
	LastErrorAt  time.Time
	LastWriteAt  time.Time
	FileBytes    int64 // size of the store without its write-ahead log
}

// Recorder writes a store. Exactly one may be open for a file; the lock on the
// data directory, held by the caller, sees to that. A database may have any
// number of them.
//
// A failure to write (disk full, file locked, server gone) is waited out:
// sessions stay in the queue, writing is tried again with growing pauses, and
// what does not fit the queue is counted. Nothing needs to be done when the cause
// is gone.
type Recorder struct {
	cfg   RecorderConfig
	back  backend
	queue *queue
	w     *writer
	slots chan struct{} // holds a token for each Commit under way
	asked chan func()   // work for the writer's goroutine, see ask

	stop     chan struct{} // closed: write what is there and end
	giveUp   chan struct{} // closed: end
	hangUp   func()        // ends what the database connection waits for
	ended    chan struct{} // closed when run has returned
	stopOnce sync.Once
	quitOnce sync.Once

	mu    sync.Mutex // guards stats
	stats RecorderStats
}

// OpenRecorder opens the store, creating what there is not, and starts
// recording. Sessions that an earlier run recorded itself (Started) and left
// without an end are ended with the reason lost, at the time at which that run
// last showed life: at most ten seconds off. It returns ErrSchema for the store
// of a newer program.
func OpenRecorder(cfg RecorderConfig) (*Recorder, error) {
	setDefault(&cfg.QueueBytes, DefaultQueueBytes)
	setDefault(&cfg.Flush, DefaultFlush)
	setDefault(&cfg.Retain, DefaultRetain)
	setDefault(&cfg.MaxBytes, DefaultMaxBytes)
	back, err := choose(cfg.Path)
	if err != nil {
		return nil, fmt.Errorf("open the session store: %w", err)
	}
	name, err := cfg.identity()
	if err != nil {
		return nil, fmt.Errorf("open the session store: %w", err)
	}
	if err := back.prepare(context.Background()); err != nil {
		return nil, err
	}
	ctx, hangUp := context.WithCancel(context.Background())
	w, err := openWriter(ctx, back, name, cfg.Retain, cfg.MaxBytes)
	if err != nil {
		hangUp()
		return nil, err
	}
	if err := w.endLost(); err != nil {
		err = errors.Join(fmt.Errorf("end the sessions of the last run: %w", err), w.close())
		hangUp()
		return nil, err
	}
	r := &Recorder{
		cfg:    cfg,
		back:   back,
		queue:  newQueue(max(cfg.QueueBytes, 4*recordMax)),
		w:      w,
		slots:  make(chan struct{}, maxDeliveries),
		asked:  make(chan func()),
		stop:   make(chan struct{}),
		giveUp: make(chan struct{}),
		hangUp: hangUp,
		ended:  make(chan struct{}),
	}
	r.stats.FileBytes = w.fileBytes
	go r.run()
	return r, nil
}

// identity is the recorder's name in the store.
func (cfg *RecorderConfig) identity() (string, error) {
	if !isURL(cfg.Path) {
		return "", nil
	}
	cfg.MaxBytes = -1
	if name := clean(cfg.Name, maxName); name != "" {
		return name, nil
	}
	name, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("name this recorder: %w", err)
	}
	return clean(name, maxName), nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Started records that a session runs. It copies what it needs, never waits
// and may be called from any thread.
func (r *Recorder) Started(s *deception.Session) { r.queue.putStart(s) }

// Ended records a session that is over, whether or not Started was called for
// it. It copies what it needs, never waits and may be called from any thread.
// A session without an end is taken as ended now.
func (r *Recorder) Ended(s *deception.Session) {
	if s.End.IsZero() {
		ended := *s
		ended.End = time.Now()
		s = &ended
	}
	r.queue.putEnd(s)
}

// Stats returns the state of recording.
func (r *Recorder) Stats() RecorderStats {
	count, bytes, lost := r.queue.usage()
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Queued, s.QueuedBytes = count, bytes
	s.Lost, s.LostStarts, s.LostHeads = lost.ends, lost.starts, lost.heads
	s.LostEvents, s.LostSeen, s.LostProbes, s.LostFindings = lost.events, lost.seen, lost.probes, lost.findings
	return s
}

// Close writes what is queued and closes the store. Where that does not succeed
// before ctx is done, the rest is counted as lost and the context's error
// returned.
func (r *Recorder) Close(ctx context.Context) error {
	r.queue.close()
	r.stopOnce.Do(func() { close(r.stop) })
	select {
	case <-r.ended:
	case <-ctx.Done():
		r.quitOnce.Do(func() { close(r.giveUp); r.hangUp() })
		// A statement in progress returns within its busy timeout; a disk
		// that hangs is not waited for.
		select {
		case <-r.ended:
		case <-time.After(2 * busyTimeout):
			return fmt.Errorf("close the session store: %w", ctx.Err())
		}
	}
	if s := r.Stats(); s.Queued > 0 {
		r.queue.dropAll()
		return fmt.Errorf("close the session store with %d sessions unwritten: %w", s.Queued, context.Cause(ctx))
	}
	return nil
}

const (
	// heartbeat is how often the writer shows that it lives while sessions run,
	// and looks for sessions to delete.
	heartbeat = 10 * time.Second

	// tendPause lies between two slices of deletion.
	tendPause = 25 * time.Millisecond

	firstPause = 50 * time.Millisecond
	maxPause   = time.Second
)

// run is the writer's goroutine. It sleeps while nothing is recorded.
func (r *Recorder) run() {
	defer close(r.ended)
	defer r.end()
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	var flush, again <-chan time.Time // set while sessions wait to be written, to be deleted
	for {
		select {
		case <-r.queue.wake:
			// Give the session's end, and others, the time to come too.
			if flush == nil {
				flush = time.After(r.cfg.Flush)
			}
		case <-flush:
			flush = nil
			if !r.drain(true) {
				return
			}
			again = r.tend(false)
		case <-r.queue.urgent:
			if !r.drain(true) {
				return
			}
			again = r.tend(false)
		case <-r.queue.delivered:
			// Somebody waits. Starts do not, their ends may be near.
			if !r.drain(false) {
				return
			}
			again = r.tend(false)
		case do := <-r.asked:
			do()
		case <-again:
			again = r.tend(false)
		case <-beat.C:
			again = r.tend(true)
		case <-r.stop:
			r.drainAll()
			return
		case <-r.giveUp:
			return
		}
	}
}

// end closes the connection and turns away who waits.
func (r *Recorder) end() {
	r.queue.refuse(ErrClosed)
	if err := r.w.close(); err != nil {
		r.failed(err)
	}
	r.hangUp()
}

// drain writes what waits: all of it, or what cannot wait for the next flush.
// Deliveries that come meanwhile have their turn later, or nothing else ever had
// one. False means that it was told to give up.
func (r *Recorder) drain(all bool) bool {
	for {
		b := r.queue.take(all)
		last := !all || b.drained
		if b.empty() {
			return true
		}
		if !r.writeBatch(b) {
			return false
		}
		if last {
			r.queue.remind()
			return true
		}
	}
}

// drainAll writes everything that waits in a closed queue.
func (r *Recorder) drainAll() {
	for r.drain(true) && !r.queue.idle() {
	}
}

// writeBatch tries until the batch is written or can never be.
func (r *Recorder) writeBatch(b *batch) bool {
	for wait := firstPause; ; wait = min(2*wait, maxPause) {
		err := r.w.write(b)
		if err == nil {
			r.wrote(b)
			return true
		}
		r.failed(fmt.Errorf("write sessions: %w", err))
		if r.back.hopeless(err) {
			r.sort(b)
			return true
		}
		if !r.pause(wait) {
			for _, d := range b.deliveries {
				d.finish(ErrClosed)
			}
			return false
		}
	}
}

// sort writes the parts of a batch one by one after an error that lies in the
// data, which is none that is known to happen: what is wrong must not take the
// rest with it.
func (r *Recorder) sort(b *batch) {
	own, deliveries := &batch{load: b.load, drained: b.drained}, b.deliveries
	if err := r.w.write(own); err != nil {
		r.failed(fmt.Errorf("write sessions: %w", err))
		r.queue.drop()
	} else {
		r.wrote(own)
	}
	for _, d := range deliveries {
		err := r.w.write(&batch{deliveries: []*delivery{d}})
		switch {
		case err == nil:
			r.counted()
		case r.back.hopeless(err):
			err = fmt.Errorf("%w: %w", ErrRecord, err)
		}
		d.finish(err)
	}
}

// pause waits. It returns false when it is time to give up.
func (r *Recorder) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-r.giveUp:
		return false
	}
}

// tend deletes some of what is too old and marks the process alive. Where more
// is left it returns a channel that fires when it is time for that.
func (r *Recorder) tend(alive bool) (again <-chan time.Time) {
	more, err := r.w.tend(time.Now(), alive)
	if err != nil {
		r.failed(fmt.Errorf("tend the session store: %w", err))
		return nil
	}
	r.mu.Lock()
	r.stats.FailingSince = time.Time{}
	r.stats.FileBytes = r.w.fileBytes
	r.mu.Unlock()
	if !more {
		return nil
	}
	return time.After(tendPause)
}

// wrote tells what became of a batch.
func (r *Recorder) wrote(b *batch) {
	r.counted()
	for _, d := range b.deliveries {
		d.finish(nil)
	}
	r.queue.done()
}

// counted adds the newest transaction to the statistics.
func (r *Recorder) counted() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Written += uint64(r.w.ended)
	r.stats.WrittenStarts += uint64(r.w.began)
	r.stats.Findings += uint64(r.w.found)
	r.stats.FailingSince = time.Time{}
	r.stats.LastWriteAt = time.Now()
}

func (r *Recorder) failed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.LastErrorAt = time.Now()
	r.stats.LastError = err
	if r.stats.FailingSince.IsZero() {
		r.stats.FailingSince = r.stats.LastErrorAt
	}
}
