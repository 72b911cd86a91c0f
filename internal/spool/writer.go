package spool

import (
	"errors"
	"fmt"
	"os"
	"time"
)

const (
	// gather is how long a record may wait for others.
	gather = time.Millisecond
	// syncPause lies between two flushes to the disk itself.
	syncPause = time.Second

	firstPause = 100 * time.Millisecond
	maxPause   = 5 * time.Second
)

// writer is what the writer's goroutine knows.
type writer struct {
	*Spool
	timer    *time.Timer // fires when it is time to flush
	dirty    bool        // something is to be flushed or written down
	lastSync time.Time
}

// run is the writer's goroutine. It sleeps while nothing comes.
func (s *Spool) run() {
	defer close(s.ended)
	w := &writer{Spool: s, timer: time.NewTimer(syncPause)}
	w.timer.Stop()
	for {
		select {
		case <-s.wake:
			if !w.pause(gather) {
				return
			}
			w.soil()
			if !w.drain() {
				return
			}
		case <-w.timer.C:
			w.sync()
		case <-s.stop:
			if w.drain() {
				w.sync()
			}
			return
		}
	}
}

// soil sees to it that there is a flush within syncPause.
func (w *writer) soil() {
	if !w.dirty {
		w.dirty, w.lastSync = true, time.Now()
		w.timer.Reset(syncPause)
	}
}

// drain writes until the queue is empty; false means that it was told to give up.
func (w *writer) drain() bool {
	wait := firstPause
	for {
		w.mu.Lock()
		left := len(w.queue.take())
		w.mu.Unlock()
		if left == 0 {
			return true
		}
		for left > 0 {
			err := w.writeOne()
			if err == nil {
				left--
				wait = firstPause
				if time.Since(w.lastSync) >= syncPause { // under steady load
					w.sync()
					w.soil()
				}
				continue
			}
			w.failed(writeFailure, err)
			if !w.pause(wait) {
				return false
			}
			wait = min(2*wait, maxPause)
		}
	}
}

// writeOne writes the first of the chunks in hand. What was delivered from
// memory meanwhile need not be written.
func (w *writer) writeOne() error {
	w.io.Lock()
	defer w.io.Unlock()
	c := w.queue.inHand[0] // nobody else changes inHand
	written := 0
	if c.end() > w.disk.acked {
		seal(c.buf)
		if err := w.disk.append(c); err != nil {
			return err
		}
		written = c.count
	}
	w.mu.Lock()
	w.queue.done()
	if written > 0 {
		w.stats.Written += uint64(written)
		w.stats.LastWriteAt = time.Now()
	}
	w.numbers()
	w.mu.Unlock()
	w.worked(writeFailure)
	return nil
}

// pause waits, at most briefly once the spool is being closed; false means that
// it is time to give up.
func (w *writer) pause(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-w.giveUp:
		return false
	case <-w.stop:
	}
	t.Reset(min(d, firstPause))
	select {
	case <-t.C:
		return true
	case <-w.giveUp:
		return false
	}
}

// sync makes what was written outlive a loss of power, and writes the counts
// down. It holds nobody up meanwhile.
func (w *writer) sync() {
	w.dirty, w.lastSync = false, time.Now()
	var file *os.File
	w.io.Lock()
	if g := w.disk.active; g != nil && g.writing {
		file = g.file
	}
	newNames := w.disk.newNames
	w.disk.newNames = false
	w.mu.Lock()
	unsaved := w.lost > 0 || w.broken[cursorFailure]
	w.mu.Unlock()
	if unsaved && w.saveCursor() != nil {
		w.soil()
	}
	w.publish()
	w.io.Unlock()

	var err error
	if file != nil {
		err = file.Sync()
	}
	if newNames {
		err = errors.Join(err, w.lock.syncDir())
	}
	if err == nil || errors.Is(err, os.ErrClosed) { // the file was damaged and given up
		return
	}
	// The kernel may have forgotten what it could not write; what comes now
	// goes to a new file (fsync(2)).
	w.failed(writeFailure, fmt.Errorf("flush the spool: %w", err))
	w.io.Lock()
	w.disk.active = nil
	w.io.Unlock()
}
