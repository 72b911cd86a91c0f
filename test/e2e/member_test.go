//go:build linux

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"
)

// member is a machine of the office that its controller tells what to run, as
// root: an egress, a second gateway.
type member struct {
	*office
	machine    *lab.Machine
	name, data string
	process    *lab.Process
}

// newMember enrols a machine and starts decoynet on it. The controller runs.
func (o *office) newMember(m *lab.Machine, name string) *member {
	o.t.Helper()
	v := &member{office: o, machine: m, name: name, data: filepath.Join(o.t.TempDir(), name)}
	_, err := v.run(o.joinCommand(name)...)
	check(o.t, err)
	v.start()
	return v
}

// run runs a subcommand on the member.
func (v *member) run(args ...string) (string, error) {
	return v.machine.Run(v.t.Context(), binary, append(args, "--data", v.data)...)
}

func (v *member) start() {
	v.t.Helper()
	var err error
	v.process, err = v.machine.Start(binary, "up", "--data", v.data, "-v")
	check(v.t, err)
	process := v.process
	v.t.Cleanup(func() {
		if v.t.Failed() {
			v.t.Logf("decoynet on %s said:\n%s", v.name, process.Log())
		}
	})
}

// status is the member's own.
func (v *member) status() (st linkedStatus, err error) {
	return readStatus(v.run("status", "-o", "json"))
}

func (v *member) waitReady() {
	v.t.Helper()
	eventually(v.t, 20*time.Second, func() error {
		st, err := v.status()
		if err == nil && !st.Ready {
			err = fmt.Errorf("%s is not ready: %v", v.name, st.Problems)
		}
		return err
	})
}

// linkedStatus is the status of a node with what connects it to others.
type linkedStatus struct {
	nodeStatus
	Ingress struct {
		Accepted      int
		ClaimsRefused int `json:"claims_refused"`
		Refused       map[string]int
		Agents        []struct{ Node string }
	}
	Gateways []struct {
		Name      string
		Connected bool
		Error     string
	}
	Egress []struct {
		Refused map[string]int
	}
	Carried struct {
		NoGateway int `json:"no_gateway"`
	}
}

func readStatus(out string, err error) (st linkedStatus, _ error) {
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal([]byte(out), &st)
}

// linked is the office's status with what connects it to others.
func (o *office) linked() (linkedStatus, error) {
	return readStatus(o.decoynet("status", "-o", "json"))
}

// event is what `get events -o json` prints.
type event struct {
	Kind       string `json:"event.action"`
	Message    string `json:"message"`
	Node       string `json:"decoynet.node"`
	Decoy      string `json:"decoynet.decoy"`
	Segment    string `json:"decoynet.segment"`
	DestIP     string `json:"destination.ip"`
	SourceIP   string `json:"source.ip"`
	SourcePort uint16 `json:"source.port"`
}

// wantEvent waits until the controller lists an event of the kind that matches.
func (o *office) wantEvent(kind string, match func(event) bool) event {
	o.t.Helper()
	var found event
	eventually(o.t, 15*time.Second, func() error {
		out, err := o.decoynet("get", "events", "-o", "json", "--kind", kind)
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			var e event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				return err
			}
			if match(e) {
				found = e
				return nil
			}
		}
		return fmt.Errorf("no such %s among\n%s", kind, out)
	})
	return found
}

// wantAudit waits for an entry of the audit log that has all words in its line.
func (o *office) wantAudit(words ...string) {
	o.t.Helper()
	eventually(o.t, 10*time.Second, func() error {
		out, err := o.decoynet("get", "audit", "-o", "json")
		if err != nil {
			return err
		}
		for line := range strings.Lines(out) {
			all := true
			for _, w := range words {
				all = all && strings.Contains(line, w)
			}
			if all {
				return nil
			}
		}
		return fmt.Errorf("the audit log has no entry with %q:\n%s", words, out)
	})
}

// wantNode waits until the controller says of a node what is wanted.
func (o *office) wantNode(name string, want func(nodeLine) bool) nodeLine {
	o.t.Helper()
	var n nodeLine
	b := &branch{office: o}
	eventually(o.t, 20*time.Second, func() error {
		nodes, err := b.nodes()
		if err != nil {
			return err
		}
		if n = nodes[name]; !want(n) {
			return fmt.Errorf("node %s: %+v", name, n)
		}
		return nil
	})
	return n
}

func converged(n nodeLine) bool {
	return n.Condition == "converged" && n.RevisionHeld != "" && n.RevisionHeld == n.RevisionWanted
}

// wantFailure checks that a command was refused with an exit status, and with
// words that tell why.
func wantFailure(t *testing.T, err error, status int, words ...string) {
	t.Helper()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != status {
		t.Errorf("the command ended with %v, want exit status %d", err, status)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("the command said %q, which lacks %q", err, w)
		}
	}
}

// wantEcho sends datagrams and wants them back, with the sender as the service
// sees it.
func (o *office) wantEcho(from *lab.Machine, target netip.AddrPort) netip.AddrPort {
	o.t.Helper()
	conn, err := from.Dial(o.t.Context(), "udp", target.String())
	check(o.t, err)
	defer conn.Close()
	local := localAddr(conn)
	check(o.t, conn.SetDeadline(time.Now().Add(5*time.Second)))
	buf := make([]byte, 2048)
	for _, said := range []string{"hello", strings.Repeat("x", 1300)} {
		_, err = conn.Write([]byte(said))
		check(o.t, err)
		n, err := conn.Read(buf)
		check(o.t, err)
		if want := fmt.Sprintf("peer %s %d\n%s", local.Addr(), local.Port(), said); string(buf[:n]) != want {
			o.t.Errorf("UDP to %s answered %.80q, want %.80q", target, buf[:n], want)
		}
	}
	return local
}
