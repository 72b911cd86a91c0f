package feed

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/internal/frame"
)

const (
	// heartbeatEvery is how long a reader hears nothing: Suricata's clock is the
	// time of the packets, and only with it do flows end and records get written.
	heartbeatEvery = 250 * time.Millisecond
	// heartbeatBehind has a heartbeat not overtake what still waits in a lane.
	heartbeatBehind = 2 * flushAfter
	// pipeBytes is asked of the kernel; it is the most that may be had by default.
	pipeBytes = 1 << 20
	// batchBytes is what is written at once, or less.
	batchBytes = 64 << 10
	// openEvery is how often a reader is looked for while something waits for it.
	openEvery = 20 * time.Millisecond
)

// FIFO is an output that a program reads as a pcap stream from a named pipe,
// one reader after another.
type FIFO struct {
	path string
	log  *slog.Logger
	quit chan struct{} // closed by Close
	once sync.Once

	pipe    atomic.Pointer[os.File] // nil: nobody reads
	batch   []byte
	frames  uint64 // in batch
	last    int64  // the time of the last frame, Unix nanoseconds
	told    int64  // what time it was for the reader when something was written last
	wrote   time.Time
	behind  bool // a reader was lost: the next one knows nothing
	readers atomic.Uint64
	deaths  atomic.Uint64
	bytes   atomic.Uint64
	written atomic.Uint64
	since   atomic.Int64 // Unix nanoseconds when a write began that has not ended; 0: none
}

// FIFOStats are counters since the FIFO was made.
type FIFOStats struct {
	Readers    uint64    // that opened it, one after another
	Gone       uint64    // of those, that closed it or died
	Reading    bool      // there is one now
	Frames     uint64    // written to it
	Bytes      uint64    // of those
	StuckSince time.Time // it takes nothing since then; zero where it reads
}

// NewFIFO makes a named pipe at the path, which only the user of this process may
// open, instead of one that is there.
func NewFIFO(path string, log *slog.Logger) (*FIFO, error) {
	if err := makeFIFO(path); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &FIFO{path: path, log: log, quit: make(chan struct{}), batch: make([]byte, 0, 2*batchBytes)}, nil
}

func makeFIFO(path string) error {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeNamedPipe {
		return fmt.Errorf("make FIFO %s: something else is there; remove it", path)
	}
	fresh := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make FIFO %s: %w", path, err)
	}
	if err := unix.Mkfifo(fresh, 0o600); err != nil {
		return fmt.Errorf("make FIFO %s: %w", path, err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return fmt.Errorf("make FIFO %s: %w", path, err)
	}
	return nil
}

// Frame implements Writer. It waits for a reader, and for it to read.
func (p *FIFO) Frame(at int64, b []byte) error {
	if err := p.await(); err != nil {
		return err
	}
	p.last = max(p.last, at) // a heartbeat may have been ahead
	p.batch = frame.AppendRecord(p.batch, p.last, b)
	p.frames++
	if len(p.batch) < batchBytes {
		return nil
	}
	return p.Flush()
}

// Flush implements Writer. Where nothing waits, it lets a new reader in, and tells
// the one there is the time.
func (p *FIFO) Flush() error {
	if len(p.batch) == 0 {
		return p.beat(time.Now())
	}
	if err := p.await(); err != nil {
		return err
	}
	file := p.pipe.Load()
	if file == nil {
		return os.ErrClosed
	}
	p.since.Store(time.Now().UnixNano())
	n, err := file.Write(p.batch)
	p.since.Store(0)
	p.bytes.Add(uint64(n))
	if err == nil {
		p.written.Add(p.frames)
		p.batch, p.frames = p.batch[:0], 0
		now := time.Now()
		p.told, p.wrote = p.time(now), now
		return nil
	}
	p.lose(err)
	return p.await()
}

// lose lets go of a reader that is gone, and of what it would have read.
func (p *FIFO) lose(err error) {
	if file := p.pipe.Swap(nil); file != nil {
		file.Close()
	}
	p.batch, p.frames, p.behind = p.batch[:0], 0, true
	if p.closed() {
		return
	}
	p.deaths.Add(1)
	p.log.Warn("the reader of a FIFO is gone; what it had not read is lost to it", "path", p.path, "error", err)
}

// beat says what time it is to a reader that has heard nothing for a while.
func (p *FIFO) beat(now time.Time) error {
	if p.pipe.Load() == nil {
		if err := p.open(); err != nil {
			return nil // nobody reads, and there is nothing to read
		}
	}
	if now.Sub(p.wrote) < heartbeatEvery*9/10 {
		return p.restarted()
	}
	var b [128]byte
	p.last = max(p.last, p.time(now)-int64(heartbeatBehind))
	p.batch = frame.AppendRecord(p.batch, p.last, frame.AppendHeartbeat(b[:0]))
	p.frames++
	return p.Flush()
}

// time is what time it is for the reader: that of the machine, of the last frame, or
// what it was when something was written last and as long as that is ago, whichever
// is latest. It goes on where the machine's clock was set back.
func (p *FIFO) time(now time.Time) int64 {
	t := max(now.UnixNano(), p.last)
	if p.told != 0 {
		t = max(t, p.told+int64(now.Sub(p.wrote)))
	}
	return t
}

// await waits until there is a reader. It returns ErrRestart once for each but the
// first.
func (p *FIFO) await() error {
	if p.pipe.Load() != nil {
		return p.restarted()
	}
	retry := time.NewTicker(openEvery)
	defer retry.Stop()
	for {
		err := p.open()
		if err == nil {
			return p.restarted()
		}
		if errors.Is(err, os.ErrClosed) {
			return err
		}
		if !errors.Is(err, unix.ENXIO) {
			return fmt.Errorf("open FIFO %s: %w", p.path, err)
		}
		select {
		case <-retry.C:
		case <-p.quit:
			return os.ErrClosed
		}
	}
}

func (p *FIFO) restarted() error {
	if p.behind {
		p.behind = false
		return ErrRestart
	}
	return nil
}

// open fails with ENXIO where nobody reads (fifo(7)). A FIFO that somebody removed
// is made anew.
func (p *FIFO) open() error {
	if p.closed() {
		return os.ErrClosed
	}
	fd, err := unix.Open(p.path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		if err := makeFIFO(p.path); err != nil {
			return err
		}
		return unix.ENXIO
	}
	if err != nil {
		return err
	}
	// A smaller pipe will do, where the user's share of pipes is used up.
	_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeBytes)
	p.batch = frame.AppendFileHeader(p.batch[:0]) // nothing waits where nobody reads
	p.pipe.Store(os.NewFile(uintptr(fd), p.path))
	p.readers.Add(1)
	if p.closed() { // Close did not see this one
		p.lose(os.ErrClosed)
		return os.ErrClosed
	}
	return nil
}

func (p *FIFO) closed() bool {
	select {
	case <-p.quit:
		return true
	default:
		return false
	}
}

// Close ends the stream for the reader and removes the FIFO. A write that is
// under way returns.
func (p *FIFO) Close() error {
	var err error
	p.once.Do(func() {
		close(p.quit)
		if file := p.pipe.Swap(nil); file != nil {
			err = file.Close()
		}
		if gone := os.Remove(p.path); err == nil && !errors.Is(gone, fs.ErrNotExist) {
			err = gone
		}
	})
	return err
}

// Stats returns the counters.
func (p *FIFO) Stats() FIFOStats {
	s := FIFOStats{
		Readers: p.readers.Load(), Gone: p.deaths.Load(), Reading: p.pipe.Load() != nil,
		Frames: p.written.Load(), Bytes: p.bytes.Load(),
	}
	if since := p.since.Load(); since != 0 && time.Since(time.Unix(0, since)) > stuckAfter {
		s.StuckSince = time.Unix(0, since)
	}
	return s
}
