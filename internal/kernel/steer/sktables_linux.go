package steer

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// skWriter writes entries of the kernel's tables and keeps cur true to them.
type skWriter struct {
	*skObjects
	*progress
	cur     *state
	noBatch *bool
}

func (w *skWriter) writePorts(entries []portEntry) {
	keys, values := make([]blockKey, len(entries)), make([]bitmap, len(entries))
	for i, e := range entries {
		keys[i], values[i] = blockOf(e), e.bits
	}
	m := w.ports
	w.each(len(entries),
		func(from, to int) (int, error) { return m.BatchUpdate(keys[from:to], values[from:to], nil) },
		func(i int) error { return m.Update(keys[i], values[i], ebpf.UpdateAny) },
		func(i int, err error) { w.note(entries[i].group, err, func() { w.cur.setPort(entries[i]) }) })
}

func (w *skWriter) deletePorts(entries []portEntry) {
	keys := make([]blockKey, len(entries))
	for i, e := range entries {
		keys[i] = blockOf(e)
	}
	m := w.ports
	w.each(len(entries),
		func(from, to int) (int, error) { return m.BatchDelete(keys[from:to], nil) },
		func(i int) error { return m.Delete(keys[i]) },
		func(i int, err error) { w.note(entries[i].group, err, func() { w.cur.dropPort(entries[i]) }) })
}

func (w *skWriter) writePrefixes(entries []prefixEntry) {
	keys, values := make([]addressKey, len(entries)), make([]uint32, len(entries))
	for i, e := range entries {
		keys[i], values[i] = keyOf(e.prefix), uint32(e.tag)
	}
	m := w.addrs
	w.each(len(entries),
		func(from, to int) (int, error) { return m.BatchUpdate(keys[from:to], values[from:to], nil) },
		func(i int) error { return m.Update(keys[i], values[i], ebpf.UpdateAny) },
		func(i int, err error) { w.note(entries[i].group, err, func() { w.cur.setPrefix(entries[i]) }) })
}

func (w *skWriter) deletePrefixes(entries []prefixEntry) {
	keys := make([]addressKey, len(entries))
	for i, e := range entries {
		keys[i] = keyOf(e.prefix)
	}
	m := w.addrs
	w.each(len(entries),
		func(from, to int) (int, error) { return m.BatchDelete(keys[from:to], nil) },
		func(i int) error { return m.Delete(keys[i]) },
		func(i int, err error) { w.note(entries[i].group, err, func() { w.cur.dropPrefix(entries[i]) }) })
}

// batchSize bounds how long one call keeps the kernel, and how much is written
// after the context is done.
const batchSize = 4096

// each writes n entries in their order, by batch where the kernel can, and tells
// done of each. A failing entry does not stop those behind it.
func (w *skWriter) each(n int, batch func(from, to int) (int, error), one func(i int) error,
	done func(i int, err error),
) {
	for i := 0; i < n; {
		if w.err == nil {
			w.err = w.ctx.Err()
		}
		if w.err != nil {
			return
		}
		to := min(i+batchSize, n)
		if *w.noBatch {
			for ; i < to; i++ {
				done(i, one(i))
			}
			continue
		}
		wrote, err := batch(i, to)
		if errors.Is(err, ebpf.ErrNotSupported) {
			*w.noBatch = true // before 5.6 and, for the trie, before 5.14
			continue
		}
		for end := min(i+wrote, to); i < end; i++ {
			done(i, nil)
		}
		if err != nil && i < to {
			// The batch ends at the entry at fault; alone it gives its own error.
			done(i, one(i))
			i++
		}
	}
}

// progress is the outcome of a change so far.
type progress struct {
	ctx    context.Context
	err    error // the context's: nothing more is written
	failed map[uint32]*GroupError
	writes int
}

func (p *progress) note(group uint32, err error, written func()) {
	switch {
	case err == nil:
		p.writes++
		written()
	case errors.Is(err, ebpf.ErrKeyNotExist): // deleting what is not there
		written()
	case p.failed[group] == nil:
		if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
			err = fmt.Errorf("%w: %w", ErrFull, err)
		}
		p.failed[group] = &GroupError{group, err}
	}
}

func (p *progress) errors() error {
	errs := []error{p.err}
	for _, err := range p.failed {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
