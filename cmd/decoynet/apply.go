package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"decoynet/config"
	"decoynet/internal/rpc/decoynetv1"
)

func applyCommand() *cobra.Command {
	var a access
	var file, output, expect string
	c := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Make a document the desired state of every node (by the controller)",
		Long: "Make a document the desired state of every node. `decoynet diff -f FILE` shows before what would change;\n" +
			"`decoynet get nodes` shows afterwards who has it.",
		Args: cobra.NoArgs,
	}
	c.Flags().StringVarP(&file, "file", "f", "", "the document")
	c.Flags().StringVar(&expect, "expect-revision", "", "refuse if somebody has applied another revision than this one meanwhile")
	_ = c.MarkFlagRequired("file")
	a.flags(c)
	outputFlag(c, &output, "text", "json")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		document, err := readDocument(file)
		if err != nil {
			return err
		}
		client, err := a.client()
		if err != nil {
			return err
		}
		answer, err := client.Apply(cmd.Context(), connect.NewRequest(&decoynetv1.ApplyRequest{Document: document, Name: file, ExpectRevision: expect}))
		if err != nil {
			return refusal(err)
		}
		return printChanges(cmd.OutOrStdout(), output, answer.Msg.GetRevision(), answer.Msg.GetChanges(), "applied revision ")
	}
	return c
}

func diffCommand() *cobra.Command {
	var a access
	var file, output string
	c := &cobra.Command{
		Use:   "diff -f FILE",
		Short: "What a document would change, per node (by the controller)",
		Args:  cobra.NoArgs,
	}
	c.Flags().StringVarP(&file, "file", "f", "", "the document")
	_ = c.MarkFlagRequired("file")
	a.flags(c)
	outputFlag(c, &output, "text", "json")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		document, err := readDocument(file)
		if err != nil {
			return err
		}
		client, err := a.client()
		if err != nil {
			return err
		}
		answer, err := client.Diff(cmd.Context(), connect.NewRequest(&decoynetv1.DiffRequest{Document: document, Name: file}))
		if err != nil {
			return refusal(err)
		}
		return printChanges(cmd.OutOrStdout(), output, answer.Msg.GetRevision(), answer.Msg.GetChanges(), "compared with revision ")
	}
	return c
}

// readDocument reads the file and checks it, so that faults are found without
// asking anybody.
func readDocument(file string) ([]byte, error) {
	document, err := os.ReadFile(file)
	if err != nil {
		return nil, &exitError{2, fmt.Errorf("read the document: %w", err)}
	}
	if _, err := config.Parse(file, document); err != nil {
		return nil, &exitError{2, err}
	}
	return document, nil
}

func printChanges(w io.Writer, output, revision string, changes []*decoynetv1.Change, headline string) error {
	if output == "json" {
		type change struct {
			Node string `json:"node"`
			Text string `json:"text"`
		}
		out := struct {
			Revision string   `json:"revision"`
			Changes  []change `json:"changes"`
		}{Revision: revision, Changes: []change{}}
		for _, c := range changes {
			out.Changes = append(out.Changes, change{c.GetNode(), c.GetText()})
		}
		return json.NewEncoder(w).Encode(out)
	}
	node := ""
	for _, c := range changes {
		if c.GetNode() != node {
			node = c.GetNode()
			fmt.Fprintf(w, "node %s\n", node)
		}
		fmt.Fprintf(w, "  %s\n", c.GetText())
	}
	if len(changes) == 0 {
		fmt.Fprintln(w, "no changes")
	}
	if revision == "" {
		revision = "none"
	}
	_, err := fmt.Fprintf(w, "%s%s\n", headline, revision)
	return err
}
