package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"decoynet/internal/outbound"
	"decoynet/internal/rpc"
)

func joinCommand() *cobra.Command {
	cfg := rpc.EnrolConfig{Version: version}
	c := &cobra.Command{
		Use:   "join URL --token T --pin sha256:...",
		Short: "Make this machine a node of the controller at URL",
		Long: "Make this machine a node. `decoynet token create --node NAME` on the controller prints the whole command.\n" +
			"Afterwards `decoynet up` needs no document.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg.URL = args[0]
			if cfg.Proxy == "" {
				cfg.Proxy = outbound.FromEnvironment(cfg.URL)
			}
			identity, err := rpc.Enrol(cmd.Context(), cfg)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "this machine is node %s now; start it with `decoynet up%s`\n", identity.Node(), dataArgument(cfg.Dir))
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.Token, "token", "", "join token, works once")
	f.StringVar(&cfg.Pin, "pin", "", "fingerprint of the controller's CA, as sha256:...")
	f.StringVar(&cfg.Proxy, "proxy", "", "HTTP proxy on the way to controller and gateways, as http://user:password@proxy:3128 (or HTTPS_PROXY)")
	_ = c.MarkFlagRequired("token")
	_ = c.MarkFlagRequired("pin")
	dataFlag(c, &cfg.Dir)
	return c
}

func dataArgument(data string) string {
	if data == defaultData {
		return ""
	}
	return " --data " + data
}
