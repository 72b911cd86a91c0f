// Package spool keeps opaque records on disk until somebody elsewhere has them:
// a bounded queue with one consumer, for delivery at least once.
//
// Records are appended to segment files and read back in order. What is
// acknowledged is a single number in a small file of its own; losing that file
// means that records are delivered twice, never that one is missed. Whoever
// hands a record over never waits for the disk: a goroutine writes what is
// there, so that a process that is killed loses what came in its last
// millisecond, and a machine without power what came in its last second.
//
// A disk that is full or read-only is waited out. Records stay in memory, from
// where they are delivered too, and what does not fit any more is counted.
package spool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

// Defaults of Config and fixed sizes, in bytes.
const (
	DefaultMaxBytes   = 256 << 20
	DefaultQueueBytes = 8 << 20

	// MaxRecord is the longest record; a longer one is given up and counted.
	MaxRecord = 1 << 20

	maxSegment = 4 << 20
	minSegment = 16 << 10
)

// Errors of this package.
var (
	// ErrLocked is returned by Open if another process, or another Spool of
	// this one, has the directory.
	ErrLocked = errors.New("in use by another process")
	// ErrClosed is returned by Next and Ack if the spool was closed.
	ErrClosed = errors.New("spool is closed")
	// ErrNewer is returned by Open if a newer program wrote the directory.
	ErrNewer = errors.New("written by a newer version of decoynet")
)

// Config says where records are kept and how many. Zero values stand for the
// defaults.
type Config struct {
	Dir      string // made where it does not exist
	MaxBytes int64  // on disk; from here on the oldest records are given up
	// QueueBytes bounds the memory for records that wait for the disk. It is
	// used only where the disk does not keep up.
	QueueBytes int
	// Kind tells which kind of record it is, for the count of those that are given
	// up: a number below Kinds, 0 where that cannot be told. It is called for these
	// only, by any thread. nil: all are 0.
	Kind func(record []byte) int
}

// Stats is the state of the spool, for status.
type Stats struct {
	Waiting      uint64 // records not yet acknowledged, wherever they are
	WaitingBytes uint64
	Queued       int    // of them not yet written to disk
	QueuedBytes  int    // memory they take
	Written      uint64 // records written since the spool was opened
	Acknowledged uint64 // records acknowledged since the spool was opened

	// What was given up since the spool was made (also by earlier processes):
	// Dropped is all of it. Full counts records that made room for newer ones
	// on disk, Lost those that the disk did not take in time, Damaged those
	// that could not be read back (a torn tail counts as one).
	Dropped, Full, Lost, Damaged uint64
	DamagedBytes                 uint64
	DroppedKinds                 Tally // Dropped, by kind

	// FailingSince is when writing began to fail, zero while it works.
	FailingSince time.Time
	LastError    error // the newest failure, also after it is over
	LastErrorAt  time.Time
	LastWriteAt  time.Time
	FileBytes    int64 // size of the files
}

// Spool is an open spool. Put and Stats may be called from any thread; Next and
// Ack are for one consumer.
type Spool struct {
	lock     *dirLock
	maxBytes int64 // see Config
	kind     classifier

	stop     chan struct{} // closed: write what is there and end
	giveUp   chan struct{} // closed: end
	ended    chan struct{} // closed when the writer has returned
	ready    chan struct{} // a token when the consumer waits and something came
	wake     chan struct{} // a token when something is to be written
	stopOnce sync.Once
	quitOnce sync.Once

	// io guards the files, also while they are read and written. It is taken
	// before mu.
	io   sync.Mutex
	disk *disk

	mu     sync.Mutex // guards everything below; no input or output happens under it
	queue  queue
	wanted bool // the consumer waits
	closed bool
	lost   uint64 // not yet in disk.counts, as kinds
	kinds  Tally
	stats  Stats // but for what the queue knows
	broken [failures]bool
}

// Open opens the spool in the directory, or makes one. It returns ErrLocked if
// somebody has it open, and ErrNewer. Damage is no error: what cannot be read is
// cut off and counted. Neither is a disk that cannot be written to; Stats says so.
func Open(cfg Config) (*Spool, error) {
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = DefaultMaxBytes
	}
	if cfg.QueueBytes == 0 {
		cfg.QueueBytes = DefaultQueueBytes
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the spool's directory: %w", err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("lock spool %s: %w", cfg.Dir, err)
	}
	d, err := openDisk(cfg.Dir, cfg.MaxBytes)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open spool %s: %w", cfg.Dir, err), lock.release())
	}
	d.kind = cfg.Kind
	s := &Spool{
		lock:     lock,
		maxBytes: cfg.MaxBytes,
		kind:     cfg.Kind,
		disk:     d,
		stop:     make(chan struct{}),
		giveUp:   make(chan struct{}),
		ended:    make(chan struct{}),
		ready:    make(chan struct{}, 1),
		wake:     make(chan struct{}, 1),
	}
	s.queue = newQueue(cfg.QueueBytes, min(chunkSize, int(d.maxSegment/4)), d.next)
	s.publish()
	go s.run()
	return s, nil
}

// Put hands over a record, which is copied. It never waits: where neither disk
// nor memory takes more, the oldest records in memory are given up and counted.
func (s *Spool) Put(record []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(record) > MaxRecord {
		s.lost++
		s.kind.count(&s.kinds, record)
		return
	}
	for _, c := range s.queue.makeRoom(record) {
		s.lost += uint64(c.count)
		s.kind.frames(&s.kinds, c.buf)
	}
	first, ok := s.queue.put(record)
	if !ok {
		s.lost++
		s.kind.count(&s.kinds, record)
	}
	if first {
		signal(s.wake)
	}
	if s.wanted {
		s.wanted = false
		signal(s.ready)
	}
}

// Room tells whether half of the room is left, in memory and on disk. Who can wait
// asks before Put, so that its records make none of others' be given up.
func (s *Spool) Room() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, queued := s.queue.waiting()
	return !s.closed && queued <= s.queue.limit/2 && s.stats.FileBytes <= s.maxBytes/2
}

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Batch is a run of the oldest records.
type Batch struct {
	Records [][]byte // not to be changed
	end     uint64   // number of the record after the last
	at      place    // where reading goes on, if that is known
}

// Next returns the oldest records that are not acknowledged: at most maxRecords,
// of at most maxBytes together, but always one. It waits for some until ctx is
// done and then returns its error; ErrClosed if the spool was closed. Called
// again without an Ack it returns the same records (and maybe further ones).
func (s *Spool) Next(ctx context.Context, maxRecords, maxBytes int) (Batch, error) {
	for {
		b, err := s.collect(maxRecords, maxBytes)
		if err != nil || len(b.Records) > 0 {
			return b, err
		}
		select {
		case <-s.ready:
		case <-s.stop:
			return Batch{}, ErrClosed
		case <-ctx.Done():
			return Batch{}, ctx.Err()
		}
	}
}

// collect takes what there is, from the disk first.
func (s *Spool) collect(maxRecords, maxBytes int) (Batch, error) {
	s.io.Lock()
	defer s.io.Unlock()
	if s.isClosed() {
		return Batch{}, ErrClosed
	}
	b, size, drained, err := s.disk.read(maxRecords, maxBytes)
	if err != nil {
		s.failed(readFailure, err)
		if len(b.Records) == 0 {
			return Batch{}, fmt.Errorf("read the spool: %w", err)
		}
		return b, nil
	}
	s.worked(readFailure)

	// The writer cannot move records to the disk meanwhile: it needs io.
	s.mu.Lock()
	defer s.mu.Unlock()
	s.numbers()
	if drained {
		b.Records, b.end = s.queue.read(b.Records, b.end, maxRecords, maxBytes-size)
	}
	s.wanted = len(b.Records) == 0
	return b, nil
}

// Ack says that the records of the batch, and all before them, need not be kept
// any longer. The error says why that could not be written down: the records are
// delivered again after a restart then.
func (s *Spool) Ack(b Batch) error {
	s.io.Lock()
	defer s.io.Unlock()
	if s.isClosed() {
		return ErrClosed
	}
	fresh := uint64(0)
	if b.end > s.disk.acked {
		fresh = min(b.end-s.disk.acked, uint64(len(b.Records)))
	}
	s.disk.ack(b.end, b.at)
	s.mu.Lock()
	s.queue.ack(b.end)
	s.stats.Acknowledged += fresh
	s.mu.Unlock()
	err := s.saveCursor()
	s.publish()
	return err
}

func (s *Spool) isClosed() bool {
	select {
	case <-s.stop:
		return true
	default:
		return false
	}
}

// saveCursor writes down what is acknowledged and counted; s.io is held.
func (s *Spool) saveCursor() error {
	s.mu.Lock()
	s.disk.counts.lost += s.lost
	s.disk.counts.kinds.add(&s.kinds)
	s.lost, s.kinds = 0, Tally{}
	s.mu.Unlock()
	if err := s.disk.saveCursor(); err != nil {
		s.failed(cursorFailure, err)
		return err
	}
	s.worked(cursorFailure)
	return nil
}

// Stats returns the state of the spool. It does not wait for the disk.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Queued, st.QueuedBytes = s.queue.count, s.queue.bytes
	records, bytes := s.queue.waiting()
	st.Waiting += uint64(records)
	st.WaitingBytes += uint64(bytes)
	st.Lost += s.lost
	st.Dropped = st.Full + st.Lost + st.Damaged
	st.DroppedKinds.add(&s.kinds)
	known := uint64(0)
	for _, n := range st.DroppedKinds[1:] {
		known += n
	}
	st.DroppedKinds[0] = st.Dropped - min(known, st.Dropped)
	return st
}

// publish copies the disk's numbers to where Stats finds them; s.io is held.
func (s *Spool) publish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.numbers()
}

// numbers is publish with s.mu held too.
func (s *Spool) numbers() {
	d := s.disk
	s.stats.Waiting, s.stats.WaitingBytes = d.waiting()
	s.stats.Full, s.stats.Lost = d.counts.full, d.counts.lost
	s.stats.Damaged, s.stats.DamagedBytes = d.counts.damaged, d.counts.damagedBytes
	s.stats.DroppedKinds = d.counts.kinds
	s.stats.FileBytes = d.bytes
	if d.note != nil {
		s.stats.LastError, s.stats.LastErrorAt = d.note, time.Now()
		d.note = nil
	}
}

// failure is a kind of work that can fail on its own.
type failure int

const (
	writeFailure failure = iota
	readFailure
	cursorFailure
	failures
)

func (s *Spool) failed(kind failure, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken[kind] = true
	s.stats.LastError, s.stats.LastErrorAt = err, time.Now()
	if s.stats.FailingSince.IsZero() {
		s.stats.FailingSince = s.stats.LastErrorAt
	}
}

func (s *Spool) worked(kind failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken[kind] = false
	if s.broken == [failures]bool{} {
		s.stats.FailingSince = time.Time{}
	}
}

// Close writes what is queued and lets the directory go. Where that does not
// succeed before ctx is done, the rest is counted as lost and an error returned.
func (s *Spool) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stopOnce.Do(func() { close(s.stop) })
	select {
	case <-s.ended:
	case <-ctx.Done():
		s.quitOnce.Do(func() { close(s.giveUp) })
		// A disk that hangs is not waited for.
		select {
		case <-s.ended:
		case <-time.After(time.Second):
			return fmt.Errorf("close the spool: the disk does not answer: %w", ctx.Err())
		}
	}
	return s.finish(context.Cause(ctx))
}

// finish ends what the writer has left.
func (s *Spool) finish(cause error) error {
	s.io.Lock()
	defer s.io.Unlock()
	if s.lock == nil {
		return nil
	}
	s.mu.Lock()
	left := s.queue.count
	s.lost += uint64(left)
	for _, c := range slices.Concat(s.queue.inHand, s.queue.chunks) {
		s.kind.frames(&s.kinds, c.buf)
	}
	s.queue.clear()
	s.mu.Unlock()
	err := s.saveCursor()
	s.publish()
	err = errors.Join(err, s.disk.close(), s.lock.release())
	s.lock = nil
	if left > 0 {
		return fmt.Errorf("close the spool with %d records unwritten: %w", left, errors.Join(cause, s.Stats().LastError))
	}
	if err != nil {
		return fmt.Errorf("close the spool: %w", err)
	}
	return nil
}
