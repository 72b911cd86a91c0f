// Package config reads the document: the YAML file in which a security team
// says which segments, zones, services and decoys a machine is to realise.
//
// Reading goes in four steps, each in its own files: the YAML text becomes a
// tree of nodes with positions (tree.go, syntax.go); the tree becomes a draft,
// object by object, so that a broken object hides nothing about its neighbours
// (decode.go, read_*.go); the draft is checked as a whole (check_*.go); and a
// draft without a fault becomes a deception.State (resolve.go). Every fault
// found on the way is reported in one go, as
//
//	FILE:LINE:COLUMN: what is wrong; what would be right
//
// The grammar lives in one table (schema.go); docs/document.md explains it.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"time"

	"decoynet/deception"
)

// Limits of a document. They bound the memory that reading one can take, and
// keep what it asks for within what one machine was measured to carry.
const (
	// MaxSize is the size of the largest document that is read, in bytes.
	MaxSize = 16 << 20
	// MaxDecoyAddresses is the most decoy addresses one document may hold.
	MaxDecoyAddresses = 1 << 20
	// MaxIPv6PerSegment is the most IPv6 decoy addresses of one segment. Each
	// is an address of the segment's interface (the kernel answers neighbour
	// solicitations for nothing less), which does not scale as routes do.
	MaxIPv6PerSegment = 4096
	// MaxHostListeners is the most addresses and ports of one machine that its
	// decoys in the segment host may take; each is a listening socket.
	MaxHostListeners = 4096
)

// Defaults of keys that the document leaves out.
const (
	DefaultIdle      = 30 * time.Minute
	DefaultRetention = 90 * 24 * time.Hour
)

// Document is a valid document, resolved.
type Document struct {
	State   deception.State
	Options Options
}

// Options is what the document says about the machine's own work rather than
// about the network it is to build.
type Options struct {
	Node      string        // name of this machine in every event; by default the only node's, or the host name
	Data      string        // data directory; empty where the document does not name one
	Retention time.Duration // how long sessions are kept
	Heads     bool          // whether the first bytes of each side are kept with a session

	Controller *Controller // nil where the document names none
}

// Controller says where the document's nodes get their part of it.
type Controller struct {
	// Node is the machine inside whose `up` the controller runs: Options.Node in
	// a document of one machine, empty where it runs by itself.
	Node   string
	Listen netip.AddrPort
	// URLs are where nodes and people reach it, best first, as
	// https://hq.example.com:7443. Empty where Listen says enough.
	URLs []string
}

// ErrNotANode is found in the error of Document.Part.
var ErrNotANode = errors.New("this machine is none of the document's nodes")

// Part returns what this machine, which is called Options.Node, has to know of
// the document. It returns an error with ErrNotANode if the document names
// several machines and this is none of them.
func (d *Document) Part() (deception.State, error) {
	nodes := d.State.Nodes
	if len(nodes) > 0 && !slices.Contains(nodes, deception.Node{Name: d.Options.Node}) {
		var names []string
		for _, n := range nodes {
			names = append(names, n.Name)
		}
		return deception.State{}, fmt.Errorf("%w: its name is %s, the nodes are %s; say which one it is, as node: %s at the top of the document",
			ErrNotANode, d.Options.Node, listed(names), cmp.Or(nearest(d.Options.Node, names), names[0]))
	}
	return d.State.Part(d.Options.Node), nil
}

// Load reads the document in the file. Its error is of type Errors; one that
// comes from the file system is found in it by errors.Is.
func Load(path string) (*Document, error) {
	src, err := readFile(path)
	if err != nil {
		return nil, Errors{{File: path, Message: unreadable(err), cause: err}}
	}
	return Parse(path, src)
}

// Parse reads a document from memory; name stands for the file in errors. Its
// error is of type Errors and holds every fault of the document, in the order
// of their positions.
func Parse(name string, src []byte) (*Document, error) {
	r := &report{}
	doc := parse(src, r)
	if errs := r.sorted(name); len(errs) > 0 {
		return nil, errs
	}
	return doc, nil
}

func parse(src []byte, r *report) *Document {
	root := buildTree(src, r)
	if root == nil {
		return nil
	}
	d := readDocument(root, r)
	check(d, r)
	if r.failed() {
		return nil
	}
	return d.resolve()
}

// readFile reads one byte more than MaxSize at most, so that a device or an
// endless pipe cannot fill the memory; Parse refuses what is too long.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, MaxSize+1))
}

func unreadable(err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "there is no such file; name the document to read"
	case errors.Is(err, fs.ErrPermission):
		return "no permission to read the file; make it readable for this user"
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	return fmt.Sprintf("cannot be read (%v); name a readable YAML file", err)
}
