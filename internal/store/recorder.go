package store

import (
	"context"
	"errors"
	"fmt"
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
	Path       string        // the file; its directory must exist
	QueueBytes int           // memory for sessions that wait to be written
	Flush      time.Duration // how long a session may wait for others
	Retain     time.Duration // age at which ended sessions are deleted; negative: never
	MaxBytes   int64         // size from which the oldest sessions are deleted; negative: none
}

// RecorderStats is the state of recording, for status.
type RecorderStats struct {
	Queued        int    // records waiting to be written
	QueuedBytes   int    // memory they take
	Written       uint64 // ended sessions written
	WrittenStarts uint64 // sessions written while they ran
	// Lost counts ended sessions that were given up because they could not be
	// written in time; LostStarts announcements of a start likewise (the end of
	// such a session is usually recorded, with all that the start held);
	// LostHeads sessions recorded without their first bytes.
	Lost, LostStarts, LostHeads uint64
	// FailingSince is when writing began to fail, zero while it works.
	FailingSince time.Time
	LastError    error // the newest failure, also after it is over
	LastErrorAt  time.Time
	LastWriteAt  time.Time
	FileBytes    int64 // size of the database without its write-ahead log
}

// Recorder writes sessions to a store's file. Exactly one may be open for a
// file; the lock on the data directory, held by the caller, sees to that.
//
// A failure to write (disk full, file locked, input/output error) is waited
// out: sessions stay in the queue, writing is tried again with growing pauses,
// and what does not fit the queue is counted. Nothing needs to be done when the
// cause is gone.
type Recorder struct {
	cfg   RecorderConfig
	queue *queue
	w     *writer

	stop     chan struct{} // closed: write what is there and end
	giveUp   chan struct{} // closed: end
	ended    chan struct{} // closed when run has returned
	stopOnce sync.Once
	quitOnce sync.Once

	mu    sync.Mutex // guards stats
	stats RecorderStats
}

// OpenRecorder opens the file, creating it where there is none, and starts
// recording. Sessions that a dead process left without an end are ended with
// the reason lost, at the time at which that process last showed life: at most
// ten seconds off. It returns ErrSchema for the file of a newer program.
func OpenRecorder(cfg RecorderConfig) (*Recorder, error) {
	setDefault(&cfg.QueueBytes, DefaultQueueBytes)
	setDefault(&cfg.Flush, DefaultFlush)
	setDefault(&cfg.Retain, DefaultRetain)
	setDefault(&cfg.MaxBytes, DefaultMaxBytes)
	if err := prepare(context.Background(), cfg.Path); err != nil {
		return nil, err
	}
	w, err := openWriter(cfg.Path, cfg.Retain, cfg.MaxBytes)
	if err != nil {
		return nil, err
	}
	if err := w.endLost(); err != nil {
		return nil, errors.Join(fmt.Errorf("end the sessions of the last run: %w", err), w.close())
	}
	r := &Recorder{
		cfg:    cfg,
		queue:  newQueue(max(cfg.QueueBytes, 4*recordMax)),
		w:      w,
		stop:   make(chan struct{}),
		giveUp: make(chan struct{}),
		ended:  make(chan struct{}),
	}
	r.stats.FileBytes = w.fileBytes
	go r.run()
	return r, nil
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
	return s
}

// Close writes what is queued and closes the file. Where that does not succeed
// before ctx is done, the rest is counted as lost and the context's error
// returned.
func (r *Recorder) Close(ctx context.Context) error {
	r.queue.close()
	r.stopOnce.Do(func() { close(r.stop) })
	select {
	case <-r.ended:
	case <-ctx.Done():
		r.quitOnce.Do(func() { close(r.giveUp) })
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
	defer func() {
		if err := r.w.close(); err != nil {
			r.failed(err)
		}
	}()
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	var again <-chan time.Time // set while sessions wait to be deleted
	for {
		select {
		case <-r.queue.wake:
			// Give the session's end, and others, the time to come too.
			if !r.pause(r.cfg.Flush, r.queue.urgent) || !r.drain() {
				return
			}
			again = r.tend(false)
		case <-again:
			again = r.tend(false)
		case <-beat.C:
			again = r.tend(true)
		case <-r.stop:
			r.drain()
			return
		case <-r.giveUp:
			return
		}
	}
}

// drain writes until the queue is empty; false means that it was told to give up.
func (r *Recorder) drain() bool {
	wait := firstPause
	for {
		b := r.queue.take()
		if b.empty() {
			return true
		}
		for {
			err := r.w.write(b)
			if err == nil {
				r.wrote(b)
				r.queue.done()
				wait = firstPause
				break
			}
			r.failed(fmt.Errorf("write sessions: %w", err))
			if hopeless(err) {
				r.queue.drop()
				break
			}
			if !r.pause(wait, nil) {
				return false
			}
			wait = min(2*wait, maxPause)
		}
	}
}

// hopeless tells errors that lie in the data, and would come again, from those
// of the machine. None is known to happen; a batch must not hold up the rest.
func hopeless(err error) bool {
	switch resultCode(err) {
	case codeTooBig, codeConstraint, codeMismatch, codeRange:
		return true
	}
	return false
}

// pause waits; it is cut short by early, and by stop unless writing fails. It
// returns false when it is time to give up.
func (r *Recorder) pause(d time.Duration, early <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	stop := r.stop
	if early == nil {
		stop = nil
	}
	select {
	case <-t.C:
	case <-early:
	case <-stop:
	case <-r.giveUp:
		return false
	}
	return true
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

func (r *Recorder) wrote(b batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stats.Written += uint64(b.ends.count)
	r.stats.WrittenStarts += uint64(r.w.newStarts)
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
