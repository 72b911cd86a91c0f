package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"text/tabwriter"

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
			body, err := ask(cmd.Context(), data, http.MethodPost, "/rules/reload")
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
			for _, p := range r.Problems {
				fmt.Fprintln(out, p.String())
			}
			word := "will be used at the next start"
			if r.Live {
				word = "are in use now"
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
			report, err := suricata.Check(cmd.Context(), "", &want)
			out := cmd.OutOrStdout()
			if errors.Is(err, suricata.ErrRules) {
				err = &exitError{2, err}
			}
			if output == "json" {
				_ = json.NewEncoder(out).Encode(report)
				return err
			}
			for _, p := range report.Problems {
				if p.Ignored {
					fmt.Fprintln(out, p.String())
				}
			}
			if err == nil {
				fmt.Fprintf(out, "%d rules of %d files can be loaded\n", report.Rules, report.Files)
			}
			return err
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "the document, whose rules are checked as well")
	outputFlag(c, &output, "text", "json")
	return c
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
