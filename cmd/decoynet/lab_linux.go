package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"decoynet/config"
	"decoynet/internal/demo"
	"decoynet/internal/lab"
)

func labCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "lab",
		Short: "The demo's network, to play in with your own tools",
		Long: "`decoynet lab up` keeps the demo's network up, with decoynet running in it, until Ctrl-C; meanwhile\n" +
			"`decoynet lab exec MACHINE -- COMMAND` runs your own tools in any of its machines.",
	}
	c.AddCommand(labUpCommand(), labExecCommand(), labListCommand(), labDownCommand())
	return c
}

func labUpCommand() *cobra.Command {
	var name, document string
	c := &cobra.Command{
		Use:   "up",
		Short: "Build the network and keep it up until Ctrl-C",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if document != "" {
				if _, err := config.Load(document); err != nil {
					return &exitError{2, err}
				}
			}
			return labUp(cmd, name, document)
		},
	}
	c.Flags().StringVar(&name, "name", demo.LabName, "name of the lab; several can be up")
	c.Flags().StringVarP(&document, "config", "c", "", "the document that decoynet runs by on gw (default: the demo's own)")
	return c
}

func labUp(cmd *cobra.Command, name, document string) error {
	ctx, out := cmd.Context(), cmd.OutOrStdout()
	binary, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own program: %w", err)
	}
	stage, err := demo.NewStage(ctx, demo.StageConfig{
		Name: name, Binary: binary, Document: document,
		Progress: func(text string) { fmt.Fprintln(out, text) },
	})
	if errors.Is(err, lab.ErrExists) {
		return fmt.Errorf("a lab named %q is up already; use it (`decoynet lab exec`), end it (`decoynet lab down`) or name another (--name)", name)
	}
	if err != nil {
		return quiet(ctx, err)
	}
	if err := stage.Up(ctx); err != nil {
		return errors.Join(quiet(ctx, err), stage.Close())
	}
	analysis := stage.Analysis(ctx)
	picture, err := stage.Picture(ctx)
	if err != nil {
		return errors.Join(quiet(ctx, err), stage.Close())
	}
	fmt.Fprintf(out, "decoynet is up on gw\n%s\n\n%s\n%s\nUp until Ctrl-C (or `decoynet lab down`).\n", analysis, picture, stage.Usage())
	select {
	case <-ctx.Done():
		fmt.Fprintln(out, "\ntaking the network down")
	case <-stage.Done():
		err = fmt.Errorf("decoynet has ended on gw; it said:\n%s", stage.Log())
	}
	return errors.Join(err, stage.Close())
}

// quiet is the error, or a silent end where Ctrl-C was its cause.
func quiet(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return &exitError{interrupted, errors.New("")}
	}
	return err
}

func labExecCommand() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:   "exec MACHINE -- COMMAND...",
		Short: "Run a command in a machine of the lab",
		Long: "Runs a command in a machine of the lab, with this terminal, and ends with its exit status.\n" +
			"Machines of the office: intruder, production, gw, linux, and lan (the switch, to watch the wire);\n" +
			"of the branch office: b-intruder, crm, b-router, and branch (its switch).",
		Example: "  decoynet lab exec intruder -- nmap -sV 192.0.2.21-30\n" +
			"  decoynet lab exec gw -- decoynet get alerts --watch",
		Args: cobra.MinimumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			return labExec(name, args[0], args[1:])
		},
	}
	// `exec gw ls -l` works as well as `exec gw -- ls -l`.
	c.Flags().SetInterspersed(false)
	c.Flags().StringVar(&name, "name", "", "name of the lab (default: "+demo.LabName+", or the only one that is up)")
	return c
}

// labExec turns this process into the command, so that terminal, signals and
// exit status are the command's own.
func labExec(name, machine string, argv []string) error {
	if argv[0] == "--" { // behind the machine, where flags are not parsed any more
		argv = argv[1:]
	}
	if len(argv) == 0 {
		return &exitError{2, errors.New("no command to run; as in `decoynet lab exec intruder -- nmap 192.0.2.21`")}
	}
	l, err := attach(name)
	if err != nil {
		return err
	}
	defer l.Close()
	m, ok := l.Lookup(machine)
	if !ok {
		var names []string
		for _, m := range l.Machines() {
			names = append(names, m.Name())
		}
		return &exitError{2, fmt.Errorf("no machine %q in lab %s; one of %s", machine, l.Name(), strings.Join(names, ", "))}
	}
	cmd := m.Command(context.Background(), argv[0], argv[1:]...)
	if cmd.Err != nil {
		return cmd.Err
	}
	path, err := exec.LookPath(cmd.Path)
	if err != nil {
		return fmt.Errorf("enter the machine: %w", err)
	}
	if err := syscall.Exec(path, cmd.Args, demo.CommandEnv(cmd.Env)); err != nil {
		return fmt.Errorf("run %s in %s: %w", argv[0], machine, err)
	}
	return nil // not reached
}

// attach opens a lab that is up.
func attach(name string) (*lab.Lab, error) {
	if name == "" {
		var err error
		if name, err = theLab(); err != nil {
			return nil, err
		}
	}
	l, err := lab.Attach(name)
	if errors.Is(err, lab.ErrNotFound) {
		return nil, fmt.Errorf("no lab named %q is up; start one with `decoynet lab up` or `decoynet demo --keep`", name)
	}
	return l, err
}

// theLab chooses the lab that is meant where none is named.
func theLab() (string, error) {
	labs, err := lab.List()
	if err != nil {
		return "", err
	}
	var names []string
	for _, l := range labs {
		if l.Name == demo.LabName {
			return l.Name, nil
		}
		names = append(names, l.Name)
	}
	switch len(names) {
	case 0:
		return demo.LabName, nil
	case 1:
		return names[0], nil
	}
	return "", &exitError{2, fmt.Errorf("several labs are up; name one with --name: %s", strings.Join(names, ", "))}
}

func labListCommand() *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "list",
		Short: "List the labs that are up",
		Args:  cobra.NoArgs,
	}
	outputFlag(c, &output, "table", "json")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		labs, err := lab.List()
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if output == "json" {
			encoder := json.NewEncoder(out)
			for _, l := range labs {
				err = errors.Join(err, encoder.Encode(map[string]any{
					"name": l.Name, "owner": l.Owner, "dir": l.Dir, "machines": l.Machines,
				}))
			}
			return err
		}
		t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "NAME\tPROCESS\tMACHINES\tLOGS")
		for _, l := range labs {
			fmt.Fprintf(t, "%s\t%d\t%s\t%s\n", l.Name, l.Owner, strings.Join(l.Machines, " "), l.Dir)
		}
		return t.Flush()
	}
	return c
}

// downGrace is how long the owner of a lab may take to end it in order.
const downGrace = 30 * time.Second

func labDownCommand() *cobra.Command {
	var name string
	c := &cobra.Command{
		Use:   "down",
		Short: "Take a lab down, whoever keeps it up",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if name == "" {
				var err error
				if name, err = theLab(); err != nil {
					return err
				}
			}
			err := lab.Remove(cmd.Context(), name, downGrace)
			if errors.Is(err, lab.ErrNotFound) {
				return fmt.Errorf("no lab named %q is up", name)
			}
			return err
		},
	}
	c.Flags().StringVar(&name, "name", "", "name of the lab (default: "+demo.LabName+", or the only one that is up)")
	return c
}
