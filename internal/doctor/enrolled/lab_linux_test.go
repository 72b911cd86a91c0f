package enrolled_test

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

	"decoynet/internal/doctor"
	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
)

// programs is a directory with the program under test in it, called decoynet.
var programs string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "decoynet-enrolled-")
	if err == nil {
		err = os.Chmod(dir, 0o755) // the agent's user runs it
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	programs = dir
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "decoynet"), "decoynet/cmd/decoynet")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build decoynet: %v\n%s", err, out)
		os.RemoveAll(dir)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(dir)
		os.Exit(code)
	}))
}

const document = `
node: hq
controller: {node: hq, listen: 0.0.0.0:7443, urls: ["https://192.0.2.5:7443"]}
nodes: [{name: hq}, {name: crm-1}]
gateways:
  - {name: gw1, node: hq, listen: 0.0.0.0:7444, addresses: ["192.0.2.5:7444"]}
zones:
  - {name: linux, node: hq, subnet: 10.1.0.0/24, link: br-linux}
services:
  - {name: web, zone: linux, address: 10.1.0.2, ports: [80]}
  - {name: redis, zone: linux, address: 10.1.0.3, ports: [6379]}
decoys:
  - name: crm
    segment: host
    node: crm-1
    addresses: [any]
    bind:
      - {ports: [80], service: web}
      - {ports: [6379], service: redis}
`

// patient is a branch's business server that is a node of the office's controller.
type patient struct {
	t *testing.T
	lab.Topology
	lab.Branch
	hqData, data string
	binary       string // the agent's own copy of the program
	agent, proxy *lab.Process
}

const (
	nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --ambient-caps=-all --bounding-set=-all,+net_bind_service -- "
	// agentUser may open ports below 1024, and nothing else that a user may not.
	agentUser = "setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all,+net_bind_service --ambient-caps=-all,+net_bind_service --bounding-set=-all,+net_bind_service -- "
)

func newPatient(t *testing.T) *patient {
	t.Helper()
	l, top := labtest.Office(t)
	branch, err := top.AddBranch(t.Context(), l)
	check(t, err)
	dir := t.TempDir()
	for at := dir; at != os.TempDir() && at != "/"; at = filepath.Dir(at) {
		check(t, os.Chmod(at, 0o755))
	}
	p := &patient{t: t, Topology: top, Branch: branch, hqData: filepath.Join(dir, "hq"), data: filepath.Join(dir, "agent"), binary: filepath.Join(dir, "decoynet")}
	// By a program of its own: a descriptor of ours that is open for writing would be
	// in whatever is being started for other tests, and the kernel starts no program
	// that somebody may write to (ETXTBSY).
	check(t, exec.Command("cp", "-p", filepath.Join(programs, "decoynet"), p.binary).Run())
	file := filepath.Join(dir, "decoynet.yaml")
	check(t, os.WriteFile(file, []byte(document), 0o600))
	hq, err := p.Gateway.Start(p.binary, "up", "-c", file, "--data", p.hqData)
	check(t, err)
	p.eventually("the office's decoynet is ready", func() error { return ready(p.try(p.Gateway, p.binary+" status -o json --data "+p.hqData)) }, hq)
	check(t, os.MkdirAll(p.data, 0o700))
	check(t, os.Chown(p.data, 65534, 65534))
	out := p.run(p.Gateway, p.binary+" token create --node crm-1 -o json --data "+p.hqData)
	var token struct{ Command string }
	check(t, json.Unmarshal([]byte(out), &token))
	p.run(p.Server, agentUser+filepath.Dir(p.binary)+"/"+token.Command+" --data "+p.data)
	return p
}

func ready(out string, err error) error {
	if err != nil {
		return err
	}
	var st struct {
		Ready    bool
		Problems []string
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil || !st.Ready {
		return fmt.Errorf("not ready: %v, %w", st.Problems, err)
	}
	return nil
}

// up starts the agent and waits until it is ready.
func (p *patient) up() {
	p.t.Helper()
	p.start()
	p.eventually("the agent is ready", func() error { return ready(p.try(p.Server, p.binary+" status -o json --data "+p.data)) }, p.agent)
}

func (p *patient) start() {
	p.t.Helper()
	words := strings.Fields(agentUser + p.binary + " up --data " + p.data)
	var err error
	p.agent, err = p.Server.Start(words[0], words[1:]...)
	check(p.t, err)
}

func (p *patient) eventually(what string, ok func() error, of *lab.Process) {
	p.t.Helper()
	if err := lab.Eventually(p.t.Context(), 30*time.Second, ok); err != nil {
		log := ""
		if of != nil {
			log = of.Log()
		}
		p.t.Fatalf("%s: not in time: %v\n%s", what, err, log)
	}
}

func (p *patient) try(m *lab.Machine, command string) (string, error) {
	ctx, cancel := context.WithTimeout(p.t.Context(), 60*time.Second)
	defer cancel()
	return m.Run(ctx, "sh", "-c", "PATH="+filepath.Dir(p.binary)+":$PATH; "+command)
}

func (p *patient) run(m *lab.Machine, command string) string {
	p.t.Helper()
	out, err := p.try(m, command)
	if err != nil {
		p.t.Fatalf("%s: %s: %v", m, command, err)
	}
	return out
}

// findings runs the doctor on the branch's server as that user.
func (p *patient) findings(as, environment string) []doctor.Finding {
	p.t.Helper()
	out, err := p.try(p.Server, environment+" "+as+p.binary+" doctor -o json --data "+p.data)
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
	if want := doctor.Problems(list) > 0; len(list) == 0 || want != (err != nil) {
		p.t.Fatalf("the doctor ended with %v and %d findings, %d problems", err, len(list), doctor.Problems(list))
	}
	return list
}

// find returns the finding of a check that asks for something, the worst, or nil.
func find(list []doctor.Finding, check string) *doctor.Finding {
	for i, f := range slices.Backward(list) {
		if f.Check == check && f.Severity != doctor.OK {
			return &list[i]
		}
	}
	return nil
}

// must wants a problem of that check with these words in it.
func must(t *testing.T, list []doctor.Finding, check, what, fix string) doctor.Finding {
	t.Helper()
	f := find(list, check)
	if f == nil || f.Severity != doctor.Problem {
		t.Fatalf("no problem of check %q in:\n%s", check, text(list))
	}
	if !strings.Contains(f.What, what) || !strings.Contains(f.Fix, fix) || f.Fix == "" {
		t.Errorf("found %q, fix %q; want %q, fix %q", f.What, f.Fix, what, fix)
	}
	t.Logf("%s: %s\n\tfix (%s): %s", f.Subject, f.What, f.On, f.Fix)
	return *f
}

// gone fails where the check still finds something.
func gone(t *testing.T, list []doctor.Finding, check string) {
	t.Helper()
	if f := find(list, check); f != nil {
		t.Errorf("check %s still says: %s", check, f.What)
	}
}

// healthyAtLast waits for an agent that has just come up: it may still be calling
// its controller.
func (p *patient) healthyAtLast() {
	p.t.Helper()
	p.eventually("healthy", func() error {
		if list := p.findings(agentUser, ""); doctor.Problems(list) > 0 {
			return fmt.Errorf("problems:\n%s", text(list))
		}
		return nil
	}, p.agent)
}

func healthy(t *testing.T, list []doctor.Finding) {
	t.Helper()
	if doctor.Problems(list) > 0 {
		t.Errorf("problems:\n%s", text(list))
	}
}

func text(list []doctor.Finding) string {
	var b strings.Builder
	if err := doctor.WriteText(&b, list); err != nil {
		return err.Error()
	}
	return b.String()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
