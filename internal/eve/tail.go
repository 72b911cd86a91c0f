package eve

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
)

const (
	// DefaultMaxLine is how long a line may be to be read.
	DefaultMaxLine = 4 << 20

	witness   = 256       // bytes by which a place in a file is known again
	readChunk = 256 << 10 // what is read at a time
	keepRoom  = 2 << 20   // a longer buffer is given back when it is not needed
)

// errCut is returned by fill if the file is shorter than it was, or another one.
var errCut = errors.New("file was truncated")

// digest is a hash of some bytes of a file.
type digest [16]byte

func digestOf(b []byte) digest {
	sum := sha256.Sum256(b)
	return digest(sum[:])
}

// position is a place in a file, between two lines; the zero value is the
// beginning of any. It says by their content which
// file and which place that is: so a file is found that was renamed or
// copied, and another one is noticed that has its name or its inode. head is of
// the first bytes of the file, tail of those before the offset.
type position struct {
	head   digest
	offset int64
	tail   digest
}

// tail reads the lines of one file that grows.
type tail struct {
	file    content
	head    digest // zero as long as there is no whole line
	maxLine int
	chunk   int

	// buf is what was read and is needed, from the offset base on; buf[at:] is not
	// yet given away. Before at, some bytes are kept as a witness.
	buf  []byte
	base int64
	at   int

	skipping bool     // within a line that is too long
	skipped  position // where that began
	long     uint64   // lines that were too long
	holes    uint64   // runs of NUL bytes at the beginning of a line
}

// openTail opens a file at its beginning, or at a position if that is in it;
// errCut if it is not.
func openTail(path string, p position, maxLine int) (*tail, error) {
	f, err := openContent(path)
	if err != nil {
		return nil, err
	}
	t := &tail{file: f, maxLine: maxLine, chunk: readChunk}
	if err := t.seek(p); err != nil {
		_ = f.Close()
		return nil, err
	}
	return t, nil
}

func (t *tail) seek(p position) error {
	head, whole, err := readHead(t.file)
	if err != nil {
		return err
	}
	if whole {
		t.head = head
	}
	if p.head == (digest{}) {
		return nil
	}
	if t.head != p.head {
		return errCut
	}
	t.base = max(0, p.offset-witness)
	t.buf = make([]byte, p.offset-t.base)
	if n, err := t.file.ReadAt(t.buf, t.base); n < len(t.buf) {
		if err == io.EOF {
			return errCut
		}
		return err
	}
	t.at = len(t.buf)
	if digestOf(t.buf) != p.tail {
		return errCut
	}
	return nil
}

// jump leaves out what the file holds by now, up to the last whole line.
func (t *tail) jump() error {
	size, err := t.file.size()
	if err != nil || size == 0 {
		return err
	}
	if t.head, _, err = readHead(t.file); err != nil {
		return err
	}
	t.base = max(0, size-readChunk)
	t.buf = make([]byte, size-t.base)
	if _, err := t.file.ReadAt(t.buf, t.base); err != nil {
		return err
	}
	if t.at = bytes.LastIndexByte(t.buf, '\n') + 1; t.at == 0 && t.base > 0 {
		t.at = len(t.buf) // within a long line
		t.skipped, t.skipping = t.position(t.at), true
	}
	return nil
}

// headOf makes the digest by which a file is known of what it begins with: its
// first line, or the beginning of that. whole says that there is enough of it.
func headOf(b []byte) (head digest, whole bool) {
	b = b[:min(len(b), witness)]
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		return digestOf(b[:i+1]), true
	}
	return digestOf(b), len(b) == witness
}

func readHead(file io.ReaderAt) (head digest, whole bool, err error) {
	var first [witness]byte
	n, err := file.ReadAt(first[:], 0)
	if err != nil && err != io.EOF {
		return head, false, err
	}
	head, whole = headOf(first[:n])
	return head, whole, nil
}

// identity is the digest by which the file is known, also while it has no whole
// line.
func (t *tail) identity() digest {
	if t.head == (digest{}) {
		head, _ := headOf(t.buf)
		return head
	}
	return t.head
}

// fill reads on. It returns how many bytes came, 0 at the file's end. The last
// bytes before are read again: if they are others, the file was truncated
// meanwhile, even if it is as long again; then it returns errCut.
func (t *tail) fill() (int, error) {
	size, err := t.file.size()
	if err != nil {
		return 0, err
	}
	t.compact()
	known := min(witness, len(t.buf))
	start := len(t.buf) - known
	came := size - t.base - int64(len(t.buf))
	if came < 0 {
		return 0, errCut
	}
	var before [witness]byte
	copy(before[:], t.buf[start:])
	// No more than was there before reading began: a second read for the rest might
	// see the file after it was truncated and written again.
	room := t.buf[start : len(t.buf)+int(min(came, int64(t.chunk)))]
	n, err := t.file.ReadAt(room, t.base+int64(start))
	switch {
	case err != nil && err != io.EOF:
		err = fmt.Errorf("read %s: %w", t.file.Name(), err)
	case n < known || !bytes.Equal(room[:known], before[:known]):
		err = errCut
	default:
		err = t.checkHead()
	}
	if err != nil {
		copy(room, before[:known])
		return 0, err
	}
	t.buf = t.buf[:start+n]
	return n - known, nil
}

// checkHead looks at the beginning of the file after it was read. Suricata's lines
// are alike enough that another file may have the same bytes at the same place.
func (t *tail) checkHead() error {
	head, whole, err := readHead(t.file)
	switch {
	case err != nil:
		return fmt.Errorf("read %s: %w", t.file.Name(), err)
	case t.head != (digest{}) && head != t.head:
		return errCut
	case whole:
		t.head = head
	}
	return nil
}

// compact makes room for another chunk.
func (t *tail) compact() {
	drop := max(0, t.at-witness)
	rest := t.buf[drop:]
	need := len(rest) + t.chunk
	if cap(t.buf) < need || cap(t.buf) > keepRoom && need <= keepRoom/2 {
		t.buf = append(make([]byte, 0, need+need/2), rest...)
	} else if drop > 0 {
		t.buf = t.buf[:copy(t.buf, rest)]
	}
	t.base += int64(drop)
	t.at -= drop
}

// line returns the next whole line without its end, and where it begins in buf;
// false where there is none yet. It is valid until the next fill.
func (t *tail) line() (line []byte, at int, ok bool) {
	for {
		if !t.skipping {
			t.skipHole()
		}
		rest := t.buf[t.at:]
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			if len(rest) > t.maxLine && !t.skipping {
				t.skipped, t.skipping = t.position(t.at), true
			}
			if t.skipping {
				t.at = len(t.buf)
			}
			return nil, 0, false
		}
		at = t.at
		t.at += end + 1
		if t.skipping || end > t.maxLine {
			t.skipping = false
			t.long++
			continue
		}
		return rest[:end], at, true
	}
}

// skipHole steps over NUL bytes: a file that was truncated under a writer which does
// not append begins with as many as it had written, and one that lost
// power may end with some.
func (t *tail) skipHole() {
	n := 0
	for t.at+n < len(t.buf) && t.buf[t.at+n] == 0 {
		n++
	}
	if n > 0 {
		t.at += n
		t.holes++
	}
}

// position returns the place of buf[at], which is not before the last line.
func (t *tail) position(at int) position {
	return position{t.head, t.base + int64(at), digestOf(t.buf[max(0, at-witness):at])}
}

// here returns the place up to which all lines were given away.
func (t *tail) here() position {
	if t.skipping {
		return t.skipped
	}
	return t.position(t.at)
}

// rest returns what the file ends with after the last whole line, and its offset.
func (t *tail) rest() ([]byte, int64) {
	if t.skipping {
		return nil, 0
	}
	return t.buf[t.at:], t.base + int64(t.at)
}

// end is how far the file was read.
func (t *tail) end() int64 { return t.base + int64(len(t.buf)) }

// lag is how many bytes of the file are not given away yet.
func (t *tail) lag() int64 {
	if t == nil {
		return 0
	}
	size, err := t.file.size()
	if err != nil {
		return 0
	}
	return max(0, size-t.base-int64(t.at))
}

func (t *tail) close() {
	if t != nil {
		_ = t.file.Close()
	}
}
