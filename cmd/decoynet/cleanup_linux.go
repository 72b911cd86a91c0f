package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"decoynet/agent"
	"decoynet/gateway"
)

func cleanupCommand() *cobra.Command {
	var data, output string
	c := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove every kernel object of decoynet's, also after kill -9",
		Args:  cobra.NoArgs,
	}
	dataFlag(c, &data)
	outputFlag(c, &output, "text", "json")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkCapabilities(); err != nil {
			return err
		}
		lock, err := lockData(data)
		if err != nil {
			return fmt.Errorf("clean up: %w", err)
		}
		defer lock.release()
		removed, err := agent.Cleanup(cmd.Context())
		more, errZones := gateway.Cleanup(cmd.Context())
		removed = append(removed, more...)
		if errSocket := os.Remove(socketPath(data)); errSocket != nil && !errors.Is(errSocket, os.ErrNotExist) {
			errZones = errors.Join(errZones, errSocket)
		}
		out := cmd.OutOrStdout()
		if output == "json" {
			if removed == nil {
				removed = []string{}
			}
			_ = json.NewEncoder(out).Encode(map[string][]string{"removed": removed})
		} else {
			for _, r := range removed {
				fmt.Fprintln(out, "removed", r)
			}
			fmt.Fprintf(out, "%d objects removed\n", len(removed))
		}
		return errors.Join(err, errZones)
	}
	return c
}
