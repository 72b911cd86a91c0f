//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"decoynet/internal/lab"
)

// newManagedBranch is a branch whose agent runs what the controller says.
func newManagedBranch(t *testing.T) *branch {
	t.Helper()
	b := newBranch(t)
	b.document(branchDocument)
	b.up()
	b.join()
	b.startAgent()
	b.waitAgent()
	return b
}

// write writes a document that is to be applied.
func (b *branch) write(name, text string) string {
	b.t.Helper()
	file := filepath.Join(b.t.TempDir(), name)
	check(b.t, os.WriteFile(file, []byte(text), 0o644))
	return file
}

// changes runs diff or apply and returns what it names, by node.
func (b *branch) changes(args ...string) map[string][]string {
	b.t.Helper()
	out, err := b.decoynet(append(args, "-o", "json")...)
	check(b.t, err)
	var answer struct {
		Changes []struct{ Node, Text string }
	}
	check(b.t, json.Unmarshal([]byte(out), &answer))
	all := map[string][]string{}
	for _, c := range answer.Changes {
		all[c.Node] = append(all[c.Node], c.Text)
	}
	return all
}

// TestApply changes the document of a controller and its branch, and tries what
// must not change it.
func TestApply(t *testing.T) {
	t.Parallel()
	b := newManagedBranch(t)
	for _, part := range []struct {
		name string
		test func(*branch)
	}{
		{"Refused", (*branch).testWrongDocument},
		{"Viewer", (*branch).testViewer},
		{"NewPort", (*branch).testNewPort},
		{"DecoyRemoved", (*branch).testDecoyRemoved},
	} {
		if !t.Run(part.name, func(t *testing.T) { part.test(b.in(t)) }) {
			return
		}
	}
}

// morePorts is branchDocument with one more port at the branch's server.
var morePorts = branchDocument + "      - {ports: [2022], service: ssh, target: 22}\n"

func (b *branch) testNewPort() {
	file := b.write("more.yaml", morePorts)
	at := netip.AddrPortFrom(lab.BranchServer.V4, 2022).String()
	before := b.wantNode("crm-1", converged)

	changes := b.changes("diff", "-f", file)
	if len(changes["crm-1"]) != 1 || !strings.Contains(changes["crm-1"][0], "decoy crm") {
		b.t.Errorf("diff names for crm-1 %q", changes["crm-1"])
	}
	if len(changes) > 2 { // hq's gateway has to know as well
		b.t.Errorf("diff names %v", changes)
	}
	if after := b.wantNode("crm-1", converged); after.RevisionWanted != before.RevisionWanted {
		b.t.Errorf("diff changed the revision from %s to %s", before.RevisionWanted, after.RevisionWanted)
	}
	if conn, err := b.Branch.Intruder.Dial(b.t.Context(), "tcp", at); err == nil {
		_ = conn.Close()
		b.t.Error("the port is open before apply")
	}
	applied := b.changes("apply", "-f", file)
	if fmt.Sprint(applied) != fmt.Sprint(changes) {
		b.t.Errorf("apply changed %v, diff had said %v", applied, changes)
	}
	began := time.Now()
	eventually(b.t, 10*time.Second, func() error {
		conn, err := b.Branch.Intruder.Dial(b.t.Context(), "tcp", at)
		if err != nil {
			return err
		}
		defer conn.Close()
		check(b.t, conn.SetDeadline(time.Now().Add(5*time.Second)))
		banner := make([]byte, 8)
		if _, err := conn.Read(banner); err != nil || string(banner) != "SSH-2.0-" {
			return fmt.Errorf("the new port says %q, %w", banner, err)
		}
		return nil
	})
	b.t.Logf("the new port leads to the service %v after apply", time.Since(began).Round(time.Millisecond))
	b.wantNode("crm-1", func(n nodeLine) bool { return converged(n) && n.RevisionHeld != before.RevisionHeld })
	b.wantNode("hq", converged)
	b.wantEvent("document-applied", func(e event) bool { return strings.Contains(e.Message, "local applied document 2-") })
	if again := b.changes("diff", "-f", file); len(again) != 0 {
		b.t.Errorf("after apply, diff still names %v", again)
	}
	b.wantWide()
}

// wantWide checks the table for people.
func (b *branch) wantWide() {
	b.t.Helper()
	out, err := b.decoynet("get", "nodes", "-o", "wide")
	check(b.t, err)
	nodes, err := b.nodes()
	check(b.t, err)
	for _, name := range []string{"hq", "crm-1"} {
		found := false
		for line := range strings.Lines(out) {
			words := strings.Fields(line)
			found = found || len(words) > 5 && words[0] == name && words[1] == "converged" &&
				strings.Contains(line, nodes[name].Version) && strings.Count(line, nodes[name].RevisionHeld) == 2
		}
		if !found {
			b.t.Errorf("get nodes -o wide tells nothing of %s:\n%s", name, out)
		}
	}
}

// testWrongDocument: faults are named by file, line and column, all at once,
// and what runs goes on.
func (b *branch) testWrongDocument() {
	before := b.wantNode("crm-1", converged)
	wrong := strings.NewReplacer("service: snmp}", "service: smnp}", "node: crm-1\n", "node: crm-7\n").Replace(branchDocument)
	if strings.Count(wrong, "crm-7") != 1 {
		b.t.Fatal("the document is not wrong")
	}
	file := b.write("wrong.yaml", wrong)
	var at []string
	for i, line := range strings.Split(wrong, "\n") {
		for _, word := range []string{"smnp", "crm-7"} {
			if col := strings.Index(line, word); col >= 0 {
				at = append(at, fmt.Sprintf("%s:%d:%d: ", file, i+1, col+1))
			}
		}
	}
	for _, command := range []string{"diff", "apply"} {
		_, err := b.decoynet(command, "-f", file)
		wantFailure(b.t, err, 2, at...)
	}
	_, err := b.decoynet("apply", "-f", file+".gone")
	wantFailure(b.t, err, 2, "wrong.yaml.gone")
	if after := b.wantNode("crm-1", converged); after.RevisionWanted != before.RevisionWanted {
		b.t.Error("a wrong document changed what is wanted")
	}
	check(b.t, b.curl())
}

// testViewer: who may see may not apply, and the attempt is on record.
func (b *branch) testViewer() {
	token, err := b.decoynet("user", "create", "eve", "--role", "viewer")
	check(b.t, err)
	secret := b.write("eve.token", token)
	file := b.write("more.yaml", morePorts)
	if out, err := b.decoynet("diff", "-f", file, "--token-file", secret); err != nil || !strings.Contains(out, "node crm-1") {
		b.t.Errorf("a viewer's diff: %q, %v", out, err)
	}
	_, err = b.decoynet("apply", "-f", file, "--token-file", secret)
	wantFailure(b.t, err, 1, "eve", "operator", "viewer")
	_, err = b.decoynet("get", "audit", "--token-file", secret)
	wantFailure(b.t, err, 1, "eve", "admin")
	b.wantAudit(`AdminService/Apply"`, `"eve"`, `"denied"`)
	check(b.t, os.WriteFile(secret, []byte(strings.TrimSpace(token)+"x"), 0o600))
	_, err = b.decoynet("diff", "-f", file, "--token-file", secret)
	wantFailure(b.t, err, 1, "token")
	if changes := b.changes("diff", "-f", file); len(changes) == 0 {
		b.t.Error("what a viewer may not apply was applied")
	}
}

// testDecoyRemoved: what the document does not name any more ends at once.
func (b *branch) testDecoyRemoved() {
	client, service, source := b.converse()
	exchange(b.t, client, service)
	without := branchDocument[:strings.Index(branchDocument, "  - name: crm\n")]
	_, err := b.decoynet("apply", "-f", b.write("without.yaml", without))
	check(b.t, err)
	endsBy(b.t, client, syscall.ECONNRESET)
	endsBy(b.t, service, syscall.ECONNRESET)
	b.wantReason(source, "unbound")
	eventually(b.t, 10*time.Second, func() error {
		conn, err := b.Branch.Intruder.Dial(b.t.Context(), "tcp", netip.AddrPortFrom(lab.BranchServer.V4, 80).String())
		if err == nil {
			_ = conn.Close()
			return fmt.Errorf("a port of the decoy that was removed is open")
		}
		return nil
	})
	b.wantNode("crm-1", converged)
	_, err = b.decoynet("apply", "-f", b.file) // and back
	check(b.t, err)
	eventually(b.t, 10*time.Second, b.curl)
}
