package archive

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
)

// ErrNotKept is wrapped by what Extract returns where there is no packet of the
// session; the rest of the message says why.
var ErrNotKept = errors.New("no packets of it are kept")

// By how much the clocks of the machine that a session's times are from
// and of the one that kept its packets may differ, before more files are
// read than need be.
const (
	skew     = 2 * time.Minute
	wildSkew = 24 * time.Hour // where nothing was found with skew
)

// Extracted is what Extract has found.
type Extracted struct {
	Packets int
	Bytes   uint64 // of the frames, without VLAN tags
	// Capped: the session had reached its limit, and packets were left out.
	Capped bool
}

// Extract writes a session's packets to w as a pcap file, in the order of their
// times. A zero end stands for a session that runs, or whose end is not known. VLAN
// tags, which are numbers of the feed's own, are taken off; the MAC addresses stay.
// Nothing is written where there is none: the error wraps ErrNotKept then. The
// archive may be written to meanwhile.
func Extract(ctx context.Context, dir string, id deception.SessionID, start, end time.Time, w io.Writer) (Extracted, error) {
	list, err := listFiles(dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(list) == 0 {
		return Extracted{}, fmt.Errorf("session %s: %w: this machine keeps no packets (inspect: pcap in the document)", id, ErrNotKept)
	}
	if err != nil {
		return Extracted{}, fmt.Errorf("look for the packets of session %s: %w", id, err)
	}
	if end.IsZero() {
		end = time.Now()
	}
	x := extraction{ctx: ctx, dir: dir, want: wanted(id)}
	near, others := apart(list, start.Add(-skew), end.Add(skew))
	if err = x.search(near); err == nil && len(x.hits) == 0 {
		near, _ = apart(others, start.Add(-wildSkew), end.Add(wildSkew))
		err = x.search(near)
	}
	if err == nil && len(x.hits) == 0 {
		return Extracted{}, fmt.Errorf("session %s: %w: %s", id, ErrNotKept, missing(list, end))
	}
	if err == nil {
		err = x.write(w)
	}
	if err != nil {
		return x.found, fmt.Errorf("extract the packets of session %s: %w", id, err)
	}
	return x.found, nil
}

// missing says why nothing was found.
func missing(list []file, end time.Time) string {
	if oldest := time.Unix(0, list[0].first); end.Before(oldest) {
		return "they expired; the oldest ones here are of " + oldest.UTC().Format(time.RFC3339)
	}
	return "it went past what is analysed here: analysis was off, it was lost under load (see `decoynet status`), or another machine took it"
}

// apart divides the files into those with frames of that time and the others. A
// clock that was set back makes the last frame older than the first.
func apart(list []file, from, to time.Time) (near, others []file) {
	for _, f := range list {
		if min(f.first, f.last) <= to.UnixNano() && max(f.first, f.last) >= from.UnixNano() {
			near = append(near, f)
		} else {
			others = append(others, f)
		}
	}
	return near, others
}

// wanted returns the MAC addresses that frames of the session begin with, for
// either direction.
func wanted(id deception.SessionID) [2][addresses]byte {
	intruder, decoy := frame.Addresses(id.Key())
	var out [2][addresses]byte
	copy(out[0][:], append(decoy[:], intruder[:]...))
	copy(out[1][:], append(intruder[:], decoy[:]...))
	return out
}

// hit is a frame of the session.
type hit struct {
	record
	file int // index of files
}

// extraction is one Extract at work.
type extraction struct {
	ctx   context.Context
	dir   string
	want  [2][addresses]byte
	files []string
	hits  []hit
	found Extracted
}

// search notes where the session's frames are.
func (x *extraction) search(list []file) error {
	in := bufio.NewReaderSize(nil, readBuffer)
	for _, f := range list {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		if err := x.searchFile(f.name, in); err != nil {
			return err
		}
	}
	return nil
}

func (x *extraction) searchFile(name string, in *bufio.Reader) error {
	f, err := os.Open(filepath.Join(x.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // expired since
	}
	if err != nil {
		return err
	}
	defer f.Close()
	in.Reset(f)
	r, err := newReader(in)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, errNotOurs) {
		return nil
	}
	x.files = append(x.files, name)
	for err == nil {
		var rec record
		var macs [addresses]byte
		rec, macs, err = r.next()
		if err == nil && (macs == x.want[0] || macs == x.want[1]) {
			x.hits = append(x.hits, hit{record: rec, file: len(x.files) - 1})
		}
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("read %s: %w", f.Name(), err)
}

// write copies the frames that were found, as far as they are still there. They are nearly in order: the feed's
// lanes and the captured flows meet in the files only.
func (x *extraction) write(w io.Writer) error {
	slices.SortStableFunc(x.hits, func(a, b hit) int { return cmp.Compare(a.at, b.at) })
	out := bufio.NewWriterSize(w, readBuffer)
	if _, err := out.Write(appendFileHeader(nil)); err != nil {
		return err
	}
	var open *os.File
	at := -1
	defer func() { _ = open.Close() }() // read only
	var content, text []byte
	for _, h := range x.hits {
		if h.file != at {
			_ = open.Close()
			var err error
			if open, err = os.Open(filepath.Join(x.dir, x.files[h.file])); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			at = h.file
		}
		if open == nil {
			continue // expired since
		}
		content = slices.Grow(content[:0], h.size)[:h.size]
		if _, err := open.ReadAt(content, h.offset); errors.Is(err, io.EOF) {
			continue // cut off since: the disk did not take all of it
		} else if err != nil {
			return err
		}
		text = x.untag(text[:0], h.at, content)
		if _, err := out.Write(text); err != nil {
			return err
		}
	}
	if x.found.Packets == 0 {
		return fmt.Errorf("%w: they expired in this moment", ErrNotKept)
	}
	return out.Flush()
}

// untag appends the record of a frame without its VLAN tags.
func (x *extraction) untag(b []byte, at int64, content []byte) []byte {
	etherType, body := untagged(content)
	x.found.Packets++
	x.found.Bytes += uint64(addresses + 2 + len(content) - body)
	if etherType == binary.BigEndian.Uint16(capNotice) {
		x.found.Capped = true
	}
	return appendRecord(b, at, content[:addresses], binary.BigEndian.AppendUint16(nil, etherType), content[body:])
}
