package vm

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// archive writes a root file system in the one form that the kernel unpacks into
// its first: cpio's "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	w     io.Writer
	have  map[string]bool // names that were written, without a leading slash
	inode int
	// number is the next entry's, where it is a device.
	number [2]int
	at     int64 // bytes written
	err    error // the first failure; nothing is written after it
}

func newArchive(w io.Writer) *archive {
	return &archive{w: w, have: map[string]bool{}}
}

// File types of a mode field, from cpio(5).
const (
	cpioDir     = 0o040000
	cpioRegular = 0o100000
	cpioLink    = 0o120000
	cpioChar    = 0o020000
)

// clean turns a guest's path into a name in the archive.
func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// dir adds a directory and those above it.
func (a *archive) dir(name string) {
	name = clean(name)
	if name == "" || a.have[name] {
		return
	}
	a.dir(path.Dir(name))
	a.entry(name, cpioDir|0o755, 0, nil)
}

// device adds a character device.
func (a *archive) device(name string, major, minor int) {
	name = clean(name)
	a.dir(path.Dir(name))
	a.number = [2]int{major, minor}
	a.entry(name, cpioChar|0o600, 0, nil)
	a.number = [2]int{}
}

// link adds a symbolic link. What has the name already stays.
func (a *archive) link(name, target string) {
	if name = clean(name); a.have[name] {
		return
	}
	a.dir(path.Dir(name))
	a.entry(name, cpioLink|0o777, int64(len(target)), strings.NewReader(target))
}

// text adds a file with the content. What has the name already stays.
func (a *archive) text(name string, mode fs.FileMode, content []byte) {
	if name = clean(name); a.have[name] {
		return
	}
	a.dir(path.Dir(name))
	a.entry(name, cpioRegular|int(mode.Perm()), int64(len(content)), bytes.NewReader(content))
}

// tree adds a file or directory of the host under the guest's name, with all
// that is below it; symbolic links stay links.
func (a *archive) tree(name, host string) {
	if a.err != nil {
		return
	}
	host, err := filepath.EvalSymlinks(host) // the one that was named is followed
	if err == nil {
		err = filepath.WalkDir(host, func(p string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return a.copy(path.Join(name, strings.TrimPrefix(p, host)), p, entry)
		})
	}
	if err != nil {
		a.fail(fmt.Errorf("add %s: %w", host, err))
	}
}

func (a *archive) copy(name, host string, entry fs.DirEntry) error {
	switch {
	case entry.IsDir():
		a.dir(name)
	case entry.Type()&fs.ModeSymlink != 0:
		target, err := os.Readlink(host)
		if err != nil {
			return err
		}
		a.link(name, target)
	case entry.Type().IsRegular():
		return a.regular(name, host)
	}
	return a.err
}

func (a *archive) regular(name, host string) error {
	if name = clean(name); a.have[name] {
		return nil
	}
	f, err := os.Open(host)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	a.dir(path.Dir(name))
	a.entry(name, cpioRegular|int(info.Mode().Perm()), info.Size(), f)
	return a.err
}

func (a *archive) entry(name string, mode int, size int64, content io.Reader) {
	if a.err != nil {
		return
	}
	if size > 0xffffffff {
		a.fail(fmt.Errorf("add %s: larger than the format allows", name))
		return
	}
	a.have[name] = true
	a.inode++
	// Fields: magic, inode, mode, uid, gid, links, mtime, size, four device
	// numbers, length of the name with its final NUL, checksum (unused).
	head := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, size, 0, 0, a.number[0], a.number[1], len(name)+1, 0, name)
	a.write(strings.NewReader(head))
	a.pad()
	if content != nil {
		if n := a.write(io.LimitReader(content, size)); n != size && a.err == nil {
			a.fail(fmt.Errorf("add %s: %d of %d bytes: it shrank meanwhile", name, n, size))
		}
		a.pad()
	}
}

func (a *archive) write(r io.Reader) int64 {
	if a.err != nil {
		return 0
	}
	n, err := io.Copy(a.w, r)
	a.at += n
	if err != nil {
		a.fail(fmt.Errorf("write the root file system: %w", err))
	}
	return n
}

// pad fills up to a multiple of four bytes.
func (a *archive) pad() {
	a.write(bytes.NewReader(make([]byte, (4-a.at%4)%4)))
}

func (a *archive) fail(err error) {
	if a.err == nil {
		a.err = err
	}
}

// close ends the archive and returns what went wrong first.
func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, 0, nil)
	return a.err
}
