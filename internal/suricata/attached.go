package suricata

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Rules may name files: lists, scripts. They are meant from the rule's own directory,
// which Suricata does not know here, and may be closed to it. So they are copied to
// where it reads, under a name made of what they hold: a changed list is another set
// of rules, and those of before keep theirs.

// filesDir holds them, in the inspect directory.
const filesDir = "files"

// maxAttached bounds one of them.
const maxAttached = 256 << 20

var errNoFile = errors.New("a file is named that decoynet cannot give to Suricata")

// attach has a rule name the copies of its files, and notes where they come from.
func (s *ruleset) attach(text, dir string) (string, error) {
	if !strings.Contains(text, "load ") && !strings.Contains(text, "lua") && !strings.Contains(text, "filemd5") && !strings.Contains(text, "filesha") {
		return text, nil
	}
	var errs []error
	for option := range options(text) {
		name, value, _ := strings.Cut(option, ":")
		var files []string
		switch strings.TrimSpace(name) {
		case "dataset", "datarep":
			for part := range strings.SplitSeq(value, ",") {
				if file, ok := strings.CutPrefix(strings.TrimSpace(part), "load "); ok {
					files = append(files, strings.TrimSpace(file))
				}
			}
		case "lua", "luajit", "filemd5", "filesha1", "filesha256":
			files = append(files, strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(value), "!")))
		}
		for _, file := range files {
			copied, err := s.copyOf(file, dir)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			text = strings.ReplaceAll(text, option+";", strings.ReplaceAll(option, file, copied)+";")
			option = strings.ReplaceAll(option, file, copied)
		}
	}
	return text, errors.Join(errs...)
}

// copyOf returns the name that Suricata will find a file by.
func (s *ruleset) copyOf(file, dir string) (string, error) {
	path := file
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	for name, from := range s.attached {
		if from == path {
			return root + "/" + name, nil
		}
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errNoFile, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("%w: %w", errNoFile, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxAttached {
		return "", fmt.Errorf("%w: %s is no regular file of %d MB at most", errNoFile, path, maxAttached>>20)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, maxAttached)); err != nil {
		return "", fmt.Errorf("%w: read %s: %w", errNoFile, path, err)
	}
	name := filesDir + "/" + hex.EncodeToString(h.Sum(nil)[:12]) + filepath.Ext(path)
	if s.attached == nil {
		s.attached = make(map[string]string)
	}
	s.attached[name] = path
	return root + "/" + name, nil
}

// attached is a file to be copied.
type attached string

// WriteTo copies it.
func (a attached) WriteTo(w io.Writer) (int64, error) {
	f, err := os.Open(string(a))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return io.Copy(w, io.LimitReader(f, maxAttached))
}
