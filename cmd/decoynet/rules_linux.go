package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/spf13/cobra"

	"decoynet/config"
	"decoynet/deception"
	"decoynet/internal/suricata"
)

func rulesCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "rules",
		Short: "Suricata's rules: check them, have them read again, take decoynet's own elsewhere",
	}
	c.AddCommand(rulesReloadCommand(), rulesCheckCommand(), rulesExportCommand(), rulesSettingsCommand())
	return c
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
			return writeReport(cmd.OutOrStdout(), &r, output)
		},
	}
	dataFlag(c, &data)
	outputFlag(c, &output, "text", "json")
	return c
}

func rulesCheckCommand() *cobra.Command {
	var file, output string
	c := &cobra.Command{
		Use:   "check [-c FILE] [RULES...]",
		Short: "Have Suricata test rules, and change nothing",
		Long: "Tests the rules that a document asks for, and the files and directories that are named, together with decoynet's own.\n" +
			"The exit status is 2 where a rule is wrong.",
		RunE: func(cmd *cobra.Command, args []string) error {
			want := deception.Inspect{Rules: args}
			if file != "" {
				doc, err := config.Load(file)
				if err != nil {
					return &exitError{2, err}
				}
				if i := doc.State.Inspect; i != nil {
					want.Rules = append(want.Rules, i.Rules...)
					want.SystemRules = i.SystemRules
				}
			}
			report, err := suricata.Check(cmd.Context(), "", &want)
			if errors.Is(err, suricata.ErrRules) {
				return &exitError{2, err}
			}
			if err != nil {
				return err
			}
			return writeReport(cmd.OutOrStdout(), &report, output)
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "the document whose rules to test")
	outputFlag(c, &output, "text", "json")
	return c
}

func writeReport(w io.Writer, r *suricata.Report, output string) error {
	if output == "json" {
		return json.NewEncoder(w).Encode(r)
	}
	for _, p := range r.Problems {
		fmt.Fprintln(w, "left out:", p)
	}
	word := "are right"
	if r.Live {
		word = "are in use now"
	}
	_, err := fmt.Fprintf(w, "%d rules of %d files %s (%.0f ms)\n", r.Rules, r.Files, word, r.Millis)
	return err
}

func rulesExportCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "export",
		Short: "Print decoynet's own rules, for a Suricata that others run",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return suricata.Export(cmd.OutOrStdout()) },
	}
}

func rulesSettingsCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "settings -c FILE",
		Short: "Print the settings that a Suricata which others run needs",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			doc, err := config.Load(file)
			if err != nil {
				return &exitError{2, err}
			}
			want := doc.State.Inspect
			if want == nil {
				want = &deception.Inspect{}
			}
			_, err = io.WriteString(cmd.OutOrStdout(), suricata.Settings(want))
			return err
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "the document")
	_ = c.MarkFlagRequired("config") // it was defined above
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
