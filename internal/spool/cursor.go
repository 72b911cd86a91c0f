package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
)

const cursorName = "cursor"

// The last byte is the version. The first one knew no kinds.
var (
	cursorMagic  = [8]byte{'d', 'n', 'c', 'u', 'r', 's', 'r', 2}
	cursorMagic1 = [8]byte{'d', 'n', 'c', 'u', 'r', 's', 'r', 1}
)

const (
	cursorSize1 = 8 + 5*8 + 4
	cursorSize  = cursorSize1 + Kinds*8
)

// counts is what was given up since the spool was made.
type counts struct {
	full, lost, damaged, damagedBytes uint64
	kinds                             Tally // but for kind 0, which is what is left
}

// cursor is what the spool knows beside its records. It is replaced whole.
type cursor struct {
	acked  uint64 // number of the oldest record that is not acknowledged
	counts counts
}

func (c cursor) encode() []byte {
	b := append(make([]byte, 0, cursorSize), cursorMagic[:]...)
	for _, n := range [...]uint64{c.acked, c.counts.full, c.counts.lost, c.counts.damaged, c.counts.damagedBytes} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	for _, n := range c.counts.kinds {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeCursor(b []byte) (c cursor, err error) {
	end := len(b) - 4
	known := len(b) == cursorSize && [8]byte(b) == cursorMagic || len(b) == cursorSize1 && [8]byte(b) == cursorMagic1
	if !known || crc32.Checksum(b[:end], castagnoli) != binary.LittleEndian.Uint32(b[end:]) {
		return cursor{}, errors.New("it is damaged")
	}
	number := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8+8*i:]) }
	c = cursor{acked: number(0), counts: counts{full: number(1), lost: number(2), damaged: number(3), damagedBytes: number(4)}}
	if len(b) == cursorSize {
		for i := range c.counts.kinds {
			c.counts.kinds[i] = number(5 + i)
		}
	}
	return c, nil
}

// loadCursor returns false where there is none that can be read, and why if
// that is worth telling.
func loadCursor(dir string) (c cursor, ok bool, err error) {
	b, err := os.ReadFile(filepath.Join(dir, cursorName))
	if errors.Is(err, fs.ErrNotExist) {
		return cursor{}, false, nil
	}
	if err == nil {
		c, err = decodeCursor(b)
	}
	if err != nil {
		return cursor{}, false, fmt.Errorf("read the spool's cursor (records may be delivered twice): %w", err)
	}
	return c, true, nil
}

// save replaces the file. It outlives the process at once, and the machine's
// power with the file system's next flush: an old cursor costs duplicates only.
func (c cursor) save(dir string) error {
	name := filepath.Join(dir, cursorName)
	if err := os.WriteFile(name+".new", c.encode(), 0o600); err != nil {
		return errors.Join(fmt.Errorf("write the spool's cursor: %w", err), ignoreMissing(os.Remove(name+".new")))
	}
	if err := os.Rename(name+".new", name); err != nil {
		return fmt.Errorf("replace the spool's cursor: %w", err)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
