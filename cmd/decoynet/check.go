package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"decoynet/config"
)

func checkCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "check -c FILE",
		Short: "Validate a document; every error with its line and what would be right",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			doc, err := config.Load(file)
			if err != nil {
				return &exitError{2, err}
			}
			s := &doc.State
			fmt.Fprintf(cmd.OutOrStdout(), "%s: valid: %d segments, %d zones, %d services, %d decoys with %d addresses\n",
				file, len(s.Segments), len(s.Zones), len(s.Services), len(s.Decoys), countAddresses(s))
			for i := range s.Scanners {
				if k := &s.Scanners[i]; !k.KnownAt(time.Now()) {
					fmt.Fprintf(cmd.OutOrStdout(), "%s: note: the time of scanner %q is over since %s, it is a stranger now; set another until, or drop it\n",
						file, k.Name, k.Until.Format(time.RFC3339))
				}
			}
			return nil
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "the document")
	_ = c.MarkFlagRequired("config")
	return c
}
