package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"decoynet/config"
	"decoynet/deception"
	"decoynet/internal/suricata"
)

func rulesCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "rules",
		Short: "Suricata's rules: check and reload them, list decoynet's, what another Suricata needs",
		Args:  cobra.NoArgs,
	}
	c.AddCommand(rulesReloadCommand(), rulesCheckCommand(), rulesListCommand(), rulesExportCommand(), rulesSettingsCommand())
	return c
}

// inspectOf is what a document asks for; nothing special without one.
func inspectOf(file string) (deception.Inspect, error) {
	if file == "" {
		return deception.Inspect{Suricata: deception.SuricataManaged}, nil
	}
	doc, err := config.Load(file)
	if err != nil {
		return deception.Inspect{}, &exitError{2, err}
	}
	if doc.State.Inspect == nil {
		return deception.Inspect{Suricata: deception.SuricataManaged}, nil
	}
	return *doc.State.Inspect, nil
}

func rulesReloadCommand() *cobra.Command {
	var data, output string
	c := &cobra.Command{
		Use:   "reload",
		Short: "Have the running decoynet read its rules again",
		Long: "Reads the rule files of the document again and has Suricata itself test them. If they are right, they are exchanged while\n" +
			"it runs; if not, those of before stay in use, and each fault is named with its file and line.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			defer during(cmd, func() string { return loadingOf(cmd.Context(), data) })()
			body, err := askPatiently(cmd.Context(), data, http.MethodPost, "/rules/reload")
			if err != nil {
				return err
			}
			var r suricata.Report
			if err := json.Unmarshal(body, &r); err != nil {
				return fmt.Errorf("read decoynet's answer: %w", err)
			}
			out := cmd.OutOrStdout()
			if output == "json" {
				return json.NewEncoder(out).Encode(r)
			}
			printProblems(out, &r)
			word := "will be used at the next start"
			switch {
			case r.Live:
				word = "are in use now"
			case r.Restart:
				word = "are loaded by a Suricata that was started anew, since memory is short for two sets; `decoynet status` says when they are in use"
			}
			fmt.Fprintf(out, "%d rules of %d files %s (%.0f ms)\n", r.Rules, r.Files, word, r.Millis)
			return nil
		},
	}
	dataFlag(c, &data)
	outputFlag(c, &output, "text", "json")
	return c
}

func rulesCheckCommand() *cobra.Command {
	var file, output string
	c := &cobra.Command{
		Use:   "check [-c DOCUMENT] [FILE|DIRECTORY ...]",
		Short: "Have Suricata read rules; every error with file and line. Nothing goes live",
		RunE: func(cmd *cobra.Command, args []string) error {
			want, err := inspectOf(file)
			if err != nil {
				return err
			}
			for _, arg := range args {
				path, err := filepath.Abs(arg)
				if err != nil {
					return fmt.Errorf("find %s: %w", arg, err)
				}
				want.Rules = append(want.Rules, path)
			}
			begin := time.Now()
			done := during(cmd, func() string {
				return fmt.Sprintf("Suricata reads the rules since %v", time.Since(begin).Round(time.Second))
			})
			report, err := suricata.Check(cmd.Context(), "", &want)
			done()
			out := cmd.OutOrStdout()
			if errors.Is(err, suricata.ErrRules) {
				err = &exitError{2, err}
			}
			if output == "json" {
				_ = json.NewEncoder(out).Encode(report)
				return err
			}
			if err == nil {
				printProblems(out, &report)
				fmt.Fprintf(out, "%d rules of %d files can be loaded; Suricata takes %d MB for them\n", report.Rules, report.Files, report.PeakBytes>>20)
			}
			return err
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "the document, whose rules are checked as well")
	outputFlag(c, &output, "text", "json")
	return c
}

// printProblems says what was left out, and what was taken with a reservation.
func printProblems(out io.Writer, r *suricata.Report) {
	for _, p := range r.Problems {
		fmt.Fprintln(out, p.String())
	}
	if r.MoreProblems > 0 {
		fmt.Fprintf(out, "and %d more\n", r.MoreProblems)
	}
	if r.Widened > 0 {
		fmt.Fprintf(out, "%d rules take any address for the opposite of a group, such as !$HOME_NET\n", r.Widened)
	}
}

// progressEvery is how often a person who waits is told what is going on.
const progressEvery = 5 * time.Second

// during tells on standard error what is going on until the returned function is
// called. An empty text says nothing.
func during(cmd *cobra.Command, what func() string) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(progressEvery)
		defer tick.Stop()
		for {
			select {
			case <-quit:
				return
			case <-tick.C:
			}
			if text := what(); text != "" {
				fmt.Fprintln(cmd.ErrOrStderr(), text)
			}
		}
	}()
	return func() { close(quit); <-done }
}

// loadingOf is what the running decoynet does with rules.
func loadingOf(ctx context.Context, data string) string {
	body, err := ask(ctx, data, http.MethodGet, "/status")
	if err != nil {
		return ""
	}
	var s struct {
		Inspect *struct {
			Suricata *struct{ Loading *suricata.Loading }
		}
	}
	if json.Unmarshal(body, &s) != nil || s.Inspect == nil || s.Inspect.Suricata == nil || s.Inspect.Suricata.Loading == nil {
		return ""
	}
	return s.Inspect.Suricata.Loading.String()
}

func rulesListCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "list",
		Short: "decoynet's own rules",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rules, err := suricata.Rules()
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			if output == "json" {
				return json.NewEncoder(out).Encode(rules)
			}
			w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "SID\tSEVERITY\tCLASS\tMESSAGE")
			for _, r := range rules {
				fmt.Fprintf(w, "%d\t%d\t%s\t%s\n", r.SID, r.Severity, r.Class, r.Message)
			}
			return w.Flush()
		},
	}
	outputFlag(c, &output, "text", "json")
	return c
}

func rulesExportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "export DIRECTORY",
		Short: "Write decoynet's rules and their class types, for a Suricata that others run",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			written, err := suricata.Export(args[0])
			for _, path := range written {
				fmt.Fprintln(cmd.OutOrStdout(), path)
			}
			return err
		},
	}
}

func rulesSettingsCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "settings [-c DOCUMENT]",
		Short: "What the configuration of a Suricata that others run needs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			want, err := inspectOf(file)
			if err != nil {
				return err
			}
			fmt.Fprint(cmd.OutOrStdout(), suricata.Settings(&want))
			return nil
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "the document")
	return c
}

// reloadRules has the node's Suricata read its rules again.
func (l *localRoles) reloadRules(ctx context.Context) (any, error) {
	k := l.made.Load()
	if k == nil {
		return nil, errors.New("nothing is analysed on this machine; the document says so with inspect")
	}
	return k.inspect.Reload(ctx)
}
