// Package suricatatest runs Suricata for tests, set up little more than it comes: what is
// proved by it is proved of anybody's.
package suricatatest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

const config = `%%YAML 1.1
---
vars:
  address-groups: {HOME_NET: "any", EXTERNAL_NET: "any"}
  port-groups: {HTTP_PORTS: "80", SSH_PORTS: "22"}
default-log-dir: %s
outputs:
  - eve-log:
      enabled: yes
      filetype: regular
      filename: eve.json
      ethernet: yes
      community-id: true
      types:
        - alert
        - anomaly: {types: {decode: yes, stream: yes, applayer: yes}}
        - http: {extended: yes}
        - files: {force-hash: [sha256]}
        - dns: {version: 2}
        - ssh
        - ftp
        - flow
defrag: {memcap: 32mb, hash-size: 65536, trackers: 65535, max-frags: 65535, prealloc: yes, timeout: 60}
stream: {memcap: 256mb, checksum-validation: yes, reassembly: {memcap: 256mb, depth: 1mb}}
app-layer:
  protocols:
    http: {enabled: yes, libhtp: {default-config: {personality: IDS, request-body-limit: 100kb, response-body-limit: 100kb}}}
    ssh: {enabled: yes}
    ftp: {enabled: yes}
    tls: {enabled: yes}
    smtp: {enabled: yes}
    dns: {tcp: {enabled: yes}, udp: {enabled: yes, detection-ports: {dp: 53}}}
vlan: {use-for-tracking: true}
flow-timeouts:
  default: {new: 30, established: 300, closed: 0}
  tcp: {new: 60, established: 600, closed: 60}
  udp: {new: 30, established: 300}
classification-file: /etc/suricata/classification.config
reference-config-file: /etc/suricata/reference.config
`

// patience is how long Suricata may take to read a file.
const patience = time.Minute

// Suricata is one that reads files or a FIFO, and keeps what it finds in a directory
// of its own.
type Suricata struct {
	dir      string
	settings []string
}

// New sets one up with rules, and with settings in place of those that all have, as
// Suricata takes them at its command line: stream.reassembly.depth=0.
func New(t testing.TB, rules string, settings ...string) *Suricata {
	t.Helper()
	s := &Suricata{dir: t.TempDir()}
	for name, text := range map[string]string{"suricata.yaml": fmt.Sprintf(config, s.dir), "rules": rules} {
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range settings {
		s.settings = append(s.settings, "--set", v)
	}
	return s
}

// Command is what has it read a pcap file, or a FIFO of that form, to its end.
func (s *Suricata) Command(ctx context.Context, file string) *exec.Cmd {
	args := []string{
		"-c", filepath.Join(s.dir, "suricata.yaml"), "-S", filepath.Join(s.dir, "rules"), "-l", s.dir,
		"--pidfile", filepath.Join(s.dir, "pid"), "--runmode", "single", "-r", file,
	}
	return exec.CommandContext(ctx, "suricata", append(args, s.settings...)...)
}

// Read has it read a file, and returns its events.
func (s *Suricata) Read(t testing.TB, file string) [][]byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if out, err := s.Command(ctx, file).CombinedOutput(); err != nil {
		t.Fatalf("suricata: %v\n%s", err, out)
	}
	return s.Events(t)
}

// Events returns the events that it has written so far, each a JSON object.
func (s *Suricata) Events(t testing.TB) [][]byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, "eve.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var out [][]byte
	for line := range bytes.Lines(b) {
		if whole, ok := bytes.CutSuffix(line, []byte{'\n'}); ok { // the last one may be half written
			out = append(out, whole)
		}
	}
	return out
}
