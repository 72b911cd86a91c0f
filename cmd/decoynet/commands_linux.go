package main

import "github.com/spf13/cobra"

func linuxCommands() []*cobra.Command {
	return []*cobra.Command{upCommand(), reloadCommand(), cleanupCommand(), doctorCommand(), demoCommand(), labCommand()}
}
