package main

import (
	"io"
	"time"

	"github.com/spf13/cobra"

	"decoynet/deception"
	"decoynet/internal/ecs"
	"decoynet/internal/store"
)

// findingFlags are the flags of `get alerts` and `get findings`.
type findingFlags struct {
	recordAccess
	output, since                         string
	source, segment, decoy, service, node string
	session, kind, scanner                string
	alerts, scanners, unknown, watch      bool
	sid                                   uint32
	severity                              uint8
	limit                                 int
}

func getAlertsCommand() *cobra.Command {
	f := findingFlags{alerts: true}
	c := &cobra.Command{
		Use:   "alerts",
		Short: "List what Suricata's rules say of sessions, newest last",
		Long: "List alerts, newest last: what rules of Suricata say of sessions. What they say of known scanners is no alert, and is\n" +
			"listed only with --scanners.",
	}
	f.add(c)
	flags := c.Flags()
	flags.Uint8Var(&f.severity, "severity", 0, "only this severity or worse; 1 is the worst")
	flags.Uint32Var(&f.sid, "sid", 0, "only this rule, by its signature id")
	flags.BoolVar(&f.scanners, "scanners", false, "also what rules say of known scanners")
	flags.StringVar(&f.scanner, "scanner", "", "only what rules say of this known scanner")
	c.MarkFlagsMutuallyExclusive("scanner", "scanners")
	return c
}

func getFindingsCommand() *cobra.Command {
	var f findingFlags
	c := &cobra.Command{
		Use:   "findings",
		Short: "List all that Suricata says of sessions: alerts, requests, files, ..., newest last",
	}
	f.add(c)
	c.Flags().StringVar(&f.kind, "kind", "", "only this kind, as Suricata names it: alert, http, tls, ssh, smb, dns, fileinfo, anomaly, flow, ...")
	scannerFlags(c, &f.scanner, &f.unknown)
	return c
}

// add adds what both commands have.
func (f *findingFlags) add(c *cobra.Command) {
	f.recordAccess.flags(c)
	outputFlag(c, &f.output, "table", "json", "wide")
	flags := c.Flags()
	flags.StringVar(&f.since, "since", "", "those at or after this: a duration back from now (90m, 2h30m, 7d) or a time (2026-01-31T15:04:05Z)")
	flags.BoolVarP(&f.watch, "watch", "w", false, "go on with every one that comes")
	flags.StringVar(&f.source, "source", "", "only this intruder's address, or network")
	flags.StringVar(&f.segment, "segment", "", "only this segment")
	flags.StringVar(&f.decoy, "decoy", "", "only this decoy, by name")
	flags.StringVar(&f.service, "service", "", "only this service")
	flags.StringVar(&f.node, "node", "", "only what was found by this node")
	flags.StringVar(&f.session, "session", "", "only this session, by its identifier or the beginning of it")
	flags.IntVar(&f.limit, "limit", 1000, "the newest so many; 0 for all")
	c.Args = cobra.NoArgs
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		filter, err := f.filter(time.Now())
		if err != nil {
			return &exitError{2, err}
		}
		var name sessionName
		if f.session != "" {
			if name, err = parseSessionName(f.session); err != nil {
				return &exitError{2, err}
			}
		}
		r, err := f.open(f.output == "json" || !f.alerts) // a table of alerts needs no documents
		if err != nil {
			return err
		}
		defer r.Close()
		if f.session != "" {
			if filter.Session, err = name.find(cmd.Context(), r); err != nil {
				return err
			}
		}
		return f.list(cmd, r, filter)
	}
}

func (f *findingFlags) filter(now time.Time) (store.FindingFilter, error) {
	filter := store.FindingFilter{
		Segment: f.segment, Decoy: f.decoy, Service: f.service, Node: f.node, Kind: f.kind, Alerts: f.alerts, SID: f.sid,
		Severity: f.severity, Scanner: f.scanner, Unknown: f.unknown, Limit: f.limit,
	}
	if f.alerts {
		filter.Unknown = !f.scanners && f.scanner == ""
	}
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

func (f *findingFlags) list(cmd *cobra.Command, r record, filter store.FindingFilter) error {
	w := cmd.OutOrStdout()
	out := lister[deception.Finding]{
		w: w, output: f.output, watch: f.watch, limit: f.limit, write: ecs.NewJSON(w).WriteFinding,
		table: func(w io.Writer, o ecs.TableOptions) table[deception.Finding] {
			if f.alerts {
				return ecs.NewAlertTable(w, o)
			}
			return ecs.NewFindingTable(w, o)
		},
	}
	findings := r.Findings(cmd.Context(), filter)
	if f.watch {
		findings = r.WatchFindings(cmd.Context(), filter)
	}
	_, err := out.list(findings)
	return err
}
