// Package verdict asks Suricata about captures and compares what it says.
package verdict

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// configuration is the same for all captures and feeds: every application parser
// that there is, every record, hashes of all files, no record of packets.
//
//go:embed suricata.yaml
var configuration []byte

// Suricata runs Suricata over capture files.
type Suricata struct {
	config string
}

// NewSuricata writes the configuration to the folder.
func NewSuricata(dir string) (*Suricata, error) {
	s := &Suricata{config: filepath.Join(dir, "suricata.yaml")}
	if err := os.WriteFile(s.config, configuration, 0o600); err != nil {
		return nil, fmt.Errorf("write Suricata's configuration: %w", err)
	}
	return s, nil
}

// Read has Suricata read a capture with the rules (none where empty), and returns
// the file with its events. dir is made anew.
func (s *Suricata) Read(ctx context.Context, capture, rules, dir string) (string, error) {
	if err := os.RemoveAll(dir); err != nil {
		return "", fmt.Errorf("empty %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make a folder: %w", err)
	}
	if rules == "" {
		rules = os.DevNull
	}
	cmd := exec.CommandContext(ctx, "suricata", "-c", s.config, "-r", capture, "-S", rules, "-l", dir, "-k", "none", "--runmode", "single")
	// Rules of captures name files beside them.
	cmd.Dir = filepath.Dir(rules)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("read %s with Suricata: %w: %s", capture, err, strings.TrimSpace(said.String()))
	}
	return filepath.Join(dir, "eve.json"), nil
}
