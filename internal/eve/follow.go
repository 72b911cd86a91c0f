package eve

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	maxDone     = 64 // files that are remembered as read
	lookEvery   = time.Second
	maxSiblings = 1000 // files of one name that are looked at
)

// follower knows which file is to be read, and which comes after it. A file is
// rotated away by a new name (the old one is then read to its end before the new
// one is begun), or copied and truncated (its rest is then read from the copy), and
// what was rotated may be compressed. It is known by its first bytes, not by its
// name nor its inode.
type follower struct {
	path       string
	checkpoint string // a file that is none of Suricata's
	maxLine    int
	tail       *tail
	paused     *tail      // the file to go on with after tail
	done       []finished // the latest last; never changed in place
	mark       time.Time  // files that were last written to before are read or not wanted
	looked     time.Time  // when files that were overlooked were looked for

	torn                           []ending // of files that are over; whoever takes them empties it
	rotations, truncations, missed uint64
	missing                        error  // what was missed last
	long, holes                    uint64 // of files that are over
}

// ending is the last line of a file, which has no end.
type ending struct {
	line   []byte
	offset int64
}

// sibling is a file that has the name of the one to read, and something behind it.
type sibling struct {
	path     string
	modified time.Time
	size     int64 // as it is, compressed or not
	info     os.FileInfo
}

// holdsMore tells whether a file holds more than was read of it before, or of what
// it is a copy of.
func (s *sibling) holdsMore(than int64) bool {
	if !packed(s.path) {
		return s.size > than
	}
	size, err := notedSize(s.path)
	return err == nil && int32(size-uint32(than)) > 0 // modulo 2^32
}

// siblings returns the files that eve.json may have become, oldest first.
func (f *follower) siblings() ([]sibling, error) {
	dir, name := filepath.Split(f.path)
	entries, err := os.ReadDir(filepath.Clean(dir + "."))
	if err != nil {
		return nil, fmt.Errorf("look for rotated files of %s: %w", f.path, err)
	}
	var out []sibling
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), name) || e.Name() == name || strings.HasPrefix(dir+e.Name(), f.checkpoint) || len(out) == maxSiblings {
			continue
		}
		if foreign(e.Name()) || beingPacked(entries, e.Name()) {
			continue
		}
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() {
			continue // it is gone again
		}
		out = append(out, sibling{dir + e.Name(), info.ModTime(), info.Size(), info})
	}
	slices.SortStableFunc(out, func(a, b sibling) int { return a.modified.Compare(b.modified) })
	return out, nil
}

// beingPacked tells whether a compressed file stands beside what it is made of, which
// is removed when all of it is there.
func beingPacked(entries []os.DirEntry, name string) bool {
	if !packed(name) {
		return false
	}
	of := strings.TrimSuffix(name, filepath.Ext(name))
	_, beside := slices.BinarySearchFunc(entries, of, func(e os.DirEntry, name string) int { return cmp.Compare(e.Name(), name) })
	return beside
}

// resume opens the file that a position is in, whatever its name is now. Where
// there is none any more, the next one is begun.
func (f *follower) resume(p position) error {
	if p.head == (digest{}) {
		return nil
	}
	found, err := f.locate(p)
	if err == nil && found == nil {
		f.miss(fmt.Errorf("the file that was read last is not found any more as %[1]s, %[1]s* or %[1]s*.gz", f.path))
	}
	f.tail = found
	return err
}

// miss notes that events may not have been read.
func (f *follower) miss(why error) {
	f.missed++
	f.missing = why
}

// skip begins at the end of the file.
func (f *follower) skip() error {
	t, err := openTail(f.path, position{}, f.maxLine)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		f.tail = t
		err = t.jump()
	}
	if err != nil {
		return fmt.Errorf("find the end of %s: %w", f.path, err)
	}
	return nil
}

func (f *follower) close() {
	f.tail.close()
	f.paused.close()
	f.tail, f.paused = nil, nil
}

// checkpointAt is what to remember when everything before p was handed over.
func (f *follower) checkpointAt(p position) checkpoint {
	return checkpoint{Head: p.head, Offset: p.offset, Tail: p.tail, Written: f.mark, Done: f.done}
}

// locate returns the file that a position is in, nil where there is none. Of
// copies of one file it takes the one that has the most.
func (f *follower) locate(p position) (*tail, error) {
	t, err := openTail(f.path, p, f.maxLine)
	if err == nil || !gone(err) {
		return t, err
	}
	list, err := f.siblings()
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(list, func(a, b sibling) int { return cmp.Compare(b.size, a.size) })
	for i := range list {
		t, err := openTail(list[i].path, p, f.maxLine)
		if err == nil || !gone(err) {
			return t, err
		}
	}
	return nil, nil
}

func gone(err error) bool { return errors.Is(err, errCut) || errors.Is(err, fs.ErrNotExist) }

// fill reads on, in the next file where this one is over. It returns how many
// bytes came; moved says that it is about another file than before.
func (f *follower) fill(now time.Time) (n int, moved bool, err error) {
	if f.tail == nil {
		moved, err = f.next()
		return 0, moved, err
	}
	n, err = f.tail.fill()
	if errors.Is(err, errCut) {
		return 0, true, f.truncated()
	}
	if n > 0 || err != nil {
		return n, false, err
	}
	over, err := f.over()
	if err != nil {
		return 0, false, err
	}
	if !over {
		moved, err = f.overlooked(now)
		return 0, moved, err
	}
	// Once the next file is written to, nobody writes to this one. What came
	// before that is read now.
	if n, err = f.tail.fill(); n > 0 || err != nil {
		if errors.Is(err, errCut) {
			return 0, true, f.truncated()
		}
		return n, false, err
	}
	f.rotations++
	f.finish()
	_, err = f.next()
	return 0, true, err
}

// over tells whether another file is written to instead of the one being read.
func (f *follower) over() (bool, error) {
	ours, err := f.tail.file.Stat()
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", f.tail.file.Name(), err)
	}
	named, err := os.Stat(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return false, fmt.Errorf("look at %s: %w", f.path, err)
	case os.SameFile(ours, named):
		return false, nil
	case named.Size() > 0:
		return true, nil
	}
	next, _, err := f.unread(ours, digest{})
	return next != "", err
}

// overlooked looks, now and then, whether a rotated file was not read: a folder
// that changes while it is listed may hide one. It is read before the present one
// is read on. Where there is none, mark can move on.
func (f *follower) overlooked(now time.Time) (bool, error) {
	if now.Sub(f.looked) < lookEvery {
		return false, nil
	}
	f.looked = now
	ours, err := f.tail.file.Stat()
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", f.tail.file.Name(), err)
	}
	path, at, err := f.unread(ours, f.tail.identity())
	if err != nil || path == "" {
		if named, missing := os.Stat(f.path); err == nil && missing == nil && os.SameFile(ours, named) {
			f.mark = ours.ModTime()
		}
		return false, err
	}
	t, err := f.openUnread(path, at)
	if t != nil {
		f.paused, f.tail = f.tail, t
	}
	return t != nil, err
}

// truncated goes on after the file was truncated: with the rest of what it held,
// if somebody has copied that before, and else with what it holds now.
func (f *follower) truncated() error {
	f.truncations++
	var found *tail
	if here := f.tail.here(); here.head != (digest{}) {
		var err error
		if found, err = f.locate(here); err != nil {
			return err
		}
	}
	if found != nil {
		f.tail.close()
		f.tail = found
		return nil
	}
	f.finish()
	_, err := f.next()
	return err
}

// finish is done with a file.
func (f *follower) finish() {
	if line, at := f.tail.rest(); len(line) > 0 {
		f.torn = append(f.torn, ending{line, at})
	}
	here := f.tail.here()
	d := finished{Head: f.tail.identity(), Offset: here.offset, Tail: here.tail, Size: f.tail.end()}
	if u, ok := f.tail.file.(*unpacker); ok {
		if info, err := u.Stat(); err == nil {
			d.Packed = info.Size()
		}
		if u.damage != nil {
			f.miss(u.damage)
		}
	}
	before := slices.DeleteFunc(slices.Clone(f.done), func(o finished) bool {
		if o.Head == d.Head && o.Size > d.Size { // this was a copy that has less
			o.Packed = d.Packed
			d = o
		}
		return o.Head == d.Head
	})
	f.done = append(before[max(0, len(before)-maxDone+1):], d)
	f.long += f.tail.long
	f.holes += f.tail.holes
	f.tail.close()
	f.tail = nil
}

// next opens the oldest file that was not read, at last the one that has the name.
// It tells whether there is one.
func (f *follower) next() (bool, error) {
	if f.paused != nil {
		f.tail, f.paused = f.paused, nil
		return true, nil
	}
	// The one that has the name is opened before the others are looked for: what is
	// rotated in between is found then. Where one of them begins as that one does, it
	// is a copy that may still be growing.
	named, err := openTail(f.path, position{}, f.maxLine)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("open %s: %w", f.path, err)
	}
	var copied digest
	if named != nil {
		copied = named.head
	}
	path, at, err := f.unread(nil, copied)
	if err != nil || path == "" {
		f.tail = named
		return named != nil, err
	}
	named.close()
	f.tail, err = f.openUnread(path, at)
	return f.tail != nil, err
}

// openUnread opens a file where reading is to go on. It returns nil where it was
// renamed meanwhile.
func (f *follower) openUnread(path string, at position) (*tail, error) {
	t, err := openTail(path, at, f.maxLine)
	if errors.Is(err, errCut) {
		t, err = openTail(path, position{}, f.maxLine) // it began alike, but is another
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return t, nil
}

// unread returns the oldest rotated file of which something was not read, and where
// that begins; "" where there is none. The file being read is not one, nor are
// copies of the file that begins as given.
func (f *follower) unread(ours os.FileInfo, copied digest) (string, position, error) {
	list, err := f.siblings()
	if errors.Is(err, fs.ErrNotExist) {
		return "", position{}, nil
	}
	if err != nil {
		return "", position{}, err
	}
	for i := range list {
		s := &list[i]
		if s.modified.Before(f.mark) || s.size == 0 || ours != nil && os.SameFile(ours, s.info) {
			continue
		}
		head, err := headAt(s.path)
		if err != nil || head == copied {
			continue // one that cannot be read must not hold up the others
		}
		if ours != nil && f.tail != nil && head == f.tail.identity() && !s.holdsMore(f.tail.end()) {
			continue // a copy of the one being read
		}
		if at, more := beyond(f.done, head, s); more {
			return s.path, at, nil
		}
	}
	return "", position{}, nil
}

// beyond tells whether a file has more than was read of it or of a copy, and where
// that begins.
func beyond(done []finished, head digest, s *sibling) (position, bool) {
	for i := range done {
		if d := &done[i]; d.Head == head {
			again := packed(s.path) && s.size == d.Packed
			return d.position(), !again && s.holdsMore(d.Size)
		}
	}
	return position{}, true
}

func headAt(path string) (digest, error) {
	file, err := openContent(path)
	if err != nil {
		return digest{}, err
	}
	defer file.Close()
	head, _, err := readHead(file)
	return head, err
}
