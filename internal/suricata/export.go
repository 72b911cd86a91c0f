package suricata

import (
	"fmt"
	"io"
	"io/fs"
)

// Export writes decoynet's own rules, for a Suricata that others run.
func Export(w io.Writer) error {
	names, err := fs.Glob(ownRules, "rules/*.rules")
	if err != nil {
		return fmt.Errorf("list decoynet's rules: %w", err)
	}
	for _, name := range names {
		text, err := ownRules.ReadFile(name)
		if err != nil {
			return fmt.Errorf("read decoynet's rules: %w", err)
		}
		if _, err := w.Write(text); err != nil {
			return fmt.Errorf("write rules: %w", err)
		}
	}
	return nil
}
