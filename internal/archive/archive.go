// Package archive keeps the packets of sessions: it appends the frames of the feed
// to pcap files that roll, deletes the oldest where they grow too many or too old,
// and takes one session out of them again (Extract).
//
// There is one row of files rather than a file a session: a scan of ten thousand
// sessions a second makes no ten thousand files. A session is found by its key,
// which is in the MAC addresses of its frames (see package frame), in the files
// of its time; reading those takes less than a second a gigabyte, and the disk's time.
//
// A disk that is full or broken is waited out: what comes meanwhile is left out
// and counted, and the next second tries again. Every write ends with a whole
// record, so that a killed process loses its last half second and hardly ever
// leaves a torn one; what is torn is cut off at the next start and passed over by
// readers.
package archive

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
)

const (
	maxFileBytes = 64 << 20
	maxFileTime  = 10 * time.Minute
	minFileBytes = 64 << 10

	bufferBytes = 512 << 10 // at least one frame of the largest size
	readBuffer  = 256 << 10

	flushEvery  = 500 * time.Millisecond
	relistEvery = time.Minute // what others have done to the directory is looked at
	retryEvery  = time.Second
)

// ErrClosed is returned by Frame after Close.
var ErrClosed = errors.New("the archive of packets is closed")

// Config says where packets are kept and how many.
type Config struct {
	Dir    string // made where it does not exist
	Limits deception.PCAPLimits
	Log    *slog.Logger // nil: slog.Default
}

// Stats is the state of an archive, for status.
type Stats struct {
	Files     int
	FileBytes uint64    // of all files
	Oldest    time.Time // first packet kept; zero where there is none

	// Since the archive was opened:
	Frames, FrameBytes uint64 // written
	// Capped counts the frames that were left out of sessions which had reached
	// their limit, CappedSessions those sessions.
	Capped, CappedSessions uint64
	Lost                   uint64 // frames that the disk did not take
	Foreign                uint64 // frames of no session, left out
	Expired                uint64 // files that were deleted for their age, or for newer ones

	FailingSince time.Time // writing fails; zero while it works
	Err          error     // the newest failure, also after it is over
}

// Archive is an open archive. It is a feed's writer: Frame and Flush are called by
// one goroutine. Stats may be called by any and does not wait for the disk.
type Archive struct {
	log  *slog.Logger
	stop chan struct{}
	work sync.WaitGroup

	io      sync.Mutex // guards files and the buffer; it is taken before mu
	files   *files
	limits  deception.PCAPLimits
	caps    caps
	buf     []byte // whole records that are not written yet
	frames  int    // in buf
	first   int64  // time of the first of them
	retryAt time.Time
	closed  bool

	mu    sync.Mutex // guards stats; no input or output happens under it
	stats Stats
}

// Open opens the archive in the directory, or makes one. What an earlier process
// left torn is cut off. A disk that cannot be written to is no error; Stats says
// so.
func Open(cfg Config) (*Archive, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of packets: %w", err)
	}
	fs, err := openFiles(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("open the archive of packets: %w", err)
	}
	a := &Archive{
		log: cmp.Or(cfg.Log, slog.Default()), stop: make(chan struct{}),
		files: fs, buf: make([]byte, 0, bufferBytes),
	}
	a.setLimits(cfg.Limits)
	a.note(a.tidy(time.Now()), time.Now())
	a.work.Go(a.run)
	return a, nil
}

// SetLimits changes what is kept. Files that are too many by it go soon.
func (a *Archive) SetLimits(l deception.PCAPLimits) {
	a.io.Lock()
	defer a.io.Unlock()
	a.setLimits(l)
}

// setLimits is SetLimits with a.io held. A file may be a small part only of what
// is kept, since files are deleted whole.
func (a *Archive) setLimits(l deception.PCAPLimits) {
	a.limits = l
	a.caps.limit = l.SessionBytes
	a.files.maxBytes = int64(min(l.MaxBytes, 1<<62))
	a.files.maxFile = min(maxFileBytes, max(minFileBytes, a.files.maxBytes/8))
	a.files.maxTime = maxFileTime
	if l.MaxAge > 0 {
		a.files.maxTime = min(maxFileTime, max(l.MaxAge/8, time.Second))
	}
}

// run writes what waits and deletes what is too old, also while nothing comes.
func (a *Archive) run() {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	relist := time.Now().Add(relistEvery)
	for {
		select {
		case <-a.stop:
			return
		case now := <-tick.C:
			again := now.After(relist)
			if again {
				relist = now.Add(relistEvery)
			}
			a.look(now, again)
		}
	}
}

// look does what is due now and then.
func (a *Archive) look(now time.Time, relist bool) {
	a.io.Lock()
	defer a.io.Unlock()
	err := a.flush(now)
	if relist {
		err = errors.Join(err, a.files.relist())
	}
	if err = errors.Join(err, a.tidy(now)); err != nil {
		a.note(err, now)
		return
	}
	a.count(func(s *Stats) { s.FailingSince = time.Time{} })
}

// Frame keeps a frame; at is in Unix nanoseconds. A frame that the disk does not
// take is counted and is no error.
func (a *Archive) Frame(at int64, f []byte) error {
	a.io.Lock()
	defer a.io.Unlock()
	if a.closed {
		return ErrClosed
	}
	if len(f) < etherHeader || len(f) > maxFrame {
		a.count(func(s *Stats) { s.Foreign++ })
		return nil
	}
	key, _, ok := frame.Key(frame.MAC(f[:6]), frame.MAC(f[6:12]))
	if !ok {
		a.count(func(s *Stats) { s.Foreign++ })
		return nil
	}
	switch a.caps.take(key, f) {
	case leaveOut:
		a.count(func(s *Stats) { s.Capped++ })
	case leaveOutFirst:
		a.count(func(s *Stats) { s.Capped++; s.CappedSessions++ })
		a.put(at, f[:addresses], capNotice)
	default:
		a.put(at, f)
	}
	return nil
}

// put appends a frame to what waits; a.io is held.
func (a *Archive) put(at int64, parts ...[]byte) {
	size := recordHeader
	for _, p := range parts {
		size += len(p)
	}
	if a.frames > 0 && len(a.buf)+size > min(cap(a.buf), int(a.files.maxFile)) {
		if err := a.flush(time.Now()); err != nil {
			a.count(func(s *Stats) { s.Lost++ })
			return
		}
	}
	if a.frames == 0 {
		a.first = at
	}
	a.buf = appendRecord(a.buf, at, parts...)
	a.frames++
}

// Flush writes what waits. It returns why it could not; then that goes on waiting.
func (a *Archive) Flush() error {
	a.io.Lock()
	defer a.io.Unlock()
	if a.closed {
		return nil
	}
	return a.flush(time.Now())
}

// flush is Flush with a.io held. A disk that has just refused is left alone for a
// while.
func (a *Archive) flush(now time.Time) error {
	if a.frames == 0 {
		return nil
	}
	if now.Before(a.retryAt) {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.stats.Err
	}
	expired, err := a.files.append(a.buf, a.first, now)
	if err != nil {
		a.note(err, now)
		a.retryAt = now.Add(retryEvery)
		a.count(func(s *Stats) { s.Expired += uint64(expired) })
		return err
	}
	a.count(func(s *Stats) {
		s.Expired += uint64(expired)
		s.Frames += uint64(a.frames)
		s.FrameBytes += uint64(len(a.buf) - a.frames*recordHeader)
		s.FailingSince = time.Time{}
	})
	a.buf, a.frames, a.retryAt = a.buf[:0], 0, time.Time{}
	return nil
}

// tidy deletes what is too much or too old and publishes what is there; a.io is
// held.
func (a *Archive) tidy(now time.Time) error {
	expired, err := a.files.expire(now, a.limits.MaxAge, 0)
	a.count(func(s *Stats) {
		s.Expired += uint64(expired)
		s.Files, s.FileBytes, s.Oldest = len(a.files.list), uint64(a.files.bytes), time.Time{}
		if len(a.files.list) > 0 {
			s.Oldest = time.Unix(0, a.files.list[0].first)
		}
	})
	return err
}

// note puts a failure where it is seen. The first of a row of them is logged.
func (a *Archive) note(err error, now time.Time) {
	if err == nil {
		return
	}
	fresh := false
	a.count(func(s *Stats) {
		s.Err = err
		if fresh = s.FailingSince.IsZero(); fresh {
			s.FailingSince = now
		}
	})
	if fresh {
		a.log.Warn("keep the packets of sessions; trying again", "err", err)
	}
}

func (a *Archive) count(change func(*Stats)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(&a.stats)
}

// Archive tells the feed that people read this, who need not be shown what only
// keeps a flow in a sensor's mind.
func (a *Archive) Archive() {}

// Stats returns the state of the archive.
func (a *Archive) Stats() Stats {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stats
}

// Close writes what waits and ends. What the disk does not take then is lost, and
// the error says so.
func (a *Archive) Close() error {
	a.io.Lock()
	defer a.work.Wait()
	defer a.io.Unlock()
	if a.closed {
		return nil
	}
	a.closed = true
	close(a.stop)
	a.retryAt = time.Time{}
	err := a.flush(time.Now())
	if err != nil {
		a.count(func(s *Stats) { s.Lost += uint64(a.frames) })
		err = fmt.Errorf("close the archive of packets with %d of them unwritten: %w", a.frames, err)
	}
	return errors.Join(err, a.tidy(time.Now()), a.files.close())
}
