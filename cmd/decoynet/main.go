// Command decoynet makes a few real services appear at very many addresses and
// keeps the intruder's true address all the way to them. One binary holds all
// roles; each subcommand stands in a file of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker.
var version = "development"

// defaultData is where a machine's state is kept unless --data or the document
// says otherwise.
const defaultData = "/var/lib/decoynet"

// exitError is an error that ends the program with a code of its own.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := rootCommand().ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	code := 1
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
	}
	if message := err.Error(); message != "" {
		fmt.Fprintln(os.Stderr, message)
	}
	os.Exit(code)
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "decoynet",
		Short:         "A deception network: real services at tens of thousands of addresses",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(portableCommands()...)
	root.AddCommand(linuxCommands()...)
	return root
}

func portableCommands() []*cobra.Command {
	return []*cobra.Command{
		checkCommand(), upCommand(), reloadCommand(), statusCommand(), getCommand(), pcapCommand(), sessionCommand(),
		controllerCommand(), joinCommand(), proxyCommand(), doctorCommand(), tokenCommand(), nodeCommand(), applyCommand(), diffCommand(), userCommand(),
	}
}

// dataFlag adds --data.
func dataFlag(c *cobra.Command, data *string) {
	c.Flags().StringVar(data, "data", defaultData, "data directory: sessions, lock, status socket")
}

// outputFlag adds -o with the formats that the command knows.
func outputFlag(c *cobra.Command, output *string, formats ...string) {
	c.Flags().StringVarP(output, "output", "o", formats[0], fmt.Sprintf("output format: %v", formats))
	c.PreRunE = func(*cobra.Command, []string) error {
		for _, f := range formats {
			if *output == f {
				return nil
			}
		}
		return &exitError{2, fmt.Errorf("unknown output format %q; one of %v", *output, formats)}
	}
}

func databasePath(data string) string { return filepath.Join(data, "decoynet.db") }
func socketPath(data string) string   { return filepath.Join(data, "decoynet.sock") }
