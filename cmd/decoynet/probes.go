package main

import (
	"io"
	"time"

	"github.com/spf13/cobra"

	"decoynet/deception"
	"decoynet/internal/ecs"
	"decoynet/internal/store"
)

// probeFlags are the flags of `get probes`.
type probeFlags struct {
	data, store, output, since string
	source, segment, node      string
	scanner                    string
	unknown, watch             bool
	limit                      int
}

func getProbesCommand() *cobra.Command {
	var f probeFlags
	c := &cobra.Command{
		Use:   "probes",
		Short: "List contacts that reached no service: sweeps and scans, newest last",
		Long: "List contacts that reached no service, newest last: ARP and NDP requests, pings, SYNs and datagrams to ports that are not\n" +
			"bound, taken together by source and segment. A probe that goes on is listed with what it has done so far.",
		Args: cobra.NoArgs,
	}
	dataFlag(c, &f.data)
	storeFlag(c, &f.store)
	outputFlag(c, &f.output, "table", "json", "wide")
	flags := c.Flags()
	flags.StringVar(&f.since, "since", "", "probes with a contact at or after this: a duration back from now (90m, 2h30m, 7d) or a time (2026-01-31T15:04:05Z)")
	flags.BoolVarP(&f.watch, "watch", "w", false, "go on with every probe that comes, grows or ends")
	flags.StringVar(&f.source, "source", "", "only from this address, or network")
	flags.StringVar(&f.segment, "segment", "", "only in this segment")
	flags.StringVar(&f.node, "node", "", "only sensed by this node")
	scannerFlags(c, &f.scanner, &f.unknown)
	flags.IntVar(&f.limit, "limit", 1000, "the newest so many; 0 for all")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		filter, err := f.filter(time.Now())
		if err != nil {
			return &exitError{2, err}
		}
		r, err := openReader(f.data, f.store)
		if err != nil {
			return err
		}
		defer r.Close()
		w := cmd.OutOrStdout()
		out := lister[deception.Probe]{
			w: w, output: f.output, watch: f.watch, limit: f.limit, write: ecs.NewJSON(w).WriteProbe,
			table: func(w io.Writer, o ecs.TableOptions) table[deception.Probe] { return ecs.NewProbeTable(w, o) },
		}
		probes := r.Probes(cmd.Context(), filter)
		if f.watch {
			probes = r.WatchProbes(cmd.Context(), filter)
		}
		_, err = out.list(probes)
		return err
	}
	return c
}

// scannerFlags adds --scanner and --unknown.
func scannerFlags(c *cobra.Command, scanner *string, unknown *bool) {
	c.Flags().StringVar(scanner, "scanner", "", "only what this known scanner did")
	c.Flags().BoolVar(unknown, "unknown", false, "without what known scanners did")
	c.MarkFlagsMutuallyExclusive("scanner", "unknown")
}

func (f *probeFlags) filter(now time.Time) (store.ProbeFilter, error) {
	filter := store.ProbeFilter{Segment: f.segment, Node: f.node, Scanner: f.scanner, Unknown: f.unknown, Limit: f.limit}
	var err error
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
