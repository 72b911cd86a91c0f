package main

import (
	"context"
	"io"
	"time"

	"github.com/spf13/cobra"

	"decoynet/deception"
	"decoynet/internal/ecs"
	"decoynet/internal/store"
)

// eventFlags are the flags of `get events`.
type eventFlags struct {
	data, store, output, since string
	node, kind                 string
	watch                      bool
	limit                      int
}

func getEventsCommand() *cobra.Command {
	var f eventFlags
	c := &cobra.Command{
		Use:   "events",
		Short: "List what happened to the deception network itself, newest last",
		Long: "List what happened to the deception network itself, newest last: peers that were refused, ports in use, gateways lost,\n" +
			"nodes that joined or went, documents that were applied. On a controller's machine these are the events of all nodes.",
		Args: cobra.NoArgs,
	}
	dataFlag(c, &f.data)
	storeFlag(c, &f.store)
	outputFlag(c, &f.output, "table", "json", "wide")
	flags := c.Flags()
	flags.StringVar(&f.since, "since", "", "events at or after this: a duration back from now (90m, 2h30m, 7d) or a time (2026-01-31T15:04:05Z)")
	flags.BoolVarP(&f.watch, "watch", "w", false, "go on with every event that comes")
	flags.StringVar(&f.node, "node", "", "only events of this node")
	flags.StringVar(&f.kind, "kind", "", "only this kind, as peer-refused or port-in-use")
	flags.IntVar(&f.limit, "limit", 1000, "the newest so many; 0 for all")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		filter := store.EventFilter{Node: f.node, Kind: deception.EventKind(f.kind), Limit: f.limit}
		if f.since != "" {
			var err error
			if filter.Since, err = parseSince(f.since, time.Now()); err != nil {
				return &exitError{2, err}
			}
		}
		r, err := openReader(f.data, f.store)
		if err != nil {
			return err
		}
		defer r.Close()
		return f.list(cmd.Context(), cmd.OutOrStdout(), r, filter)
	}
	return c
}

func (f *eventFlags) list(ctx context.Context, w io.Writer, r *store.Reader, filter store.EventFilter) error {
	out := lister[deception.Event]{
		w: w, output: f.output, watch: f.watch, limit: f.limit, write: ecs.NewJSON(w).WriteEvent,
		table: func(w io.Writer, o ecs.TableOptions) table[deception.Event] { return ecs.NewEventTable(w, o) },
	}
	events := r.Events(ctx, filter)
	if f.watch {
		events = r.WatchEvents(ctx, filter)
	}
	_, err := out.list(events)
	return err
}
