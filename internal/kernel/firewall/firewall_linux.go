package firewall

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/nft"
)

// TableName is the name of our tables: of family inet, and of family arp in a
// segment's namespace.
const TableName = "decoynet"

// LogGroup is the nflog group that packets denied to a zone are sampled to. A
// packet's prefix is "decoynet zone=NAME ".
const LogGroup = 5142

const (
	// MarkTag in the upper half of a packet or connection mark says that the
	// mark is ours; the lower half is the segment's index.
	MarkTag uint32 = 0x0dec0000
	// MarkMask selects the tag.
	MarkMask uint32 = 0xffff0000
	// MarkSelf on a socket (SO_MARK) says that the gateway opened it for itself:
	// UDP answers to such a socket are let out of a zone. No segment has its
	// index, so no routing rule matches it.
	MarkSelf uint32 = MarkTag | 0xffff
)

// ErrInvalid is wrapped by the errors about a desired state that cannot be
// written as rules; the kernel was not touched.
var ErrInvalid = errors.New("invalid firewall state")

// Namespace is the network namespace that rules are written in.
type Namespace interface {
	FD() int
	Do(func() error) error
	Name() string
}

// Status says what an Apply found and did.
type Status struct {
	// Changed is false where the kernel already held the desired state.
	Changed bool
	// Added and Deleted count rules, set elements and named objects.
	Added, Deleted int
}

func (s Status) plus(o Status) Status {
	return Status{Changed: s.Changed || o.Changed, Added: s.Added + o.Added, Deleted: s.Deleted + o.Deleted}
}

// Counter is how much a rule has seen since it was made.
type Counter struct {
	Packets, Bytes uint64
}

// Table names a table of ours.
type Table struct {
	Family, Name string
}

// families are those that tables of ours may be of.
var families = []struct {
	name   string
	number nftables.TableFamily
}{{"inet", nftables.TableFamilyINet}, {"arp", nftables.TableFamilyARP}}

// Owned lists the tables of ours that the namespace holds: TableName and, of
// other parts of decoynet, those whose names begin with it and a hyphen.
func Owned(ns Namespace) ([]Table, error) {
	conn, err := open(ns)
	if err != nil {
		return nil, err
	}
	var out []Table
	for _, family := range families {
		tables, err := conn.ListTablesOfFamily(family.number)
		if err != nil {
			return nil, wrap("list tables", ns, err)
		}
		for _, t := range tables {
			if t.Name == TableName || strings.HasPrefix(t.Name, TableName+"-") {
				out = append(out, Table{Family: family.name, Name: t.Name})
			}
		}
	}
	return out, nil
}

// Remove deletes the tables that Owned lists, with all they hold, and nothing
// else. It is no error if there is none.
func Remove(ns Namespace) error {
	state := lock(ns)
	defer state.unlock()
	tables, err := Owned(ns)
	if err != nil || len(tables) == 0 {
		return err
	}
	conn, err := open(ns)
	if err != nil {
		return err
	}
	var errs []error
	for _, t := range tables {
		conn.DelTable(t.kernelTable())
		if err := conn.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, wrap("delete table "+t.Name, ns, err))
		}
	}
	return errors.Join(errs...)
}

// Scopes: the first word of the names of the objects that one Apply owns.
const (
	zoneScope       = "zone"
	segmentScope    = "segment"
	kernelPathScope = "kernel-path"
	guardScope      = "guard"
	limitScope      = "limit"
)

// Denied returns, for each zone, what its services tried to send and were
// not allowed to.
func Denied(ctx context.Context, ns Namespace) (map[string]Counter, error) {
	return counters(ctx, ns, zoneScope+"-")
}

// DeniedSegments returns, for each segment's host-side link, what came out of the
// segment's namespace towards anything but a declared service.
func DeniedSegments(ctx context.Context, ns Namespace) (map[string]Counter, error) {
	return counters(ctx, ns, segmentScope+"-")
}

func (t Table) kernelTable() *nftables.Table {
	out := &nftables.Table{Name: t.Name}
	for _, f := range families {
		if f.name == t.Family {
			out.Family = f.number
		}
	}
	return out
}

func open(ns Namespace) (*nftables.Conn, error) {
	conn, err := nft.Open(ns.FD())
	return conn, wrap("reach nftables", ns, err)
}

func tableExists(conn *nftables.Conn, family nftables.TableFamily) (bool, error) {
	tables, err := conn.ListTablesOfFamily(family)
	if err != nil {
		return false, err
	}
	for _, t := range tables {
		if t.Name == TableName {
			return true, nil
		}
	}
	return false, nil
}

func wrap(what string, ns Namespace, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s in namespace %s: %w", what, ns.Name(), err)
}
