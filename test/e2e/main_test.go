//go:build linux

// Package e2e runs the real binary in networks of namespaces, with real clients
// and servers. What is proved is proved from outside: by a client's success, by
// the server's own log, by ip, nft, ss and tcpdump.
package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
	"decoynet/internal/lab/vm"
	"decoynet/internal/pgtest"
)

// binary is the program under test, built once.
var binary string

// guestBinary is where it is in a virtual machine.
const guestBinary = "/usr/bin/decoynet"

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if vm.Inside() {
		binary = guestBinary
		return checked(m)
	}
	labtest.SideBySide(4)
	dir, err := os.MkdirTemp("", "decoynet-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "decoynet")
	flags, env, found := raced(dir)
	build := exec.Command("go", slices.Concat([]string{"build"}, flags, []string{"-o", binary, "decoynet/cmd/decoynet"})...)
	build.Env = append(os.Environ(), env...)
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build decoynet: %v\n%s", err, out)
		return 1
	}
	code := checked(m)
	if found() {
		return 1
	}
	return code
}

// checked runs the tests and fails the run where they leave something.
func checked(m *testing.M) int {
	before, err := hostMarks()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := pgtest.Main(m).Run()
	if err := leftovers(before); err != nil {
		fmt.Fprintln(os.Stderr, "after the tests:", err)
		code = max(code, 1)
	}
	return code
}

// hostMarks lists what carries decoynet's mark on the machine that runs the
// tests, which is none of the lab's: whatever turns up here went astray.
func hostMarks() (string, error) {
	const script = `ip -o link show | grep "alias decoynet"
ip -4 rule show | grep "proto 142"
ip -6 rule show | grep "proto 142"
ip -4 route show table all proto 142
ip -6 route show table all proto 142
ls /run/netns 2>/dev/null | grep ^decoynet-
nft list tables | grep -w "decoynet"
true`
	out, err := exec.Command("sh", "-c", script).Output()
	if err != nil {
		return "", fmt.Errorf("look for decoynet's objects on this machine: %w", err)
	}
	return string(out), nil
}

// leftovers says what the tests left on this machine or in this process.
func leftovers(before string) error {
	var errs []error
	if now, err := hostMarks(); err != nil || now != before {
		errs = append(errs, err, fmt.Errorf("objects of decoynet on this machine:\n%s\nbefore:\n%s", now, before))
	}
	labs, err := lab.List()
	errs = append(errs, err)
	for _, l := range labs {
		if l.Owner == os.Getpid() {
			errs = append(errs, fmt.Errorf("lab %s is still up", l.Name))
		}
	}
	if err := goleak.Find(); err != nil {
		errs = append(errs, fmt.Errorf("goroutines are left: %w", err))
	}
	return errors.Join(errs...)
}

// office is the demo's network with decoynet running on its gateway.
type office struct {
	t *testing.T
	lab.Topology
	data, file string
	since      time.Time // when this test began
	*daemon
}

// daemon is the decoynet that runs in an office; views of one office share it.
type daemon struct {
	process *lab.Process
}

// newOffice builds the network; decoynet does not run yet.
func newOffice(t *testing.T) *office {
	t.Helper()
	_, top := labtest.Office(t)
	dir := t.TempDir()
	return &office{
		t: t, Topology: top, since: time.Now(), daemon: &daemon{},
		data: filepath.Join(dir, "data"), file: filepath.Join(dir, "decoynet.yaml"),
	}
}

// in returns the office as a subtest sees it: failures are the subtest's.
func (o *office) in(t *testing.T) *office {
	view := *o
	view.t, view.since = t, time.Now()
	return &view
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
		Ready               bool
		Problems            []string
		Addresses           int
		OpenPorts           int `json:"open_ports"`
	}
	Zones []struct {
		Name          string
		Contained     bool
		DeniedPackets int `json:"denied_packets"`
	}
	Services []struct {
		Name  string
		Ports []struct{ Up bool }
	}
	Listen struct {
		Ports []struct {
			Port    string
			Open    bool
			Problem string
		}
	}
	Relay struct {
		Flows      int
		Accepted   int
		MovedPorts int `json:"moved_ports"`
	}
	Recording struct {
		Queued, Written, Lost int
		Waiting               int
		LostStarts            int    `json:"lost_starts"`
		FailingSince          string `json:"failing_since"`
		LastError             string `json:"last_error"`
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
	if vm.Inside() {
		d *= 5 // it is slow
	}
	if err := lab.Eventually(t.Context(), d, fn); err != nil {
		t.Fatal(err)
	}
}
