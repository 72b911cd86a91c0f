package rpc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"decoynet/internal/rpc/decoynetv1"

	"google.golang.org/protobuf/proto"
)

const snapshotName = "snapshot.pb"

// ErrNoSnapshot is returned by LoadSnapshot if the directory holds none.
var ErrNoSnapshot = errors.New("this node has not had its part of the document yet: the controller must be reached once")

// LoadSnapshot returns the last snapshot that a Client was given, so that a node
// runs without a controller. It returns ErrNoSnapshot.
func LoadSnapshot(dir string) (*decoynetv1.Snapshot, error) {
	name := filepath.Join(dir, snapshotName)
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoSnapshot
	}
	if err != nil {
		return nil, fmt.Errorf("read the last snapshot: %w", err)
	}
	s := &decoynetv1.Snapshot{}
	if err := proto.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("read the last snapshot: %s is damaged (remove it; the controller sends another): %w", name, err)
	}
	return s, nil
}

// saveSnapshot replaces the file in one step, flushed to the disk: a machine that
// loses power must come up with what it ran.
func saveSnapshot(dir string, s *decoynetv1.Snapshot) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("save the snapshot: %w", err)
		}
	}()
	b, err := proto.Marshal(s)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, snapshotName+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, snapshotName))
	}
	if err != nil {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}
