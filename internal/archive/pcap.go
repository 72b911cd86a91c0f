package archive

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// The classic pcap format (draft-ietf-opsawg-pcap): a header, and records of a
// header and a frame each. The times are in nanoseconds, the frames Ethernet.
const (
	fileHeader   = 24
	recordHeader = 16
	magic        = 0xa1b23c4d
	ethernet     = 1
	maxFrame     = 256 << 10 // tshark takes a longer one for damage

	etherHeader = 14
	addresses   = 12 // bytes of the two MAC addresses that a frame begins with
)

// appendFileHeader appends what a file begins with.
func appendFileHeader(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, magic)
	b = binary.LittleEndian.AppendUint16(b, 2) // version 2.4
	b = binary.LittleEndian.AppendUint16(b, 4)
	b = binary.LittleEndian.AppendUint64(b, 0) // time zone and accuracy, both unused
	b = binary.LittleEndian.AppendUint32(b, maxFrame)
	return binary.LittleEndian.AppendUint32(b, ethernet)
}

// appendRecord appends a frame with its header; at is in Unix nanoseconds.
func appendRecord(b []byte, at int64, frame ...[]byte) []byte {
	size := 0
	for _, part := range frame {
		size += len(part)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(at/1e9))
	b = binary.LittleEndian.AppendUint32(b, uint32(at%1e9))
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	b = binary.LittleEndian.AppendUint32(b, uint32(size))
	for _, part := range frame {
		b = append(b, part...)
	}
	return b
}

// errNotOurs says that a file is no pcap file of an archive.
var errNotOurs = errors.New("no pcap file of decoynet's")

// reader walks over the records of a file.
type reader struct {
	r      *bufio.Reader
	offset int64 // of the next record
}

// newReader reads the file's header with r, whose buffer is to be larger than a
// record's header. It returns io.ErrUnexpectedEOF where the header is cut short,
// and errNotOurs.
func newReader(r *bufio.Reader) (*reader, error) {
	var head [fileHeader]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	if binary.LittleEndian.Uint32(head[:]) != magic || binary.LittleEndian.Uint32(head[20:]) != ethernet {
		return nil, errNotOurs
	}
	return &reader{r: r, offset: fileHeader}, nil
}

// record is where a frame stands in a file.
type record struct {
	at     int64 // Unix nanoseconds
	offset int64 // of the frame
	size   int
}

// next returns the next record and the frame's MAC addresses, and steps over the
// frame. It returns io.EOF at the end of what is
// whole: behind it may be the torn end that a killed process left, or what one
// that lives is about to write.
func (r *reader) next() (rec record, macs [addresses]byte, err error) {
	head, err := r.r.Peek(recordHeader + addresses)
	if err != nil {
		return rec, macs, err
	}
	nanos, size := binary.LittleEndian.Uint32(head[4:]), binary.LittleEndian.Uint32(head[8:])
	if nanos >= 1e9 || size < etherHeader || size > maxFrame || binary.LittleEndian.Uint32(head[12:]) != size {
		return rec, macs, io.EOF // zeros that a power failure left, or worse
	}
	rec = record{
		at:     int64(binary.LittleEndian.Uint32(head))*1e9 + int64(nanos),
		offset: r.offset + recordHeader,
		size:   int(size),
	}
	copy(macs[:], head[recordHeader:])
	if _, err := r.r.Discard(recordHeader + rec.size); err != nil {
		return rec, macs, err
	}
	r.offset = rec.offset + int64(rec.size)
	return rec, macs, nil
}

// whole returns how long the part of a file is that can be read.
func whole(path string) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	r, err := newReader(bufio.NewReaderSize(f, readBuffer))
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, nil
	}
	for err == nil {
		_, _, err = r.next()
	}
	if errors.Is(err, io.EOF) {
		return r.offset, nil
	}
	return 0, err
}

// A file's name is the time of its first frame, so that names sort as times do.
const (
	nameLayout = "20060102T150405.000000000Z"
	nameSuffix = ".pcap"
)

func nameOf(at int64) string { return time.Unix(0, at).UTC().Format(nameLayout) + nameSuffix }

// parseName returns the time of the first frame in the file of that name.
func parseName(name string) (int64, error) {
	text, ok := strings.CutSuffix(name, nameSuffix)
	if !ok {
		return 0, errNotOurs
	}
	t, err := time.Parse(nameLayout, text)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errNotOurs, err)
	}
	return t.UnixNano(), nil
}
