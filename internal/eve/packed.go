package eve

import (
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// content is what a file of events holds.
type content interface {
	io.ReaderAt
	io.Closer
	Name() string
	Stat() (os.FileInfo, error) // of the file, which may be compressed
	// size is how many bytes can be read by now.
	size() (int64, error)
}

// openContent opens a file of events. It returns errCut where one is named as
// compressed and is not.
func openContent(path string) (content, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if !packed(path) {
		return plain{file}, nil
	}
	p, err := unpack(file)
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return p, nil
}

// plain is a file that holds the events as they are.
type plain struct{ *os.File }

func (p plain) size() (int64, error) {
	info, err := p.Stat()
	if err != nil {
		return 0, fmt.Errorf("look at %s: %w", p.Name(), err)
	}
	return info.Size(), nil
}

// packed tells whether a file is compressed by gzip, as logrotate does it.
func packed(name string) bool { return filepath.Ext(name) == ".gz" }

// foreign tells whether a file is compressed by a program whose files are not read.
func foreign(name string) bool {
	switch filepath.Ext(name) {
	case ".bz2", ".xz", ".zst", ".lz4", ".zip":
		return true
	}
	return false
}

// unpacker reads a file that was compressed. To who reads it forwards it looks like one that
// grows: nothing is decompressed much before it is read, nor written anywhere. A
// damaged file ends where the damage is.
type unpacker struct {
	*os.File
	gz     *gzip.Reader
	head   []byte // what the file begins with, for those who look whether it is still the same
	buf    []byte // what may be read at once: the bytes from base on
	base   int64
	asked  int64 // where the last read ended
	ended  bool
	damage error // why it ended before its end
}

// unpack begins to read a compressed file.
func unpack(file *os.File) (*unpacker, error) {
	gz, err := gzip.NewReader(file)
	if err != nil {
		return nil, fmt.Errorf("%w: decompress %s: %w", errCut, file.Name(), err)
	}
	u := &unpacker{File: file, gz: gz}
	u.need(witness)
	u.head = slices.Clone(u.buf[:min(witness, len(u.buf))])
	return u, nil
}

// need decompresses up to an offset.
func (u *unpacker) need(end int64) {
	for !u.ended && u.base+int64(len(u.buf)) < end {
		u.buf = slices.Grow(u.buf, readChunk)
		n, err := u.gz.Read(u.buf[len(u.buf):cap(u.buf)])
		u.buf = u.buf[:len(u.buf)+n]
		u.ended = err != nil
		if err != nil && err != io.EOF {
			u.damage = fmt.Errorf("decompress %s: %w", u.Name(), err)
		}
	}
}

// ReadAt reads what was asked for before, or what comes after it. Anything else
// costs that the file is decompressed from its beginning.
func (u *unpacker) ReadAt(b []byte, off int64) (int, error) {
	if end := off + int64(len(b)); end <= witness {
		return bytesAt(u.head, b, off)
	}
	if off < u.base {
		if err := u.rewind(); err != nil {
			return 0, err
		}
	}
	for !u.ended && u.base+int64(len(u.buf)) < off {
		u.base += int64(len(u.buf))
		u.buf = u.buf[:0]
		u.need(u.base + 1)
	}
	u.drop(off)
	u.need(off + int64(len(b)))
	n, err := bytesAt(u.buf, b, off-u.base)
	u.asked = off + int64(n)
	return n, err
}

// drop forgets what stands before an offset.
func (u *unpacker) drop(off int64) {
	n := min(int(off-u.base), len(u.buf))
	u.buf = u.buf[:copy(u.buf, u.buf[n:])]
	u.base += int64(n)
}

func bytesAt(all, b []byte, off int64) (int, error) {
	n := copy(b, all[min(off, int64(len(all))):])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (u *unpacker) rewind() error {
	_, err := u.Seek(0, io.SeekStart)
	if err == nil {
		err = u.gz.Reset(u.File)
	}
	if err != nil {
		return fmt.Errorf("read %s again: %w", u.Name(), err)
	}
	u.buf, u.base, u.ended, u.damage = u.buf[:0], 0, false, nil
	return nil
}

// size is as much as can be read before anything has to be decompressed again.
func (u *unpacker) size() (int64, error) {
	u.need(u.asked + readChunk)
	return u.base + int64(len(u.buf)), nil
}

// notedSize is what a compressed file says of its content's size: the last 32 bits
// of it. Where it was put together from several, it is the last one's.
func notedSize(path string) (uint32, error) {
	file, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	var last [4]byte
	end, err := file.Seek(-int64(len(last)), io.SeekEnd)
	if err == nil {
		_, err = file.ReadAt(last[:], end)
	}
	if err != nil {
		return 0, fmt.Errorf("read the end of %s: %w", path, err)
	}
	return binary.LittleEndian.Uint32(last[:]), nil
}
