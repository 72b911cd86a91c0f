//go:build linux

// Package e2e runs the real binary in networks of namespaces, with real clients
// and servers. What is proved is proved from outside: by a client's success, by
// the server's own log, by ip, nft, ss and tcpdump.
package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"
)

// binary is the program under test, built once.
var binary string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "decoynet-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "decoynet")
	build := exec.Command("go", "build", "-o", binary, "decoynet/cmd/decoynet")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build decoynet: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// office is the demo's network with decoynet running on its gateway.
type office struct {
	t *testing.T
	lab.Topology
	data, file string
	process    *lab.Process
}

// newOffice builds the network; decoynet does not run yet.
func newOffice(t *testing.T) *office {
	t.Helper()
	l, top, err := lab.Office(t.Context(), "", nil)
	check(t, err)
	t.Cleanup(func() { check(t, l.Close()) })
	dir := t.TempDir()
	return &office{t: t, Topology: top, data: filepath.Join(dir, "data"), file: filepath.Join(dir, "decoynet.yaml")}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// document writes the document that decoynet runs by.
func (o *office) document(text string) {
	o.t.Helper()
	check(o.t, os.WriteFile(o.file, []byte(text), 0o600))
}

// up starts decoynet and waits until it says that it is ready.
func (o *office) up() {
	o.t.Helper()
	o.start()
	o.waitReady(10 * time.Second)
}

func (o *office) start() {
	o.t.Helper()
	var err error
	o.process, err = o.Gateway.Start(binary, "up", "-c", o.file, "--data", o.data, "-v")
	check(o.t, err)
	o.t.Cleanup(func() {
		if o.t.Failed() {
			o.t.Logf("decoynet said:\n%s", o.process.Log())
		}
	})
}

func (o *office) waitReady(d time.Duration) {
	o.t.Helper()
	eventually(o.t, d, func() error {
		st, err := o.status()
		if err != nil {
			return err
		}
		if !st.Ready {
			return fmt.Errorf("not ready: %v", st.Problems)
		}
		return nil
	})
}

// down ends decoynet as systemd would.
func (o *office) down() {
	o.t.Helper()
	ctx, cancel := context.WithTimeout(o.t.Context(), 30*time.Second)
	defer cancel()
	check(o.t, o.process.Stop(ctx))
}

// decoynet runs a subcommand on the gateway.
func (o *office) decoynet(args ...string) (string, error) {
	return o.Gateway.Run(o.t.Context(), binary, append(args, "--data", o.data)...)
}

type nodeStatus struct {
	Ready    bool
	Revision string
	Problems []string
	Segments []struct {
		Name, Steering, MAC string
		OpenPorts           int `json:"open_ports"`
	}
	Zones []struct {
		Name          string
		Contained     bool
		DeniedPackets int `json:"denied_packets"`
	}
	Relay struct {
		Flows      int
		Accepted   int
		MovedPorts int `json:"moved_ports"`
	}
	Recording struct {
		Queued, Written, Lost int
		FailingSince          string `json:"failing_since"`
	}
}

func (o *office) status() (nodeStatus, error) {
	var st nodeStatus
	out, err := o.decoynet("status", "-o", "json")
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal([]byte(out), &st)
}

// sessions lists the recorded sessions, as documents.
func (o *office) sessions(args ...string) []map[string]any {
	o.t.Helper()
	out, err := o.decoynet(append([]string{"get", "sessions", "-o", "json"}, args...)...)
	check(o.t, err)
	var list []map[string]any
	for line := range strings.Lines(out) {
		var doc map[string]any
		check(o.t, json.Unmarshal([]byte(line), &doc))
		list = append(list, doc)
	}
	return list
}

func eventually(t *testing.T, d time.Duration, fn func() error) {
	t.Helper()
	if err := lab.Eventually(t.Context(), d, fn); err != nil {
		t.Fatal(err)
	}
}
