package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"decoynet/internal/demo"
	"decoynet/internal/lab"
)

// interrupted is the status that shells give a program ended by ^C.
const interrupted = 128 + int(unix.SIGINT)

func demoCommand() *cobra.Command {
	var o demo.Options
	var output string
	c := &cobra.Command{
		Use:   "demo",
		Short: "The whole job on this machine: two networks, decoys, attacks, and what the servers saw",
		Long: "Builds an office network of namespaces on this machine, and a branch office behind NAT; runs decoynet on the\n" +
			"office's gateway, enrols the branch's business server with it, attacks the decoys of both with everyday tools,\n" +
			"and compares what every server logged, and what Suricata detected, with what the intruders really did.\n" +
			"Ends with status 1 if any of them saw a wrong address or anything failed. Nothing is left behind.",
		Args: cobra.NoArgs,
	}
	outputFlag(c, &output, "text", "json")
	c.Flags().BoolVar(&o.Keep, "keep", false, "keep the network up afterwards, until Ctrl-C")
	c.Flags().StringVar(&o.Name, "name", "", "name of the lab (default: "+demo.LabName+" with --keep, else one that is free)")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		var err error
		if o.Binary, err = os.Executable(); err != nil {
			return fmt.Errorf("find own program: %w", err)
		}
		o.Out = cmd.OutOrStdout()
		if output == "json" {
			o.Out = cmd.ErrOrStderr()
		}
		o.Colour = isTerminal(o.Out)
		if o.Keep && o.Name == "" {
			o.Name = demo.LabName
		}
		summary, err := demo.Run(cmd.Context(), o)
		if output == "json" {
			encoder := json.NewEncoder(cmd.OutOrStdout())
			encoder.SetIndent("", "  ")
			err = errors.Join(err, encoder.Encode(summary))
		}
		if errors.Is(err, lab.ErrExists) {
			err = fmt.Errorf("%w; end it (`decoynet lab down --name %s`) or name another (--name)", err, o.Name)
		}
		if summary.Interrupted && errors.Is(err, context.Canceled) {
			return &exitError{interrupted, errors.New("")}
		}
		return err
	}
	return c
}

// isTerminal tells whether a person with a colour terminal reads what is
// written; see no-color.org for the variable.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
