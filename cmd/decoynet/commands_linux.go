package main

import "github.com/spf13/cobra"

func linuxCommands() []*cobra.Command {
	return []*cobra.Command{cleanupCommand(), demoCommand(), labCommand(), rulesCommand()}
}
