package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"decoynet/internal/lab/labtest"
)

const dryDocument = `
node: gw
segments:
  - {name: office, parent: eth0, subnets: [{prefix: 192.0.2.0/24, gateway: 192.0.2.1}]}
zones:
  - {name: linux, subnet: 10.1.0.0/24, link: br-linux}
services:
  - {name: web, zone: linux, address: 10.1.0.2, ports: [80]}
decoys:
  - {name: office-web, segment: office, addresses: [192.0.2.100-192.0.2.150], bind: [{ports: [80], service: web}]}
`

// A dry run needs no privileges, and whoever has them finds nothing changed.
func TestDryRunChangesNothing(t *testing.T) {
	dir := t.TempDir()
	for at := dir; at != os.TempDir(); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o755); err != nil { // for nobody
			t.Fatal(err)
		}
	}
	program, document, data := filepath.Join(dir, "decoynet"), filepath.Join(dir, "office.yaml"), filepath.Join(dir, "data")
	build := exec.Command("go", "build", "-o", program, ".")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build decoynet: %v\n%s", err, out)
	}
	if err := os.WriteFile(document, []byte(dryDocument), 0o644); err != nil {
		t.Fatal(err)
	}
	l := labtest.New(t)
	m := l.Machine("gw")
	m.Plug(l.Switch("lan"), "eth0", "192.0.2.5/24")
	labtest.Built(t, l)
	before, err := m.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, as := range [][]string{{}, {"setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"}} {
		args := append(as, program, "up", "-c", document, "--data", data, "--dry-run")
		out, err := m.Run(t.Context(), args[0], args[1:]...)
		if err != nil || !strings.Contains(out, "192.0.2.100-192.0.2.150") || !strings.Contains(out, "would claim 51 addresses") {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	after, err := m.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if before != after {
		t.Errorf("the machine was\n%s\nand is\n%s", before, after)
	}
	if _, err := os.Stat(data); err == nil {
		t.Error("a data directory was made")
	}

	// What does not say which document, and what is wrong, ends with code 2.
	if err := os.WriteFile(document, []byte(strings.Replace(dryDocument, "192.0.2.150", "192.0.2.256", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"up", "--dry-run"}, {"up", "--dry-run", "-c", document}, {"up", "--dry-run", "-c", document, "-o", "xml"}} {
		_, err := m.Run(t.Context(), program, args...)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 2 {
			t.Errorf("%v: %v, want code 2", args, err)
		}
	}
}
