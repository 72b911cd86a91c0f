package spool

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// A segment file is a header and, one after the other, records:
//
//	magic        8 bytes, the last is the version
//	previous     uint64, number after the last record of the segment before
//	checksum     uint32, CRC-32C of both
//
//	checksum     uint32, CRC-32C of what follows
//	length       uint32
//	record       length bytes
//
// Numbers are little-endian. The number of a segment's first record is its file's
// name. `previous` makes the segment before it countable without being read, and
// tells records that were given up from those that a damage has taken.
const (
	frameHeader   = 8
	segmentHeader = 20
)

var (
	segmentMagic = [8]byte{'d', 'n', 's', 'p', 'o', 'o', 'l', 1}
	castagnoli   = crc32.MakeTable(crc32.Castagnoli)
)

// Errors of reading a segment.
var (
	errShort   = errors.New("record goes on")
	errDamaged = errors.New("record is damaged")
)

func makeSegmentHeader(previous uint64) []byte {
	return appendHeaderChecksum(binary.LittleEndian.AppendUint64(append([]byte(nil), segmentMagic[:]...), previous))
}

func appendHeaderChecksum(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// parseSegmentHeader returns ErrNewer for the header of a later version.
func parseSegmentHeader(b []byte) (previous uint64, err error) {
	if len(b) < segmentHeader || [7]byte(b) != [7]byte(segmentMagic[:7]) ||
		crc32.Checksum(b[:16], castagnoli) != binary.LittleEndian.Uint32(b[16:]) {
		return 0, errDamaged
	}
	if b[7] != segmentMagic[7] {
		return 0, ErrNewer
	}
	return binary.LittleEndian.Uint64(b[8:]), nil
}

// seal fills in the checksums of the frames in b.
func seal(b []byte) {
	for len(b) > 0 {
		n := frameHeader + int(binary.LittleEndian.Uint32(b[4:]))
		binary.LittleEndian.PutUint32(b, crc32.Checksum(b[4:n], castagnoli))
		b = b[n:]
	}
}

// parseFrame returns the record that b begins with and the length of its frame;
// errShort if b may be the beginning of one, errDamaged if not.
func parseFrame(b []byte) (record []byte, n int, err error) {
	if len(b) < frameHeader {
		return nil, 0, errShort
	}
	size := binary.LittleEndian.Uint32(b[4:])
	if size > MaxRecord {
		return nil, 0, errDamaged
	}
	n = frameHeader + int(size)
	if len(b) < n {
		return nil, n, errShort
	}
	if crc32.Checksum(b[4:n], castagnoli) != binary.LittleEndian.Uint32(b) {
		return nil, 0, errDamaged
	}
	return b[frameHeader:n], n, nil
}

// frameReader reads records one after the other from a part of a file.
type frameReader struct {
	file io.ReaderAt
	at   int64 // of the next record
	end  int64 // where the part ends
	buf  []byte
	lo   int // buf[lo:hi] is what is read and not parsed
	hi   int
}

const readAhead = 64 << 10

func newFrameReader(file io.ReaderAt, at, end int64) *frameReader {
	return &frameReader{file: file, at: at, end: end, buf: make([]byte, max(0, min(readAhead, end-at)))}
}

// next returns a record, which is valid until the next call; io.EOF where the
// part ends after a whole record, errDamaged where it does not or what is there
// is no record, and errors of reading as they are.
func (r *frameReader) next() ([]byte, error) {
	for {
		record, n, err := parseFrame(r.buf[r.lo:r.hi])
		switch err {
		case nil:
			r.lo += n
			r.at += int64(n)
			return record, nil
		case errDamaged:
			return nil, err
		}
		left := r.end - r.at - int64(r.hi-r.lo)
		if left <= 0 {
			if r.hi == r.lo {
				return nil, io.EOF
			}
			return nil, errDamaged
		}
		if err := r.fill(n, left); err != nil {
			return nil, err
		}
	}
}

// fill reads on, so that n bytes have room.
func (r *frameReader) fill(n int, left int64) error {
	r.hi = copy(r.buf, r.buf[r.lo:r.hi])
	r.lo = 0
	if n > len(r.buf) {
		r.buf = append(make([]byte, 0, n), r.buf[:r.hi]...)[:n]
	}
	part := r.buf[r.hi:]
	if int64(len(part)) > left {
		part = part[:left]
	}
	got, err := r.file.ReadAt(part, r.at+int64(r.hi))
	r.hi += got
	if got > 0 {
		return nil
	}
	if err == io.EOF { // the file is shorter than it was
		return errDamaged
	}
	return err
}

// scan reads records until the end or a damage and returns how many there are
// and where the last one ends.
func (r *frameReader) scan() (count uint64, end int64, err error) {
	for {
		_, err := r.next()
		switch err {
		case nil:
			count++
		case io.EOF:
			return count, r.at, nil
		default:
			return count, r.at, err
		}
	}
}
