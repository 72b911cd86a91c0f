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

var cursorMagic = [8]byte{'d', 'n', 'c', 'u', 'r', 's', 'r', 1}

// counts is what was given up since the spool was made.
type counts struct {
	full, lost, damaged, damagedBytes uint64
}

// cursor is what the spool knows beside its records. It is replaced whole.
type cursor struct {
	acked  uint64 // number of the oldest record that is not acknowledged
	counts counts
}

func (c cursor) encode() []byte {
	b := append(make([]byte, 0, 64), cursorMagic[:]...)
	for _, n := range [...]uint64{c.acked, c.counts.full, c.counts.lost, c.counts.damaged, c.counts.damagedBytes} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func decodeCursor(b []byte) (cursor, error) {
	const size = 8 + 5*8
	if len(b) != size+4 || [8]byte(b) != cursorMagic ||
		crc32.Checksum(b[:size], castagnoli) != binary.LittleEndian.Uint32(b[size:]) {
		return cursor{}, errors.New("it is damaged")
	}
	number := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8+8*i:]) }
	return cursor{acked: number(0), counts: counts{number(1), number(2), number(3), number(4)}}, nil
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
