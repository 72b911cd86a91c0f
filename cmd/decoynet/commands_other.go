//go:build !linux

package main

import "github.com/spf13/cobra"

// linuxCommands are those that need a Linux kernel's segments and zones.
func linuxCommands() []*cobra.Command { return nil }
