// Package script turns captures into scripts that can be played again over real
// sockets: who opened which flow, what each side sent in which pieces, and how it
// ended, in the order of the capture.
package script

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"decoynet/deception"
)

// The sides of a flow.
const (
	Client = 0
	Server = 1
)

// Flow is one TCP connection, or what two UDP sockets sent each other.
type Flow struct {
	Client, Server netip.AddrPort
	Transport      deception.Transport
	// Why says what keeps the flow from being played; its steps are left out then.
	Why string
}

// Kind says what happens in a step.
type Kind int

// The kinds of steps. Every flow begins with Open; nothing of it follows a Reset.
const (
	Open  Kind = iota // the client connects
	Data              // a piece of the side's stream, or a datagram
	Fin               // the side has nothing more to say
	Reset             // the side aborts
)

// Step is something that one side of a flow does.
type Step struct {
	Flow int // index in Capture.Flows
	Side int
	Kind Kind
	Data []byte
	At   time.Time // in the capture
}

// Capture is a capture file as a script.
type Capture struct {
	Name  string // of its folder
	Path  string
	Rules string   // file of the rules that were written for it; empty: none
	Hash  [32]byte // of the file: captures of one hash are the same
	Flows []Flow
	Steps []Step
	// Foreign counts packets that are part of no TCP or UDP flow.
	Foreign int
}

// Playable tells whether any flow of the capture can be played.
func (c *Capture) Playable() bool {
	return slices.ContainsFunc(c.Flows, func(f Flow) bool { return f.Why == "" })
}

// Folder reads every folder below dir that has a capture, sorted by name. The
// errors of captures that cannot be read are returned by name; they hide no other.
func Folder(dir string) (captures []*Capture, failed map[string]error, err error) {
	failed = map[string]error{}
	err = filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ext := filepath.Ext(path); entry.IsDir() || ext != ".pcap" && ext != ".pcapng" {
			return nil
		}
		name := filepath.Base(filepath.Dir(path))
		c, err := Read(path)
		if err != nil {
			failed[name] = err
			return nil
		}
		c.Name = name
		rules := filepath.Join(filepath.Dir(path), "test.rules")
		if _, err := os.Stat(rules); err == nil {
			c.Rules = rules
		}
		captures = append(captures, c)
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read captures: %w", err)
	}
	slices.SortFunc(captures, func(a, b *Capture) int { return compare(a, b) })
	return captures, failed, nil
}

func compare(a, b *Capture) int {
	if a.Name != b.Name {
		if a.Name < b.Name {
			return -1
		}
		return 1
	}
	if a.Path < b.Path {
		return -1
	}
	return 1
}

// Read reads one capture.
func Read(path string) (*Capture, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the capture: %w", err)
	}
	c := &Capture{Name: filepath.Base(path), Path: path, Hash: sha256.Sum256(text)}
	r := reader{capture: c, flows: map[tuple]*conversation{}}
	err = Packets(text, func(p Packet) error {
		r.packet(p)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	r.finish()
	return c, nil
}
