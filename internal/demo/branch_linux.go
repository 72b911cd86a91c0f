package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"decoynet/internal/lab"
)

// crmNode is the branch's business server in the document.
const crmNode = "crm-1"

// The business server's own web server: what the branch works with all day, and
// a page for its administrator.
const (
	crmPort      = 8080
	crmAdminPort = 8443
)

// branchHosts are the addresses of nodes that hold decoys at their own.
func branchHosts() map[netip.Addr]string {
	return map[netip.Addr]string{lab.BranchServer.V4: crmNode, lab.BranchServer.V6: crmNode}
}

// branchOutpost says who is who in the branch.
func branchOutpost() outpost {
	return outpost{
		Node:     crmNode,
		Intruder: []netip.Addr{lab.BranchIntruder.V4, lab.BranchIntruder.V6},
		Strangers: map[netip.Addr]string{
			lab.BranchOutside: "the branch's router", lab.BranchRouter.V4: "the branch's router", lab.BranchRouter.V6: "the branch's router",
			lab.BranchServer.V4: "crm itself", lab.BranchServer.V6: "crm itself",
		},
	}
}

// addBranch hangs the branch on the office, with what its server is there for.
func (s *Stage) addBranch(ctx context.Context, progress func(string)) error {
	began := time.Now()
	var err error
	if s.Branch, err = s.AddBranch(ctx, s.Lab); err != nil {
		return err
	}
	if s.CRM, err = lab.Nginx(ctx, s.Branch.Server, lab.Listen{Ports: []uint16{crmPort}, TLS: []uint16{crmAdminPort}}); err != nil {
		return err
	}
	progress(fmt.Sprintf("branch office up: b-router, crm with its own web server, b-intruder in %d ms", time.Since(began).Milliseconds()))
	return nil
}

// nobody is who runs decoynet in the branch: an ordinary user (see
// setpriv(1)) with the one capability that ports below 1024 need.
const nobody = "65534"

// unprivileged returns the command as nobody runs it.
func unprivileged(argv ...string) []string {
	only := "-all,+net_bind_service"
	return append([]string{
		"setpriv", "--reuid=" + nobody, "--regid=" + nobody, "--clear-groups",
		"--inh-caps=" + only, "--ambient-caps=" + only, "--bounding-set=" + only, "--",
	}, argv...)
}

// furnishCRM installs decoynet on the business server, for an ordinary user:
// the program that this one is may lie where only root gets.
func (s *Stage) furnishCRM(ctx context.Context) error {
	_, err := s.Branch.Server.Run(ctx, "sh", "-ec", `
		rm -f `+commandDir+`/decoynet
		install -m 755 "$1" `+commandDir+`/decoynet
		mkdir -p `+dataDir+`
		chown `+nobody+`:`+nobody+` `+dataDir+`
		chmod 700 `+dataDir, "sh", s.binary)
	return err
}

// OnCRM runs one of decoynet's commands on the business server, as nobody.
func (s *Stage) OnCRM(ctx context.Context, args ...string) (string, error) {
	argv := unprivileged(append([]string{commandDir + "/decoynet"}, args...)...)
	return s.Branch.Server.Run(ctx, argv[0], argv[1:]...)
}

// token has gw print the command that makes a machine the node.
func (s *Stage) token(ctx context.Context) (string, error) {
	out, err := s.Decoynet(ctx, "token", "create", "--node", crmNode)
	if err != nil {
		return "", err
	}
	command := strings.TrimSpace(out)
	if !strings.HasPrefix(command, "decoynet join ") || strings.Contains(command, "\n") {
		return "", fmt.Errorf("token create printed %q, not one command to join with", out)
	}
	return command, nil
}

// join pastes that command on the business server.
func (s *Stage) join(ctx context.Context, command string) (string, error) {
	return s.OnCRM(ctx, strings.Fields(command)[1:]...)
}

// startAgent starts decoynet on the business server; it has no document.
func (s *Stage) startAgent() error {
	argv := unprivileged(commandDir+"/decoynet", "up")
	var err error
	s.agent, err = s.Branch.Server.Start(argv[0], argv[1:]...)
	return err
}

// enrol makes the business server a node, as far as the document knows it, and
// waits until it is as it should be.
func (s *Stage) enrol(ctx context.Context) error {
	document, err := os.ReadFile(s.Document)
	if err != nil {
		return fmt.Errorf("read the document: %w", err)
	}
	p, err := readPlan(document, branchHosts())
	if err != nil || !p.node(crmNode) {
		return err
	}
	command, err := s.token(ctx)
	if err != nil {
		return err
	}
	if _, err := s.join(ctx, command); err != nil {
		return err
	}
	if err := s.startAgent(); err != nil {
		return err
	}
	return s.waitNodes(ctx, converged)
}

// nodes returns what the controller says about its nodes.
func (s *Stage) nodes(ctx context.Context) ([]nodeState, error) {
	out, err := s.Decoynet(ctx, "get", "nodes", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list []nodeState
	for line := range strings.Lines(out) {
		var n nodeState
		if err := json.Unmarshal([]byte(line), &n); err != nil {
			return nil, fmt.Errorf("read the list of nodes: %w", err)
		}
		list = append(list, n)
	}
	return list, nil
}

// nodePatience is how long the nodes may take to become what they are told. A
// busy machine takes seconds for what takes a quarter of one.
const nodePatience = 20 * time.Second

// waitNodes waits until the controller's list has no fault.
func (s *Stage) waitNodes(ctx context.Context, judge func([]nodeState) []string) error {
	var list []nodeState
	err := lab.Eventually(ctx, nodePatience, func() (err error) {
		if list, err = s.nodes(ctx); err != nil {
			return err
		}
		if faults := judge(list); len(faults) > 0 {
			return errors.New(strings.Join(faults, "; "))
		}
		return nil
	})
	if err != nil && s.agent != nil {
		return fmt.Errorf("%w; decoynet on crm said:\n%s", err, s.agent.Log())
	}
	return err
}

// privileges returns as whom a process runs and with which capabilities, as
// proc_pid_status(5) has them.
func privileges(pid int) (uid, capabilities string, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return "", "", fmt.Errorf("look as whom a process runs: %w", err)
	}
	if words := wordsAfter(string(text), "Uid:"); len(words) > 1 {
		uid = words[1] // the effective one
	}
	if words := wordsAfter(string(text), "CapEff:"); len(words) == 1 {
		capabilities = strings.TrimLeft(words[0], "0")
	}
	return uid, capabilities, nil
}
