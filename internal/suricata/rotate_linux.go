package suricata

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// keptFiles bounds the rotated files of events that nobody has read: at 256 MiB
// each a gigabyte.
const keptFiles = 4

// rotate gives Suricata a new file of events when the present one is large, and
// removes old ones.
func (s *Suricata) rotate(ctx context.Context) error {
	if s.reopen {
		if err := s.reopenEvents(ctx); err != nil {
			return err
		}
	}
	path := s.EVE()
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at suricata's events: %w", err)
	}
	s.mu.Lock()
	s.status.EVEBytes = info.Size()
	s.mu.Unlock()
	if info.Size() >= s.cfg.RotateBytes {
		if err := os.Rename(path, path+"."+time.Now().UTC().Format("20060102T150405.000")); err != nil {
			return fmt.Errorf("rotate suricata's events: %w", err)
		}
		s.reopen = true
		if err := s.reopenEvents(ctx); err != nil {
			return err
		}
	}
	return s.prune()
}

// reopenEvents has Suricata write to a new file. Until it has done so, it writes to
// the old one, which is read to its end.
func (s *Suricata) reopenEvents(ctx context.Context) error {
	if _, err := command(ctx, s.home.child(""), "reopen-log-files"); err != nil {
		return fmt.Errorf("rotate suricata's events: %w", err)
	}
	s.reopen = false
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Rotations++
	return nil
}

// prune removes rotated files that were read, and the oldest of too many.
func (s *Suricata) prune() error {
	old, err := filepath.Glob(s.EVE() + ".*")
	if err != nil {
		return fmt.Errorf("list suricata's old events: %w", err)
	}
	slices.SortFunc(old, func(a, b string) int { return cmp.Compare(b, a) }) // the newest first
	var errs []error
	kept := 0
	for _, path := range old {
		if strings.HasSuffix(path, ".checkpoint") {
			continue
		}
		read := s.cfg.Read != nil && s.cfg.Read(path)
		if !read {
			if kept++; kept <= keptFiles {
				continue
			}
		}
		if err := os.Remove(path); err != nil {
			errs = append(errs, fmt.Errorf("remove suricata's old events: %w", err))
			continue
		}
		if !read && s.cfg.Read != nil {
			s.mu.Lock()
			s.status.Unread++
			s.mu.Unlock()
			s.cfg.Log.Warn("events of suricata were removed before they were read", "file", path)
		}
	}
	return errors.Join(errs...)
}
