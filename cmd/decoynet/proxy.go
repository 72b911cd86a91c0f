package main

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"decoynet/internal/outbound"
	"decoynet/internal/pki"
)

func proxyCommand() *cobra.Command {
	var data string
	c := &cobra.Command{
		Use:   "proxy URL|none",
		Short: "Set the HTTP proxy by which this node reaches controllers and gateways",
		Long: "Set the HTTP proxy by which this node reaches its controllers and gateways, as `decoynet join --proxy` does at first:\n" +
			"http://[user:password@]host:port, https:// where the proxy itself is reached by TLS, or none. It takes effect when\n" +
			"decoynet is started again.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			proxy := args[0]
			if proxy == "none" {
				proxy = ""
			} else if proxy == "" {
				return &exitError{2, errors.New("the proxy is empty; a URL as http://proxy.example.com:3128, or none")}
			}
			if _, err := outbound.New(proxy); err != nil {
				return &exitError{2, err}
			}
			identity, err := pki.LoadIdentity(data)
			if err != nil {
				return err
			}
			// Root may do this for the agent's user, who must be able to read it then.
			keep := ownerOf(filepath.Join(data, "identity.json"))
			if err := identity.SetProxy(proxy); err != nil {
				return err
			}
			if err := keep(); err != nil {
				return fmt.Errorf("give the file back to its owner: %w", err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "set; start decoynet again for it to take effect (`decoynet doctor%s` says whether it leads there)\n", dataArgument(data))
			return nil
		},
	}
	dataFlag(c, &data)
	return c
}
