package archive

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// file is one pcap file of the archive.
type file struct {
	name  string
	first int64 // time of its first frame
	last  int64 // when it was written to last
	size  int64
}

// files are the pcap files of a directory. It is not safe for concurrent use.
type files struct {
	dir      string
	maxBytes int64         // of all together
	maxFile  int64         // of one
	maxTime  time.Duration // that one takes frames for

	list   []file // oldest first
	bytes  int64  // of all
	open   *os.File
	opened time.Time // when open was made; it is the last of list
}

// openFiles lists what is there and cuts off what the last process left torn.
func openFiles(dir string) (*files, error) {
	list, err := listFiles(dir)
	if err != nil {
		return nil, err
	}
	d := &files{dir: dir, list: list}
	if n := len(list); n > 0 {
		last := &list[n-1]
		path := filepath.Join(dir, last.name)
		size, err := whole(path)
		if err == nil && size < last.size {
			err = d.cut(path, last, size)
		}
		if err != nil && !errors.Is(err, errNotOurs) {
			return nil, fmt.Errorf("mend %s: %w", path, err)
		}
	}
	for _, f := range d.list {
		d.bytes += f.size
	}
	return d, nil
}

// cut leaves the first bytes of a file, and its time; one without a frame goes.
func (d *files) cut(path string, f *file, size int64) error {
	if size <= fileHeader {
		d.list = d.list[:len(d.list)-1]
		return os.Remove(path)
	}
	if err := os.Truncate(path, size); err != nil {
		return err
	}
	f.size = size
	last := time.Unix(0, f.last)
	return os.Chtimes(path, last, last)
}

// listFiles lists the pcap files of a directory, oldest first. Whatever else is
// there is passed over.
func listFiles(dir string) ([]file, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var list []file
	for _, e := range entries {
		first, err := parseName(e.Name())
		if err != nil || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted since
		}
		if err != nil {
			return nil, err
		}
		list = append(list, file{name: e.Name(), first: first, last: info.ModTime().UnixNano(), size: info.Size()})
	}
	slices.SortFunc(list, func(a, b file) int { return cmp.Compare(a.first, b.first) })
	return list, nil
}

// relist looks at what others have done to the directory. The file that is open
// is closed where it is not there any more.
func (d *files) relist() error {
	list, err := listFiles(d.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list the files of packets: %w", err)
	}
	err = nil
	if d.open != nil {
		active := d.list[len(d.list)-1]
		at := slices.IndexFunc(list, func(f file) bool { return f.name == active.name })
		if at < 0 {
			err = d.retire()
		} else { // the clock may have been set back since
			list = append(slices.Delete(list, at, at+1), active)
		}
	}
	d.list, d.bytes = list, 0
	for _, f := range list {
		d.bytes += f.size
	}
	return err
}

// append writes whole records, whose first is of that time. Where they are too
// many by the limit, the oldest files make room; expired is how many.
func (d *files) append(records []byte, first int64, now time.Time) (expired int, err error) {
	need := int64(len(records))
	if d.open != nil && (d.list[len(d.list)-1].size+need > d.maxFile || now.Sub(d.opened).Abs() >= d.maxTime) {
		if err := d.retire(); err != nil {
			return 0, err
		}
	}
	if expired, err = d.expire(now, 0, need+fileHeader); err != nil {
		return expired, err
	}
	if d.open == nil {
		if err := d.begin(first, now); err != nil {
			return expired, fmt.Errorf("begin a file of packets: %w", err)
		}
	}
	active := &d.list[len(d.list)-1]
	if _, err := d.open.WriteAt(records, active.size); err != nil {
		// What was written of it would be a torn record in the midst of the file.
		if cut := d.open.Truncate(active.size); cut != nil {
			err = errors.Join(err, d.retire())
		}
		return expired, fmt.Errorf("write packets: %w", err)
	}
	active.size += need
	d.bytes += need
	active.last = now.UnixNano()
	return expired, nil
}

// begin makes a new file. Two may have begun at the same time by the clock.
func (d *files) begin(first int64, now time.Time) error {
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	var f *os.File
	for {
		var err error
		f, err = os.OpenFile(filepath.Join(d.dir, nameOf(first)), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		first++
	}
	if _, err := f.Write(appendFileHeader(nil)); err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	d.open, d.opened = f, now
	d.list = append(d.list, file{name: nameOf(first), first: first, last: now.UnixNano(), size: fileHeader})
	d.bytes += fileHeader
	return nil
}

// retire closes the file that takes frames; the next frame begins another.
func (d *files) retire() error {
	if d.open == nil {
		return nil
	}
	err := d.open.Close()
	d.open = nil
	if err != nil {
		return fmt.Errorf("close a file of packets: %w", err)
	}
	return nil
}

// expire deletes the files whose last frame is older than maxAge (0: any age), and
// the oldest ones as long as there is no room for so many further bytes.
func (d *files) expire(now time.Time, maxAge time.Duration, need int64) (expired int, err error) {
	for len(d.list) > 0 {
		old := d.list[0]
		tooOld := maxAge > 0 && now.UnixNano()-old.last > int64(maxAge)
		if !tooOld && d.bytes+need <= d.maxBytes {
			break
		}
		if len(d.list) == 1 {
			if err := d.retire(); err != nil {
				return expired, err
			}
		}
		if err := os.Remove(filepath.Join(d.dir, old.name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return expired, fmt.Errorf("delete old packets: %w", err)
		}
		d.list = slices.Delete(d.list, 0, 1)
		d.bytes -= old.size
		expired++
	}
	return expired, nil
}

func (d *files) close() error { return d.retire() }
