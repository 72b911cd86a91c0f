package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

const segmentSuffix = ".seg"

// segment is a file with consecutive records.
type segment struct {
	path       string
	first, end uint64 // numbers of the first record and the one after the last
	size       int64  // up to the end of the last record
	file       *os.File
	writing    bool // file is open for writing too
	sealed     bool // nothing may be appended
	failed     int  // readings in a row that the disk refused
}

func (g *segment) close() error {
	if g.file == nil {
		return nil
	}
	err := g.file.Close()
	g.file, g.writing = nil, false
	return err
}

// place is where a record lies.
type place struct {
	segment *segment
	number  uint64
	offset  int64
}

// disk is the part of the spool that is in files. It is not safe for concurrent
// use.
type disk struct {
	dir        string
	maxBytes   int64
	maxSegment int64
	kind       classifier

	segments []*segment // oldest first
	active   *segment   // the last one, where it takes more; nil otherwise
	bytes    int64      // size of all
	next     uint64     // number of the next record
	at       place      // a known place at or before the record acked
	newNames bool       // files were made that the directory may forget
	note     error      // what went wrong without stopping anything
	cursor
}

func openDisk(dir string, maxBytes int64) (*disk, error) {
	d := &disk{dir: dir, maxBytes: maxBytes, maxSegment: min(maxSegment, max(minSegment, maxBytes/16))}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var known bool
	d.cursor, known, d.note = loadCursor(dir)
	for _, e := range entries { // sorted by name, so by number
		number, isSegment := strings.CutSuffix(e.Name(), segmentSuffix)
		first, err := strconv.ParseUint(number, 16, 64)
		if !isSegment || err != nil || len(number) != 16 {
			continue
		}
		d.segments = append(d.segments, &segment{path: filepath.Join(dir, e.Name()), first: first, end: first})
	}
	if err := d.count(); err != nil {
		return nil, err
	}
	if !known && len(d.segments) > 0 {
		d.acked = d.segments[0].first
	}
	d.next = d.acked
	if n := len(d.segments); n > 0 {
		last := d.segments[n-1]
		d.next = max(d.next, last.end)
		// Where power was lost, the cursor may be ahead of the records.
		if !last.sealed && last.end == d.next && last.size < d.maxSegment {
			d.active = last
		}
	}
	d.forget()
	return d, nil
}

// count finds out how many records each segment holds, and cuts damaged tails.
func (d *disk) count() error {
	all := d.segments
	d.segments = nil
	var last, lost *segment // the segment before, whole or with a damaged header
	for _, g := range all {
		previous, err := g.header()
		switch {
		case errors.Is(err, ErrNewer):
			return fmt.Errorf("%s: %w", g.path, err)
		case err != nil && !errors.Is(err, errDamaged): // it may be readable another time
			d.note = fmt.Errorf("read the spool: %w", err)
			continue
		}
		known := err == nil && previous <= g.first
		switch {
		case last != nil && known && previous >= last.first:
			last.end = previous // cheaper than reading it, and true where it is damaged
		case last != nil:
			d.scan(last)
		case lost != nil && known && previous > lost.first:
			d.counts.damaged += previous - lost.first - 1 // one is counted
		}
		last, lost = g, nil
		if err != nil {
			last, lost = nil, g
			d.lose(g)
			continue
		}
		d.segments = append(d.segments, g)
		d.bytes += g.size
	}
	if last != nil {
		d.scan(last)
	}
	return nil
}

// header reads the segment's header and size.
func (g *segment) header() (previous uint64, err error) {
	f, err := os.Open(g.path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if g.size, err = f.Seek(0, io.SeekEnd); err != nil {
		return 0, err
	}
	var b [segmentHeader]byte
	n, err := f.ReadAt(b[:], 0)
	if err != nil && err != io.EOF {
		return 0, err
	}
	return parseSegmentHeader(b[:n])
}

// lose gives up a segment whose header is damaged.
func (d *disk) lose(g *segment) {
	if g.size > 0 {
		d.counts.damagedBytes += uint64(g.size)
		d.counts.damaged++ // at least; the header that would tell is damaged
	}
	if err := os.Remove(g.path); err != nil {
		d.note = fmt.Errorf("remove a damaged part of the spool: %w", err)
	}
}

// scan counts a segment's records by reading them and cuts what follows.
func (d *disk) scan(g *segment) {
	f, err := os.Open(g.path)
	if err != nil {
		d.note, g.sealed = fmt.Errorf("read the spool: %w", err), true
		return
	}
	defer f.Close()
	count, end, err := newFrameReader(f, segmentHeader, g.size).scan()
	g.end = g.first + count
	if err == nil {
		return
	}
	d.counts.damaged++
	d.counts.damagedBytes += uint64(g.size - end)
	d.note = fmt.Errorf("cut %d bytes off %s: %w", g.size-end, g.path, err)
	if err := os.Truncate(g.path, end); err != nil {
		g.sealed = true
	}
	d.bytes -= g.size - end
	g.size = end
}

// waiting returns what is not acknowledged. Of a segment of which a part is, the
// bytes are an estimate.
func (d *disk) waiting() (records, bytes uint64) {
	for _, g := range d.segments {
		if g.end <= d.acked {
			continue
		}
		left := g.end - max(g.first, d.acked)
		records += left
		bytes += uint64(g.size-segmentHeader) * left / (g.end - g.first)
	}
	return records, bytes
}

// ack notes that the records before number end are not needed any longer.
func (d *disk) ack(end uint64, at place) {
	d.acked = max(d.acked, end)
	if at.segment != nil {
		d.at = at
	}
	d.forget()
}

// forget removes the segments that nobody needs.
func (d *disk) forget() {
	for len(d.segments) > 0 && d.segments[0] != d.active && d.segments[0].end <= d.acked {
		d.removeOldest()
	}
}

func (d *disk) removeOldest() {
	g := d.segments[0]
	d.segments = slices.Delete(d.segments, 0, 1)
	d.bytes -= g.size
	if d.at.segment == g {
		d.at = place{}
	}
	if err := errors.Join(g.close(), ignoreMissing(os.Remove(g.path))); err != nil {
		d.note = fmt.Errorf("remove a delivered part of the spool: %w", err)
	}
}

// append writes the chunk, whose frames are sealed. Where the spool is full, the
// oldest records make room.
func (d *disk) append(c *chunk) error {
	need := int64(len(c.buf))
	for len(d.segments) > 0 && d.bytes+need > d.maxBytes {
		if d.segments[0] == d.active {
			if d.active.end == d.active.first {
				break
			}
			d.active = nil
		}
		d.dropOldest()
	}
	if d.active != nil && (d.active.end != c.first || d.active.size+need > d.maxSegment && d.active.end > d.active.first) {
		if err := d.retire(); err != nil {
			return err
		}
	}
	g, err := d.writable(c.first)
	if err != nil {
		return err
	}
	if _, err := g.file.WriteAt(c.buf, g.size); err != nil {
		// What was written of it would be a damaged tail. Where it cannot be cut
		// off, the next attempt writes over it.
		if cut := g.file.Truncate(g.size); cut != nil || !isFull(err) {
			d.active = nil
		}
		return fmt.Errorf("write the spool: %w", err)
	}
	g.size += need
	g.end = c.end()
	d.bytes += need
	return nil
}

// dropOldest gives up the oldest segment. What that costs is written down before
// it is done.
func (d *disk) dropOldest() {
	g := d.segments[0]
	if g.end > d.acked {
		d.counts.full += g.end - max(g.first, d.acked)
		d.kind.segment(&d.counts.kinds, g, d.acked)
		d.acked = g.end
		if err := d.saveCursor(); err != nil {
			d.note = err
		}
	}
	d.removeOldest()
}

func (d *disk) saveCursor() error { return d.cursor.save(d.dir) }

// retire ends the active segment.
func (d *disk) retire() error {
	g := d.active
	d.active = nil
	if !g.writing {
		return g.close()
	}
	if err := g.file.Sync(); err != nil {
		return fmt.Errorf("flush the spool: %w", err)
	}
	return g.close()
}

// writable returns the segment to append the record of that number to.
func (d *disk) writable(first uint64) (*segment, error) {
	if g := d.active; g != nil {
		if g.writing {
			return g, nil
		}
		f, err := os.OpenFile(g.path, os.O_RDWR, 0)
		if err != nil {
			d.active = nil // the next attempt begins another
			return nil, fmt.Errorf("write the spool: %w", err)
		}
		_ = g.close() // it was open for reading
		g.file, g.writing = f, true
		return g, nil
	}
	previous := first
	if n := len(d.segments); n > 0 {
		previous = d.segments[n-1].end
	}
	g := &segment{path: filepath.Join(d.dir, fmt.Sprintf("%016x%s", first, segmentSuffix)), first: first, end: first}
	f, err := os.OpenFile(g.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write the spool: %w", err)
	}
	g.file, g.writing = f, true
	header := makeSegmentHeader(previous)
	if _, err := f.WriteAt(header, 0); err != nil {
		return nil, errors.Join(fmt.Errorf("write the spool: %w", err), g.close(), os.Remove(g.path))
	}
	g.size = int64(len(header))
	d.bytes += g.size
	d.segments = append(d.segments, g)
	d.active, d.newNames = g, true
	return g, nil
}

func (d *disk) close() error {
	var errs []error
	for _, g := range d.segments {
		errs = append(errs, g.close())
	}
	return errors.Join(errs...)
}

// maxReadFailures is how often the disk may refuse to read a segment on before
// the rest of it is given up.
const maxReadFailures = 5

// read returns the oldest records that are not acknowledged, copied, and their
// size; drained tells that no more are on disk.
func (d *disk) read(maxRecords, maxBytes int) (b Batch, size int, drained bool, err error) {
	b.end, b.at = d.acked, d.at
	var room []byte
	for _, g := range d.segments {
		if g.end <= b.end {
			continue
		}
		p := place{g, g.first, segmentHeader}
		if b.at.segment == g && b.at.number <= b.end {
			p = b.at
		}
		if err := g.open(); err != nil {
			if err = d.refused(g, p, err); err != nil {
				return b, size, false, err
			}
			continue
		}
		r := newFrameReader(g.file, p.offset, g.size)
		for p.number < g.end {
			record, err := r.next()
			if err != nil {
				if err = d.refused(g, p, err); err != nil {
					return b, size, false, err
				}
				break
			}
			if p.number >= b.end {
				if len(b.Records) > 0 && (len(b.Records) >= maxRecords || size+len(record) > maxBytes) {
					return b, size, false, nil
				}
				if cap(room)-len(room) < len(record) {
					room = make([]byte, 0, max(len(record), min(maxBytes-size, int(r.end-r.at)+len(record))))
				}
				at := len(room)
				room = append(room, record...)
				b.Records = append(b.Records, room[at:len(room):len(room)])
				size += len(record)
				b.end = p.number + 1
			}
			p.number, p.offset = p.number+1, r.at
			b.at = p
		}
		g.failed = 0
		if g != d.active {
			_ = g.close() // it was open for reading
		}
	}
	return b, size, true, nil
}

func (g *segment) open() (err error) {
	if g.file == nil {
		g.file, err = os.Open(g.path)
	}
	return err
}

// refused judges a failure to read the record at p. It returns the error where
// another attempt is worth it, and nil after it has given up the rest of the
// segment.
func (d *disk) refused(g *segment, p place, err error) error {
	if g.failed++; !errors.Is(err, errDamaged) && !errors.Is(err, io.EOF) && !errors.Is(err, fs.ErrNotExist) && g.failed < maxReadFailures {
		return err
	}
	d.counts.damaged += g.end - p.number
	d.counts.damagedBytes += uint64(g.size - p.offset)
	d.note = fmt.Errorf("give up %d records of %s: %w", g.end-p.number, g.path, err)
	d.bytes -= g.size - p.offset
	g.end, g.size = p.number, p.offset
	if g == d.active {
		d.active = nil
	}
	return nil
}
