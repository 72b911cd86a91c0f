package archive

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// meanwhile is a context that does something when the second file is about to be
// read.
type meanwhile struct {
	context.Context
	asked int
	do    func()
}

func (m *meanwhile) Err() error {
	if m.asked++; m.asked == 2 {
		m.do()
	}
	return nil
}

// TestFileGoesMeanwhile: a file that expires, or loses its end, between the moment when
// a session was found in it and that when its packets are copied costs those packets
// only; and where none is left it says so, and writes nothing.
func TestFileGoesMeanwhile(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(path string) error
		kept   bool
	}{
		"it expires":             {os.Remove, false},
		"its last packet is cut": {func(path string) error { return shorten(path, 10) }, true},
		"all of it is cut":       {func(path string) error { return os.Truncate(path, fileHeader) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			now := time.Now()
			f := newFlow(now, "192.0.2.66:40000", "192.0.2.10:80").talk(100, 1400)
			other := newFlow(now, "192.0.2.67:40000", "192.0.2.10:80").talk(100)
			for _, flow := range []*flow{f, other} { // a file each
				a := open(t, dir, large)
				put(t, a, flow)
				if err := a.Close(); err != nil {
					t.Fatal(err)
				}
			}
			list, err := listFiles(dir)
			if err != nil || len(list) != 2 {
				t.Fatalf("%d files: %v", len(list), err)
			}
			ctx := &meanwhile{Context: t.Context(), do: func() {
				if err := tt.change(filepath.Join(dir, list[0].name)); err != nil {
					t.Error(err)
				}
			}}
			var out bytes.Buffer
			found, err := Extract(ctx, dir, f.id, now, now, &out)
			switch {
			case tt.kept && (err != nil || found.Packets != len(f.frames)-1):
				t.Errorf("%+v, %v, want %d packets", found, err, len(f.frames)-1)
			case !tt.kept && (!errors.Is(err, ErrNotKept) || out.Len() != 0):
				t.Errorf("%+v, %v, and %d bytes", found, err, out.Len())
			}
		})
	}
}

// shorten cuts bytes off a file.
func shorten(path string, by int64) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.Truncate(path, info.Size()-by)
}
