package store

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"decoynet/deception"
)

// silentProbe is after how long without news a probe that has no end is taken as
// over: who told of it has died. Should more be told after all, that counts.
const silentProbe = time.Hour

// newerProbe tells whether one telling of a probe is newer than another: numbers
// only grow, and the end comes last. Tellings may come twice and in any order.
func newerProbe(p, than *deception.Probe) bool {
	return cmp.Or(
		cmp.Compare(p.Count(), than.Count()),
		cmp.Compare(bit(!p.End.IsZero()), bit(!than.End.IsZero())),
		p.Last.Compare(than.Last),
	) > 0
}

func cleanProbe(p *deception.Probe) {
	p.Node, p.Segment = clean(p.Node, maxName), clean(p.Segment, maxName)
	p.SourceMAC, p.Scanner = clean(p.SourceMAC, maxName), clean(p.Scanner, maxName)
	p.Source = p.Source.WithZone("")
	if p.Last.IsZero() {
		p.Last = p.Start
	}
	// Sums of them stay numbers that databases can hold.
	for _, n := range []*uint64{&p.Sources, &p.Addresses, &p.Ports} {
		*n = min(*n, maxCount)
	}
	for i := range p.Contacts {
		p.Contacts[i] = min(p.Contacts[i], maxCount)
	}
}

const maxCount = 1 << 60

// probes writes what is new of them. A row that changes is written anew, so that
// it gets the next number and followers find it.
func (w *writer) probes(told map[deception.SessionID]*deception.Probe) error {
	if len(told) == 0 {
		return nil
	}
	ids := slices.SortedFunc(maps.Keys(told), func(a, b deception.SessionID) int { return bytes.Compare(a[:], b[:]) })
	for part := range slices.Chunk(ids, manyIDs) {
		var a arguments
		have := make(map[deception.SessionID]deception.Probe, len(part))
		err := w.conn.query(selectProbe+"WHERE id IN ("+a.keys(w.back, padded(part))+")", a.values, func(values []any) error {
			row := rowReader{values: values}
			p := parseProbe(&row)
			have[p.ID] = p
			return row.err
		})
		if err != nil {
			return err
		}
		for _, id := range part {
			old, known := have[id]
			if known && !newerProbe(told[id], &old) {
				continue
			}
			if err := w.writeProbe(told[id], known); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *writer) writeProbe(p *deception.Probe, known bool) error {
	if known {
		if _, err := w.conn.exec("DELETE FROM probe WHERE id = $1", w.back.key(p.ID)); err != nil {
			return err
		}
	}
	var source any
	if p.Source.IsValid() {
		source = p.Source.String()
	}
	first, firstPort := endpointColumns(p.First)
	latest, latestPort := endpointColumns(p.Latest)
	_, err := w.conn.exec(`INSERT INTO probe (id, start, finish, last, node, segment, source, source_mac, sources, kind,
			arp, ping, syn, datagram, addresses, ports, approximate, first, first_port, latest, latest_port, scanner)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)`,
		w.back.key(p.ID), nanos(p.Start), orNull(!p.End.IsZero(), nanos(p.End)), nanos(p.Last), p.Node, p.Segment,
		source, p.SourceMAC, int64(p.Sources), p.Kind.String(),
		int64(p.Contacts[deception.ContactARP]), int64(p.Contacts[deception.ContactPing]),
		int64(p.Contacts[deception.ContactSYN]), int64(p.Contacts[deception.ContactDatagram]),
		int64(p.Addresses), int64(p.Ports), int64(bit(p.Approximate)), first, firstPort, latest, latestPort, p.Scanner)
	return err
}

// endSilentProbes ends what no recorder ends any more.
func (w *writer) endSilentProbes(now time.Time) error {
	return w.transact(false, func() error {
		_, err := w.conn.exec("UPDATE probe SET finish = last WHERE finish IS NULL AND last < $1", now.Add(-silentProbe).UnixNano())
		return err
	})
}

const selectProbe = `SELECT id, start, finish, last, node, segment, source, source_mac, sources, kind,
	arp, ping, syn, datagram, addresses, ports, approximate, first, first_port, latest, latest_port, scanner, seq
	FROM probe `

// parseProbe takes the columns of selectProbe but the last.
func parseProbe(row *rowReader) (p deception.Probe) {
	p.ID, p.Start, p.End, p.Last = row.id(), row.time(), row.time(), row.time()
	p.Node, p.Segment = row.text(), row.text()
	p.Source, p.SourceMAC, p.Sources = row.addr(), row.text(), uint64(row.number())
	p.Kind, _ = deception.ParseScanKind(row.text()) // of a newer program: a contact at least
	for i := range p.Contacts {
		p.Contacts[i] = uint64(row.number())
	}
	p.Addresses, p.Ports, p.Approximate = uint64(row.number()), uint64(row.number()), row.number() != 0
	p.First, p.Latest, p.Scanner = row.addrPort(), row.addrPort(), row.text()
	return p
}

// ProbeFilter chooses probes. Zero fields choose all.
type ProbeFilter struct {
	Since         time.Time    // probes with a contact at or after it
	Source        netip.Prefix // where they come from; those of many sources are not among them
	Node, Segment string
	Scanner       string // probes of this known scanner
	Unknown       bool   // probes of nobody who is known
	// Limit is the greatest number of probes: the newest ones or, with After, the
	// oldest behind it.
	Limit int
	// After chooses probes that sort behind the identifier, which is the way to
	// read on where a listing stopped.
	After deception.SessionID
}

// where writes the filter's conditions, without those on the identifier.
func (f *ProbeFilter) where(a *arguments) string {
	parts := []string{"TRUE"}
	if !f.Since.IsZero() {
		parts = append(parts, "last >= "+a.add(f.Since.UnixNano()))
	}
	for _, c := range []struct{ column, value string }{{"node", f.Node}, {"segment", f.Segment}, {"scanner", f.Scanner}} {
		if c.value != "" {
			parts = append(parts, c.column+" = "+a.add(c.value))
		}
	}
	if f.Unknown {
		parts = append(parts, "scanner = ''")
	}
	if f.Source.IsSingleIP() {
		parts = append(parts, "source = "+a.add(f.Source.Addr().String()))
	}
	return strings.Join(parts, " AND ")
}

func (r *Reader) probeListing(f ProbeFilter) *listing[deception.Probe] {
	l := &listing[deception.Probe]{
		r: r, table: "probe", query: selectProbe,
		where: f.where, limit: f.Limit, after: f.After,
		parse: parseProbe,
		id:    func(p *deception.Probe) deception.SessionID { return p.ID },
	}
	if f.Source.IsValid() && !f.Source.IsSingleIP() {
		l.keep = func(p *deception.Probe) bool { return f.Source.Contains(p.Source) }
	}
	return l
}

// Probes yields what the filter chooses, in the order in which the probes began by
// the clocks of their nodes, newest last. After an error it ends.
func (r *Reader) Probes(ctx context.Context, f ProbeFilter) iter.Seq2[deception.Probe, error] {
	return func(yield func(deception.Probe, error) bool) {
		err := r.probeListing(f).until(ctx, lastSeq, func(p deception.Probe) bool { return yield(p, nil) })
		if err != nil && !errors.Is(err, errStop) {
			yield(deception.Probe{}, fmt.Errorf("read probes: %w", err))
		}
	}
}

// WatchProbes yields what Probes does and goes on, until ctx is done, with every
// probe that comes, and again when it has grown or ended. Limit holds for the first
// part only.
func (r *Reader) WatchProbes(ctx context.Context, f ProbeFilter) iter.Seq2[deception.Probe, error] {
	return func(yield func(deception.Probe, error) bool) {
		err := r.probeListing(f).watch(ctx, func(p deception.Probe) bool { return yield(p, nil) })
		if err != nil && !errors.Is(err, errStop) && ctx.Err() == nil {
			yield(deception.Probe{}, fmt.Errorf("watch probes: %w", err))
		}
	}
}

// addr is an address, as text.
func (r *rowReader) addr() (a netip.Addr) {
	text := r.text()
	if text == "" {
		return a
	}
	a, err := netip.ParseAddr(text)
	if err != nil {
		r.fail(text)
	}
	return a
}
