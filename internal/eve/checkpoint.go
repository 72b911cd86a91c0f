package eve

import (
	"encoding"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"
)

// checkpoint is what a reader has to know of an earlier one. It is replaced
// whole. An old one costs that events are handed over twice.
type checkpoint struct {
	Version int
	Head    digest // of the file that is being read: see position
	Offset  int64
	Tail    digest
	Written time.Time  // when the file was last written to
	Done    []finished `json:",omitempty"`
}

// finished is a file that was read to its end, as it was then. A copy of it may have
// more.
type finished struct {
	Head   digest
	Offset int64 // after the last whole line
	Tail   digest
	Size   int64
	Packed int64 `json:",omitempty"` // how long the file was where it was compressed
}

func (d *finished) position() position { return position{d.Head, d.Offset, d.Tail} }

const checkpointVersion = 1

var (
	_ encoding.TextMarshaler   = digest{}
	_ encoding.TextUnmarshaler = (*digest)(nil)
)

// MarshalText makes digests readable in the file.
func (d digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText is the inverse of MarshalText.
func (d *digest) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(d) {
		return fmt.Errorf("a digest has %d hexadecimal digits", 2*len(d))
	}
	_, err := hex.Decode(d[:], text)
	return err
}

func (c *checkpoint) position() position { return position{c.Head, c.Offset, c.Tail} }

// same tells whether the other one says the same place.
func (c *checkpoint) same(o *checkpoint) bool {
	return c.position() == o.position() && slices.Equal(c.Done, o.Done)
}

// loadCheckpoint returns false where there is none that can be read, and why if
// that is worth telling. Of a damaged one it returns when it was written.
func loadCheckpoint(path string) (c checkpoint, ok bool, err error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return checkpoint{}, false, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err == nil && (c.Version != checkpointVersion || c.Offset < 0) {
		err = fmt.Errorf("version %d, offset %d", c.Version, c.Offset)
	}
	if err == nil {
		return c, true, nil
	}
	c = checkpoint{}
	if info, err := os.Stat(path); err == nil {
		c.Written = info.ModTime()
	}
	return c, false, fmt.Errorf("read checkpoint %s (events are read again): %w", path, err)
}

// save replaces the file. It outlives the process at once, and the machine's
// power with the file system's next flush.
func (c *checkpoint) save(path string) error {
	c.Version = checkpointVersion
	b, err := json.Marshal(c)
	if err == nil {
		err = os.WriteFile(path+".new", append(b, '\n'), 0o600)
	}
	if err != nil {
		return fmt.Errorf("write checkpoint of events: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("replace checkpoint of events: %w", err)
	}
	return nil
}
