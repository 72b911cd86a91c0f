package demo

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"decoynet/internal/lab"
)

// contested is what was seen while the document asked for a port that the
// business server's own service has.
type contested struct {
	faults []string // of what the controller's list said
	page   string   // what stood at the port
}

// becomeNode makes the branch's business server a node, as its administrator
// would, and mends the mistake in the document that shows then.
func (s *show) becomeNode(ctx context.Context) error {
	s.screen.say("The branch's machines are behind NAT; crm calls the office, not the other way round.")
	s.screen.command("gw", "#", "decoynet token create --node "+crmNode)
	command, err := s.stage.token(ctx)
	if err != nil {
		return err
	}
	s.screen.printed("the command to paste on crm; it works once, for ten minutes:")
	s.screen.command("crm", "$", command)
	says, err := s.stage.join(ctx, command)
	if err != nil {
		return err
	}
	s.screen.printed(says)
	s.screen.command("crm", "$", "decoynet up         # user nobody, with CAP_NET_BIND_SERVICE and no other privilege")
	if err := s.stage.startAgent(); err != nil {
		return err
	}
	if err := s.contest(ctx); err != nil {
		return err
	}
	document := filepath.Base(s.stage.Document)
	s.screen.command("gw", "#", fmt.Sprintf("sed -i /%d/d %s && decoynet reload", crmAdminPort, document))
	if _, err := s.stage.Gateway.Run(ctx, "sed", "-i", fmt.Sprintf("/%d/d", crmAdminPort), s.stage.Document); err != nil {
		return err
	}
	if says, err = s.stage.Decoynet(ctx, "reload"); err != nil {
		return err
	}
	s.screen.printed(says)
	if err := s.stage.waitNodes(ctx, converged); err != nil {
		return fmt.Errorf("wait for both nodes to be as the document says: %w", err)
	}
	return s.listNodes(ctx)
}

// contest waits until the controller's list tells of the port that cannot be had,
// and looks who has it.
func (s *show) contest(ctx context.Context) error {
	judge := func(list []nodeState) []string { return inUse(list, crmNode, crmAdminPort) }
	// What is missing is a fault of decoynet's: told with the others, later.
	if err := s.stage.waitNodes(ctx, judge); err != nil {
		s.contested.faults = []string{err.Error()}
	}
	var err error
	s.contested.page, err = s.stage.Branch.Intruder.Run(ctx, "curl", "-sSk", "-m", "5",
		"https://"+netip.AddrPortFrom(lab.BranchServer.V4, crmAdminPort).String()+"/")
	if err != nil {
		s.contested.faults = append(s.contested.faults, err.Error())
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return s.listNodes(ctx)
}

// listNodes shows the controller's list, as a person reads it.
func (s *show) listNodes(ctx context.Context) error {
	s.screen.command("gw", "#", "decoynet get nodes")
	list, err := s.stage.nodes(ctx)
	if err != nil {
		return err
	}
	for _, n := range list {
		colour, at := green, "here"
		if n.Condition != "converged" {
			colour = red
		}
		if n.Peer != "" {
			at = "seen at " + n.Peer
		}
		s.screen.printed(fmt.Sprintf("%-6s %s  revision %s, %s", n.Name, s.screen.paint(colour, fmt.Sprintf("%-9s", n.Condition)), n.Held, at))
		for _, p := range n.Problems {
			what, _, _ := strings.Cut(p, "; ") // what to do about it follows
			s.screen.printed("       " + what)
		}
	}
	return nil
}

// branch tells what comes out about the branch office.
func (s *show) branch(ctx context.Context, e evidence) {
	peers, sessions, faults := judgeOutpost(e, branchOutpost())
	s.check("branch", fmt.Sprintf("its intruder seen %d times at %s and %s, never the router or crm; %d sessions at %s",
		peers, lab.BranchIntruder.V4, lab.BranchIntruder.V6, sessions, crmNode), faults)

	list, err := s.stage.nodes(ctx)
	faults = append(converged(list), s.contested.faults...)
	if err != nil {
		faults = []string{err.Error()}
	}
	s.check("nodes", fmt.Sprintf("gw and %s converged; the port of crm's own service was reported while it was asked for", crmNode), faults)
	s.crm()
}

// crm tells how the business server itself fared.
func (s *show) crm() {
	s.clerk.leave()
	faults := s.clerk.complaints()
	if !strings.Contains(s.contested.page, "machine crm\n") {
		faults = append(faults, fmt.Sprintf("at port %d stood not its own service, but %q", crmAdminPort, s.contested.page))
	}
	peers, err := s.stage.CRM.Peers()
	if err != nil {
		faults = append(faults, err.Error())
	}
	for _, p := range peers {
		if a := p.Addr(); a != lab.BranchIntruder.V4 && a != lab.BranchIntruder.V6 && a != lab.BranchRouter.V4 {
			faults = append(faults, fmt.Sprintf("its web server saw %s", p))
		}
	}
	uid, capabilities, err := privileges(s.stage.agent.PID())
	if err == nil && (uid != nobody || capabilities != bindService) {
		err = fmt.Errorf("decoynet runs there as user %s with capabilities %s", uid, capabilities)
	}
	if err != nil {
		faults = append(faults, err.Error())
	}
	s.check("crm", fmt.Sprintf("its own ports %d and %d undisturbed: %d requests over one connection, slowest %.1f ms",
		crmPort, crmAdminPort, s.clerk.answers, s.clerk.slowest.Seconds()*1000), faults)
}

// bindService is CAP_NET_BIND_SERVICE (10) as a mask in hexadecimal.
const bindService = "400"

// misprint makes the mistake that is to be found.
func (s *show) misprint() error {
	if err := os.WriteFile(s.stage.Document, slices.Concat(Document, []byte(mistake)), 0o644); err != nil {
		return fmt.Errorf("write the document: %w", err)
	}
	return nil
}
