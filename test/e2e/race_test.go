//go:build linux && race

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
)

// raced has the program under test built with the race detector, too, as the tests
// are, and returns a function that tells whether it found a race.
func raced(dir string) (flags, env []string, found func() bool) {
	log := filepath.Join(dir, "race")
	if err := os.Setenv("GORACE", "log_path="+log); err != nil { // for the program; these tests run already
		fmt.Fprintln(os.Stderr, err)
	}
	return []string{"-race"}, []string{"CGO_ENABLED=1"}, func() bool {
		reports, _ := filepath.Glob(log + ".*") // the pattern is right
		for _, path := range reports {
			text, err := os.ReadFile(path)
			fmt.Fprintf(os.Stderr, "the program under test has a data race (%v):\n%s\n", err, text)
		}
		return len(reports) > 0
	}
}
