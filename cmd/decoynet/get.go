package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"decoynet/deception"
	"decoynet/internal/ecs"
	"decoynet/internal/store"
)

func getCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "get",
		Short: "List sessions, probes, alerts, findings, events, decoys, services, segments, nodes",
	}
	c.AddCommand(getSessionsCommand(), getProbesCommand(), getAlertsCommand(), getFindingsCommand(), getEventsCommand(), getNodesCommand(), getAuditCommand())
	for _, kind := range []string{"decoys", "services", "segments", "zones"} {
		c.AddCommand(getObjectsCommand(kind))
	}
	return c
}

// sessionFlags are the flags of `get sessions`.
type sessionFlags struct {
	data, store, output, since     string
	watch, running                 bool
	source, segment, decoy, server string
	scanner                        string
	unknown                        bool
	limit                          int
}

func getSessionsCommand() *cobra.Command {
	var f sessionFlags
	c := &cobra.Command{
		Use:   "sessions [ID]",
		Short: "List sessions, newest last",
		Args:  cobra.MaximumNArgs(1),
	}
	dataFlag(c, &f.data)
	storeFlag(c, &f.store)
	outputFlag(c, &f.output, "table", "json", "wide")
	flags := c.Flags()
	flags.StringVar(&f.since, "since", "", "sessions that ran at or after this: a duration back from now (90m, 2h30m, 7d) or a time (2026-01-31T15:04:05Z)")
	flags.BoolVarP(&f.watch, "watch", "w", false, "go on with every session that starts or ends")
	flags.BoolVar(&f.running, "running", false, "only sessions that run now")
	flags.StringVar(&f.source, "source", "", "only this intruder's address, or network")
	flags.StringVar(&f.segment, "segment", "", "only this segment")
	flags.StringVar(&f.decoy, "decoy", "", "only this decoy, by name")
	flags.StringVar(&f.server, "service", "", "only this service")
	scannerFlags(c, &f.scanner, &f.unknown)
	flags.IntVar(&f.limit, "limit", 1000, "the newest so many; 0 for all")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		filter, err := f.filter(time.Now())
		if err != nil {
			return &exitError{2, err}
		}
		var name sessionName
		if len(args) == 1 {
			if name, err = parseSessionName(args[0]); err != nil {
				return &exitError{2, err}
			}
		}
		r, err := openReader(f.data, f.store)
		if err != nil {
			return err
		}
		defer r.Close()
		if len(args) == 1 {
			if filter.ID, err = name.find(cmd.Context(), r); err != nil {
				return err
			}
		}
		return f.list(cmd.Context(), cmd.OutOrStdout(), r, filter)
	}
	return c
}

// storeFlag adds --store.
func storeFlag(c *cobra.Command, at *string) {
	c.Flags().StringVar(at, "store", "", "where sessions are kept: postgres://..., or a file (default: in the data directory)")
}

// openReader opens the record of this machine.
func openReader(data, at string) (*store.Reader, error) {
	r, err := store.OpenReader(storePath(upOptions{data: data, store: at}))
	if errors.Is(err, store.ErrNoStore) {
		if id, _ := identityIfAny(data); id != nil {
			return nil, fmt.Errorf("what node %s sees is recorded at its controller; ask there", id.Node())
		}
	}
	return r, err
}

func (f *sessionFlags) filter(now time.Time) (store.Filter, error) {
	filter := store.Filter{Segment: f.segment, Decoy: f.decoy, Service: f.server, Scanner: f.scanner, Unknown: f.unknown, Limit: f.limit}
	var err error
	if f.running {
		filter.Running = &f.running
	}
	if f.source != "" {
		if filter.Source, err = parseNetwork(f.source); err != nil {
			return filter, err
		}
	}
	if f.since != "" {
		filter.Since, err = parseSince(f.since, now)
	}
	return filter, err
}

func parseNetwork(s string) (netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("bad --source %q; an address or a network, as 192.0.2.66 or 192.0.2.0/24", s)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

// parseSince reads a duration back from now, in which d stands for days, or a
// point in time.
func parseSince(s string, now time.Time) (time.Time, error) {
	text := s
	var days int
	if head, tail, ok := strings.Cut(s, "d"); ok {
		if _, err := fmt.Sscanf(head, "%d", &days); err == nil {
			if text = tail; text == "" {
				text = "0s"
			}
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.AddDate(0, 0, -days).Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("bad --since %q; a duration as 90m or 7d, or a time as 2026-01-31T15:04:05Z", s)
}

// table is a listing that is drawn.
type table[T any] interface {
	Write(*T) error
	Flush() error
}

// lister writes a listing in some format.
type lister[T any] struct {
	w      io.Writer
	write  func(*T) error // as JSON
	table  func(io.Writer, ecs.TableOptions) table[T]
	output string // of the flag --output
	watch  bool   // whoever reads along must not wait
	limit  int    // 0: none
}

// list returns how many things there were. It says so where there may be more.
func (l *lister[T]) list(things iter.Seq2[T, error]) (n int, err error) {
	write, flush := l.write, func() error { return nil }
	if l.output != "json" {
		t := l.table(l.w, ecs.TableOptions{Wide: l.output == "wide"})
		write, flush = t.Write, t.Flush
	}
	for v, err := range things {
		if err != nil {
			return n, errors.Join(flush(), err)
		}
		if err := write(&v); err != nil {
			return n, err
		}
		if n++; l.watch {
			if err := flush(); err != nil {
				return n, err
			}
		}
	}
	if err := flush(); err != nil {
		return n, err
	}
	if l.limit > 0 && n == l.limit && !l.watch && l.output != "json" {
		fmt.Fprintf(l.w, "(the newest %d; --limit 0 for all)\n", n)
	}
	return n, nil
}

func (f *sessionFlags) list(ctx context.Context, w io.Writer, r *store.Reader, filter store.Filter) error {
	out := lister[deception.Session]{
		w: w, output: f.output, watch: f.watch, limit: f.limit, write: ecs.NewJSON(w).Write,
		table: func(w io.Writer, o ecs.TableOptions) table[deception.Session] { return ecs.NewTable(w, o) },
	}
	sessions := r.Sessions(ctx, filter)
	if f.watch {
		sessions = r.Watch(ctx, filter)
	}
	n, err := out.list(sessions)
	if err != nil {
		return err
	}
	if !filter.ID.IsZero() && n == 0 {
		return fmt.Errorf("no session %s", filter.ID)
	}
	return nil
}

// getObjectsCommand lists one kind of object of the running decoynet.
func getObjectsCommand(kind string) *cobra.Command {
	var data, output string
	c := &cobra.Command{
		Use:   kind,
		Short: "List " + kind + " and their state",
		Args:  cobra.NoArgs,
	}
	dataFlag(c, &data)
	outputFlag(c, &output, "table", "json", "wide")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		body, err := ask(cmd.Context(), data, http.MethodGet, "/status")
		if err != nil {
			return err
		}
		var all map[string]json.RawMessage
		var objects []map[string]any
		if err := json.Unmarshal(body, &all); err != nil {
			return fmt.Errorf("read status: %w", err)
		}
		if err := json.Unmarshal(all[kind], &objects); err != nil {
			return fmt.Errorf("read %s: %w", kind, err)
		}
		return printObjects(cmd.OutOrStdout(), kind, output, objects)
	}
	return c
}

// objectColumns are the keys of each kind's table; wide shows those behind the
// bar as well.
var objectColumns = map[string][2][]string{
	"decoys":   {{"name", "segment", "addresses", "count", "ports", "services", "path"}, {}},
	"services": {{"name", "zone", "ports"}, {}},
	"segments": {{"name", "parent", "ready", "steering", "decoys", "addresses", "open_ports"}, {"mac", "problems", "warnings"}},
	"zones":    {{"name", "link", "contained", "denied_packets"}, {"denied_bytes", "problems"}},
}

func printObjects(w io.Writer, kind, output string, objects []map[string]any) error {
	if output == "json" {
		enc := json.NewEncoder(w)
		for _, o := range objects {
			if err := enc.Encode(o); err != nil {
				return fmt.Errorf("write %s: %w", kind, err)
			}
		}
		return nil
	}
	columns := objectColumns[kind][0]
	if output == "wide" {
		columns = append(columns[:len(columns):len(columns)], objectColumns[kind][1]...)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, c := range columns {
		fmt.Fprint(t, strings.ToUpper(strings.ReplaceAll(c, "_", " ")), "\t")
	}
	fmt.Fprintln(t)
	for _, o := range objects {
		for _, c := range columns {
			fmt.Fprint(t, cell(o[c]), "\t")
		}
		fmt.Fprintln(t)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write %s: %w", kind, err)
	}
	return nil
}

// cell writes a value of a status as one word of a table.
func cell(v any) string {
	switch v := v.(type) {
	case nil:
		return "-"
	case []any:
		parts := make([]string, len(v))
		for i, p := range v {
			parts[i] = cell(p)
		}
		return strings.Join(parts, ",")
	case map[string]any: // a port of a service
		word := "down"
		if v["up"] == true {
			word = "up"
		}
		return fmt.Sprintf("%v@%v:%s", v["port"], v["at"], word)
	case float64:
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprint(v)
}
