package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"decoynet/deception"
	"decoynet/internal/ecs"
	"decoynet/internal/store"
)

func sessionCommand() *cobra.Command {
	var a recordAccess
	var output string
	var limit int
	c := &cobra.Command{
		Use:   "session ID",
		Short: "Show one session whole: who, what, how it ended, and in order what was found in it",
		Long: "Show one session whole: who came to which decoy and was led to which service, how much passed, how it ended, and in the order\n" +
			"of time the first bytes of each side and all that Suricata said of it: requests, files, alerts. -o json prints one object with\n" +
			"the documents that `get sessions` and `get findings` print. The beginning of an identifier will do where only one session has it.",
		Args: cobra.ExactArgs(1),
	}
	a.flags(c)
	outputFlag(c, &output, "text", "json")
	c.Flags().IntVar(&limit, "limit", 1000, "the newest so many findings; 0 for all")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := parseSessionName(args[0])
		if err != nil {
			return &exitError{2, err}
		}
		r, err := a.open(true)
		if err != nil {
			return err
		}
		defer r.Close()
		id, err := name.find(cmd.Context(), r)
		if err != nil {
			return err
		}
		whole, err := readSession(cmd.Context(), r, id, limit)
		if err != nil {
			return err
		}
		if output == "json" {
			return whole.WriteJSON(cmd.OutOrStdout())
		}
		return whole.WriteText(cmd.OutOrStdout(), ecs.TableOptions{})
	}
	return c
}

func readSession(ctx context.Context, r record, id deception.SessionID, limit int) (*ecs.WholeSession, error) {
	var whole *ecs.WholeSession
	for s, err := range r.Sessions(ctx, store.Filter{ID: id}) {
		if err != nil {
			return nil, err
		}
		whole = &ecs.WholeSession{Session: s}
	}
	if whole == nil {
		return nil, fmt.Errorf("no session %s", id)
	}
	for f, err := range r.Findings(ctx, store.FindingFilter{Session: id, Limit: limit}) {
		if err != nil {
			return nil, err
		}
		whole.Findings = append(whole.Findings, f)
	}
	return whole, nil
}
