//go:build linux

package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"
	"decoynet/internal/pgtest"
)

// TestTwoControllers runs two controllers on one PostgreSQL, on machines of their
// own. A document is applied at one and then at the other, the first is killed,
// and what nodes see is in the one store, each session once.
func TestTwoControllers(t *testing.T) {
	t.Parallel()
	b := newBranch(t)
	at := pgtest.Database(t)
	twoControllers := strings.Replace(branchDocument, `controller: {node: hq, listen: 0.0.0.0:7443, urls: ["https://192.0.2.5:7443"]}`, "", 1)
	b.document(twoControllers)
	first := b.controller(b.Gateway, "first", "192.0.2.5:7443", at)
	second := b.controller(b.Production, "second", "192.0.2.10:7443", at)
	run := func(c *controllerProcess, args ...string) string {
		t.Helper()
		out, err := c.machine.Run(t.Context(), binary, append(args, "--data", c.data)...)
		check(t, err)
		return out
	}
	run(first, "apply", "-f", b.file)

	// The gateway's machine and the branch's server join at different ones.
	b.data = filepath.Join(t.TempDir(), "hq")
	join := func(at *controllerProcess, node string) []string {
		words := strings.Fields(run(at, "token", "create", "--node", node))
		return words[1:]
	}
	_, err := b.Gateway.Run(t.Context(), binary, append(join(first, "hq"), "--data", b.data)...)
	check(t, err)
	b.process, err = b.Gateway.Start(binary, "up", "--data", b.data)
	check(t, err)
	b.waitReady(20 * time.Second)
	b.prepareAgent()
	_, err = b.agentRun(join(second, "crm-1")...)
	check(t, err)
	b.startAgent()
	b.waitAgent()
	check(t, b.curl())

	// Applied at the other one: both nodes have it.
	b.document(twoControllers + "      - {ports: [8080], service: web, target: 80}\n")
	run(second, "apply", "-f", b.file)
	eventually(t, 20*time.Second, func() error {
		_, err := b.Branch.Intruder.Run(t.Context(), "curl", "-sS", "-o", "/dev/null", "--max-time", "3", fmt.Sprintf("http://%s/", netip.AddrPortFrom(lab.BranchServer.V4, 8080)))
		return err
	})

	// The first dies; the nodes go on at the second.
	check(t, first.process.Kill())
	check(t, b.curl())
	eventually(t, 40*time.Second, func() error {
		out := run(second, "get", "nodes", "-o", "json")
		if strings.Count(out, `"condition":"converged"`) != 2 {
			return fmt.Errorf("nodes: %s", out)
		}
		return nil
	})
	want := 3 // two by curl, one at 8080
	eventually(t, 40*time.Second, func() error {
		out, err := b.Production.Run(t.Context(), binary, "get", "sessions", "-o", "json", "--limit", "0", "--store", at)
		if err != nil {
			return err
		}
		ended, ids := 0, map[string]int{}
		for line := range strings.Lines(out) {
			id, _, _ := strings.Cut(line[strings.Index(line, `"event.id":"`)+len(`"event.id":"`):], `"`)
			ids[id]++
			if strings.Contains(line, `"client_closed"`) && strings.Contains(line, `"decoynet.node":"crm-1"`) {
				ended++
			}
			if ids[id] > 1 {
				return fmt.Errorf("session %s is there %d times", id, ids[id])
			}
		}
		if ended < want {
			return fmt.Errorf("%d of %d sessions of crm-1 are in the store:\n%s", ended, want, out)
		}
		return nil
	})
	check(t, second.process.Stop(t.Context()))
	b.down()
}

// controllerProcess is a controller that runs by itself.
type controllerProcess struct {
	machine *lab.Machine
	data    string
	process *lab.Process
}

// controller starts a controller on a machine and waits for its port.
func (b *branch) controller(m *lab.Machine, name, listen, store string) *controllerProcess {
	b.t.Helper()
	c := &controllerProcess{machine: m, data: filepath.Join(b.t.TempDir(), name)}
	check(b.t, os.MkdirAll(c.data, 0o700))
	var err error
	c.process, err = m.Start(binary, "controller", "--data", c.data, "--listen", listen, "--url", "https://"+listen, "--store", store)
	check(b.t, err)
	b.t.Cleanup(func() {
		if b.t.Failed() {
			b.t.Logf("controller %s said:\n%s", name, c.process.Log())
		}
	})
	eventually(b.t, 20*time.Second, func() error {
		_, err := m.Run(b.t.Context(), binary, "get", "nodes", "--data", c.data)
		return err
	})
	return c
}
