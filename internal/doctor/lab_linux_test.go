package doctor_test

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
	"sync"
	"testing"
	"time"

	"decoynet/internal/doctor"
	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
)

// programs is a directory with the program under test in it, called decoynet, so
// that a printed command finds it.
var programs string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "decoynet-doctor-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programs = dir
	labtest.SideBySide(4)
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// build makes the program under test, once, for the tests that run it.
var build = sync.OnceValue(func() error {
	cmd := exec.Command("go", "build", "-o", filepath.Join(programs, "decoynet"), "decoynet/cmd/decoynet")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build decoynet: %w\n%s", err, out)
	}
	return nil
})

// patient is the office, with a document for its gateway.
type patient struct {
	t *testing.T
	lab.Topology
	lab        *lab.Lab
	data, file string
	process    *lab.Process
}

// office describes the office network; %s stands for more of the service web
// and of the decoy.
const office = `
node: gw
segments:
  - name: office
    parent: eth0
    subnets:
      - {prefix: 192.0.2.0/24, gateway: 192.0.2.10}
      - {prefix: "2001:db8:2::/64", gateway: "2001:db8:2::10"}
zones:
  - {name: linux, subnet: [10.1.0.0/24, "fd00:1::/64"], link: br-linux}
services:
  - {name: web, zone: linux, address: [10.1.0.2, "fd00:1::2"], ports: [80, 443]%s}
  - {name: redis, zone: linux, address: 10.1.0.3, ports: [6379]}
  - {name: snmp, zone: linux, address: 10.1.0.5, ports: [161/udp]}
decoys:
  - name: office-web
    segment: office
    addresses: [192.0.2.100-192.0.2.150, "2001:db8:2::100-2001:db8:2::10f"]
    bind:
      - {ports: [80, 443], service: web}
    path: %s
  - name: office-redis
    segment: office
    addresses: [192.0.2.200]
    bind: 
      - {ports: [6379], service: redis}
      - {ports: [161/udp], service: snmp}
`

var (
	relayed = fmt.Sprintf(office, "", "relay")
	kernel  = fmt.Sprintf(office, "", "kernel")
)

func newPatient(t *testing.T, document string) *patient {
	t.Helper()
	if err := build(); err != nil {
		t.Fatal(err)
	}
	l, top := labtest.Office(t)
	dir := t.TempDir()
	p := &patient{t: t, Topology: top, lab: l, data: filepath.Join(dir, "data"), file: filepath.Join(dir, "decoynet.yaml")}
	p.document(document)
	return p
}

func (p *patient) document(text string) {
	p.t.Helper()
	if err := os.WriteFile(p.file, []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// up starts decoynet on the gateway and waits until it is ready.
func (p *patient) up() {
	p.t.Helper()
	var err error
	if p.process, err = p.Gateway.Start(filepath.Join(programs, "decoynet"), "up", "-c", p.file, "--data", p.data); err != nil {
		p.t.Fatal(err)
	}
	err = lab.Eventually(p.t.Context(), 15*time.Second, func() error {
		out, err := p.try(p.Gateway, "decoynet status -o json")
		if err != nil {
			return err
		}
		var st struct{ Ready bool }
		if err := json.Unmarshal([]byte(out), &st); err != nil || !st.Ready {
			return fmt.Errorf("not ready: %w", err)
		}
		return nil
	})
	if err != nil {
		p.t.Fatalf("decoynet does not come up: %v\n%s", err, p.process.Log())
	}
}

// try runs a shell command on a machine, as a person would that reads it in the
// doctor's report.
func (p *patient) try(m *lab.Machine, command string) (string, error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), 60*time.Second)
	defer cancel()
	for _, sub := range []string{"status", "doctor", "cleanup", "reload", "get sessions"} {
		command = strings.ReplaceAll(command, "decoynet "+sub, "decoynet "+sub+" --data "+p.data)
	}
	return m.Run(ctx, "sh", "-c", "PATH="+programs+":$PATH; "+command)
}

func (p *patient) run(m *lab.Machine, command string) string {
	p.t.Helper()
	out, err := p.try(m, command)
	if err != nil {
		p.t.Fatalf("%s: %s: %v", m, command, err)
	}
	return out
}

// findings runs the doctor on the gateway, before is run in the same shell.
func (p *patient) findings(before string, args ...string) []doctor.Finding {
	p.t.Helper()
	began := time.Now()
	out, err := p.try(p.Gateway, before+" decoynet doctor -o json "+strings.Join(args, " "))
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		p.t.Fatal(err)
	}
	var list []doctor.Finding
	for line := range strings.Lines(out) {
		var f doctor.Finding
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			p.t.Fatalf("%v in %q", err, line)
		}
		list = append(list, f)
	}
	if len(list) == 0 {
		p.t.Fatalf("the doctor said nothing: %v", err)
	}
	if want := doctor.Problems(list) > 0; want != (err != nil) {
		p.t.Errorf("the doctor ended with %v and %d problems", err, doctor.Problems(list))
	}
	p.t.Logf("the doctor took %s", time.Since(began).Round(10*time.Millisecond))
	return list
}

// find returns the finding of a check about a subject that asks for something,
// or nil. An empty subject stands for any.
func find(list []doctor.Finding, check, subject string) *doctor.Finding {
	for i, f := range slices.Backward(list) { // the worst
		if f.Check == check && (subject == "" || f.Subject == subject) && f.Severity != doctor.OK {
			return &list[i]
		}
	}
	return nil
}

// must is find for what has to be there, with that severity.
func (p *patient) must(list []doctor.Finding, severity doctor.Severity, check, subject string) doctor.Finding {
	p.t.Helper()
	f := find(list, check, subject)
	if f == nil || f.Severity != severity {
		p.t.Fatalf("no %s of check %q about %q in:\n%s", severity, check, subject, text(list))
	}
	p.t.Logf("%s: %s\n\tfix (%s): %s", f.Severity, f.What, f.On, f.Fix)
	return *f
}

// gone fails where the finding is still there.
func (p *patient) gone(list []doctor.Finding, check, subject string) {
	p.t.Helper()
	if f := find(list, check, subject); f != nil {
		p.t.Errorf("after its fix, still: %s: %s", f.Severity, f.What)
	}
}

// healthy fails where there is any problem.
func (p *patient) healthy(list []doctor.Finding) {
	p.t.Helper()
	if doctor.Problems(list) > 0 {
		p.t.Errorf("problems:\n%s", text(list))
	}
}

func text(list []doctor.Finding) string {
	var b strings.Builder
	if err := doctor.WriteText(&b, list); err != nil {
		return err.Error()
	}
	return b.String()
}
