package pki

import (
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The files of an identity in a data directory. The last one is written last and
// removed first: it says that the others are whole.
const (
	keyFile  = "key.pem"
	certFile = "cert.pem"
	caFile   = "ca.pem"
	infoFile = "identity.json"
)

// maxFile bounds what is read of a file: none of ours is near it, in bytes.
const maxFile = 1 << 20

// info is the content of identity.json.
type info struct {
	Node        string   `json:"node"`
	Controllers []string `json:"controllers"`
	Proxy       string   `json:"proxy,omitempty"`
}

// LoadIdentity reads the identity from a data directory. It returns ErrNoIdentity
// where there is none, ErrDamaged where there is no whole one, and an error that
// says what to do where others than the owner may read the key or exchange the
// files.
func LoadIdentity(dir string) (*Identity, error) {
	text, err := readFile(dir, infoFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (no %s)", ErrNoIdentity, filepath.Join(dir, infoFile))
	}
	if err != nil {
		return nil, err
	}
	if err := checkPrivate(dir); err != nil {
		return nil, err
	}
	var about info
	if err := json.Unmarshal(text, &about); err != nil {
		return nil, damaged(dir, infoFile, err)
	}
	if err := errors.Join(checkNode(about.Node), checkControllers(about.Controllers)); err != nil {
		return nil, damaged(dir, infoFile, err)
	}
	i := &Identity{
		node: about.Node, now: time.Now,
		dir: dir, controllers: about.Controllers, proxy: about.Proxy,
	}
	leaf, err := i.loadKeys()
	if err != nil {
		return nil, err
	}
	node, err := checkLeaf(leaf, i.key, i.ca)
	if err == nil && node != about.Node {
		err = fmt.Errorf("it is of node %s, %s says %s", node, infoFile, about.Node)
	}
	if err != nil {
		return nil, damaged(dir, certFile, err)
	}
	i.pair.Store(keyPair(i.key, leaf))
	return i, nil
}

// loadKeys reads the three PEM files.
func (i *Identity) loadKeys() (leaf *x509.Certificate, err error) {
	text, err := readPart(i.dir, keyFile)
	if err != nil {
		return nil, err
	}
	if i.key, err = parseKeyPEM(text); err != nil {
		return nil, damaged(i.dir, keyFile, err)
	}
	if text, err = readPart(i.dir, caFile); err != nil {
		return nil, err
	}
	if i.ca, err = parseCertPEM(text); err != nil {
		return nil, damaged(i.dir, caFile, err)
	}
	if err := checkCA(i.ca); err != nil {
		return nil, damaged(i.dir, caFile, err)
	}
	if text, err = readPart(i.dir, certFile); err != nil {
		return nil, err
	}
	if leaf, err = parseCertPEM(text); err != nil {
		return nil, damaged(i.dir, certFile, err)
	}
	return leaf, nil
}

func damaged(dir, name string, err error) error {
	return fmt.Errorf("%s: %w: %w", filepath.Join(dir, name), err, ErrDamaged)
}

// readPart reads a file that has to be there.
func readPart(dir, name string) ([]byte, error) {
	text, err := readFile(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damaged(dir, name, errors.New("the file is missing"))
	}
	return text, err
}

func readFile(dir, name string) ([]byte, error) {
	path := filepath.Join(dir, name)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("%w; run decoynet as the user who enrolled this machine", err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(text) > maxFile {
		return nil, damaged(dir, name, fmt.Errorf("it is larger than %d bytes", maxFile))
	}
	return text, nil
}

// Save writes the identity to a data directory, which is made where it is missing
// (mode 0700; the files 0600). Later updates go there. All is written aside before
// anything is replaced, so that a full disk harms no identity that is there; a
// crash in between leaves none rather than half of two.
func (i *Identity) Save(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	if err := checkDir(dir); err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	key, err := keyPEM(i.key)
	if err != nil {
		return fmt.Errorf("encode key: %w", err)
	}
	about, err := i.infoText()
	if err != nil {
		return err
	}
	if err := removeAsides(dir); err != nil {
		return err
	}
	files := []struct {
		name, aside string
		text        []byte
	}{
		{name: keyFile, text: key},
		{name: certFile, text: certPEM(i.pair.Load().Leaf.Raw)},
		{name: caFile, text: certPEM(i.ca.Raw)},
		{name: infoFile, text: about},
	}
	for n := range files {
		f := &files[n]
		if f.aside, err = writeAside(dir, f.name, f.text); err != nil {
			return err
		}
		defer func() { _ = os.Remove(f.aside) }() // where it was not renamed
	}
	if err := os.Remove(filepath.Join(dir, infoFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace identity: %w", err)
	}
	for _, f := range files {
		// What was renamed before must be on the disk before the file that vouches
		// for it, and the old voucher gone before the first of them.
		if f.name == infoFile || f.name == keyFile {
			if err := syncDir(dir); err != nil {
				return fmt.Errorf("replace identity: %w", err)
			}
		}
		if err := os.Rename(f.aside, filepath.Join(dir, f.name)); err != nil {
			return fmt.Errorf("replace identity: %w", err)
		}
	}
	i.dir = dir
	return syncDir(dir)
}

func (i *Identity) infoText() ([]byte, error) {
	text, err := json.MarshalIndent(info{Node: i.node, Controllers: i.controllers, Proxy: i.proxy}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", infoFile, err)
	}
	return append(text, '\n'), nil
}

// saveInfo writes identity.json; the lock is held.
func (i *Identity) saveInfo() error {
	text, err := i.infoText()
	if err != nil {
		return err
	}
	return replaceFile(i.dir, infoFile, text)
}

// replaceFile exchanges a file in one step: after a crash it is the old or the new
// one, whole.
func replaceFile(dir, name string, text []byte) error {
	aside, err := writeAside(dir, name, text)
	if err != nil {
		return err
	}
	if err := os.Rename(aside, filepath.Join(dir, name)); err != nil {
		return fmt.Errorf("replace %s: %w", name, errors.Join(err, os.Remove(aside)))
	}
	return syncDir(dir)
}

const asideEnd = ".new-"

// removeAsides removes what a crash left of an earlier writing: a key may be in it.
func removeAsides(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("look for left files: %w", err)
	}
	for _, e := range entries {
		name, _, ok := strings.Cut(e.Name(), asideEnd)
		if !ok || !slices.Contains([]string{keyFile, certFile, caFile, infoFile}, name) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove left file: %w", err)
		}
	}
	return nil
}

// writeAside writes a new file beside name, for its owner only and safe on the disk.
func writeAside(dir, name string, text []byte) (path string, err error) {
	f, err := os.CreateTemp(dir, name+asideEnd+"*") // mode 0600
	if err != nil {
		return "", fmt.Errorf("write %s: %w", name, err)
	}
	err = makePrivate(f) // before there is anything in it to read
	if err == nil {
		_, err = f.Write(text)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return "", fmt.Errorf("write %s: %w", name, errors.Join(err, os.Remove(f.Name())))
	}
	return f.Name(), nil
}
