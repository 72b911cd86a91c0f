package suricata

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"decoynet/deception"

	"golang.org/x/sys/unix"
)

// What is in decoynet's inspect directory. Suricata reads all of it and writes in
// childDir only.
const (
	liveConfig      = "suricata.yaml"
	candidateConfig = "candidate.yaml"
	liveRules       = "live.rules"
	earlyRules      = "early.rules"    // of a start, until a large set is loaded
	documentRules   = "document.rules" // the part of liveRules that is the document's
	candidateRules  = "candidate.rules"
	testedFile      = "tested.json" // of which set Suricata has passed, and what it said
	classesFile     = "classification.config"
	referencesFile  = "reference.config"
	childDir        = "suricata"
	dataDir         = "data" // in childDir: what rules have Suricata keep
	eveName         = "eve.json"
	fifoName        = "feed.fifo"
	socketName      = "command.socket"
)

// nobody is whom Suricata runs as where decoynet is root: it parses what intruders
// send, and needs no right but to its own directory.
const nobody = 65534

// niceLevel is Suricata's priority below the relay's.
const niceLevel = 5

// home is the inspect directory, opened.
type home struct {
	path string
	dir  *os.File
	// user is whom Suricata runs as; nil: as decoynet.
	user *syscall.Credential
	cpus []int // that it is kept to; empty: any
}

// openHome makes the directory ready. It is closed to everybody by the directory
// above, but Suricata, which gets it as an open descriptor, must read in it.
func openHome(path string) (*home, error) {
	child := filepath.Join(path, childDir)
	for _, dir := range []string{path, child, filepath.Join(path, filesDir), filepath.Join(child, dataDir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make suricata's directory: %w", err)
		}
	}
	h := &home{path: path}
	if os.Geteuid() == 0 {
		h.user = &syscall.Credential{Uid: nobody, Gid: nobody}
		if err := errors.Join(os.Chmod(path, 0o711), os.Chmod(filepath.Join(path, filesDir), 0o711),
			os.Lchown(child, nobody, nobody), os.Lchown(filepath.Join(child, dataDir), nobody, nobody)); err != nil {
			return nil, fmt.Errorf("give suricata its directory: %w", err)
		}
	}
	var err error
	if h.dir, err = os.Open(path); err != nil {
		return nil, fmt.Errorf("open suricata's directory: %w", err)
	}
	return h, nil
}

func (h *home) close() { h.dir.Close() }

func (h *home) file(name string) string  { return filepath.Join(h.path, name) }
func (h *home) child(name string) string { return filepath.Join(h.path, childDir, name) }

// write puts a set of rules and a configuration that names it into the directory.
func (h *home) write(set *ruleset, b *Binary, want *deception.Inspect, rules, config string) error {
	for name, from := range set.attached {
		if _, err := os.Stat(h.file(name)); err == nil {
			continue // what is in it is in its name
		}
		if err := h.replaceBy(name, attached(from)); err != nil {
			return err
		}
	}
	if err := h.replaceBy(rules, set); err != nil {
		return err
	}
	for name, text := range map[string]string{classesFile: set.classes, referencesFile: ownReferences} {
		if err := h.replace(name, []byte(text)); err != nil {
			return err
		}
	}
	return h.replace(config, configure(b, want, rules)) // it names the others
}

// replace writes a file whole or not at all.
func (h *home) replace(name string, text []byte) error {
	return h.replaceBy(name, bytes.NewReader(text))
}

func (h *home) replaceBy(name string, from io.WriterTo) (err error) {
	path := h.file(name)
	defer func() {
		if err != nil {
			err = fmt.Errorf("write suricata's %s: %w", name, errors.Join(err, os.Remove(path+".new")))
		}
	}()
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	if _, err = from.WriteTo(f); err != nil {
		return errors.Join(err, f.Close())
	}
	if err = errors.Join(f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// freshFIFO puts a new FIFO in the place of the one that there is. The bytes that
// a killed Suricata left in the old one begin in the middle of a frame; its writer
// finds it broken and opens the new one. At no moment there is none: the writer
// would make one that Suricata may not open.
func (h *home) freshFIFO(path string) error {
	info, err := os.Lstat(path)
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("make the feed's FIFO: %w", err)
	case err == nil && info.Mode()&fs.ModeNamedPipe == 0:
		return fmt.Errorf("make the feed's FIFO: %s is there and is none; remove it", path)
	}
	fresh := path + ".next"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make the feed's FIFO: %w", err)
	}
	if err := unix.Mkfifo(fresh, 0o600); err != nil {
		return fmt.Errorf("make the feed's FIFO %s: %w", fresh, err)
	}
	if h.user != nil {
		if err := os.Lchown(fresh, nobody, nobody); err != nil {
			return fmt.Errorf("give suricata the feed's FIFO: %w", err)
		}
	}
	if err := os.Rename(fresh, path); err != nil {
		return fmt.Errorf("make the feed's FIFO: %w", err)
	}
	return nil
}
