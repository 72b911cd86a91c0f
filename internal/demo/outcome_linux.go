package demo

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"decoynet/internal/lab"
)

// server tells a server's verdict.
func (s *show) server(v serverVerdict) {
	says := fmt.Sprintf("saw %d peers: each an address and port of an intruder's, each with its session", v.Peers)
	if v.Peers == 0 {
		v.Faults = append(v.Faults, v.Name+" has logged nobody")
	}
	if len(v.Faults) > 0 {
		says = fmt.Sprintf("saw %d peers, of which %d are an intruder's and have their session", v.Peers, v.Matched)
	}
	s.screen.verdict(v.Name, says, v.Faults)
	s.summary.OK = s.summary.OK && len(v.Faults) == 0
	s.summary.Servers = append(s.summary.Servers, ServerSummary{
		Server: v.Name, Service: v.Service, OK: len(v.Faults) == 0, Peers: v.Peers, Matched: v.Matched,
		Checks: v.Checks, Sessions: v.Sessions, Faults: v.Faults,
	})
}

// check tells one of the other verdicts.
func (s *show) check(name, says string, faults []string) {
	s.screen.verdict(name, says, faults)
	s.summary.OK = s.summary.OK && len(faults) == 0
	s.summary.Checks = append(s.summary.Checks, CheckSummary{Name: name, OK: len(faults) == 0, Says: says, Faults: faults})
}

// others tells what is not about one server.
func (s *show) others(ctx context.Context, e evidence, accepted int, alerts alertVerdict, faults []string, lost error) {
	if lost != nil {
		faults = append(faults, lost.Error())
	}
	st, err := s.stage.status(ctx)
	if err != nil {
		faults = append(faults, err.Error())
	} else if st.Recording.Lost > 0 {
		faults = append(faults, fmt.Sprintf("decoynet says that it lost %d sessions", st.Recording.Lost))
	}
	s.check("sessions", fmt.Sprintf("the intruders' cards saw decoys accept %d connections; %d are recorded", accepted, len(e.Sessions)), faults)
	s.detected(e, alerts, st.Inspect)

	o := s.scene.owners(s.plan, e.Card.claims)
	free, faults := judgeOwners(o)
	s.check("addresses", fmt.Sprintf("ARP and NDP: %d decoys at one card, %d machines at their own, %d addresses nobody's",
		len(o.Decoys), len(o.Machines), free), faults)

	s.worker.leave()
	faults = s.worker.complaints()
	peers, err := s.stage.ProductionWeb.Peers()
	if err != nil {
		faults = append(faults, err.Error())
	}
	for _, p := range peers {
		if p.Addr() != lab.OfficeIntruder.V4 && p.Addr() != lab.OfficeGateway.V4 {
			faults = append(faults, fmt.Sprintf("its web server saw %s", p))
		}
	}
	after, err := s.stage.Production.Snapshot(ctx)
	if err != nil {
		faults = append(faults, err.Error())
	}
	faults = append(faults, changes(s.before["production"], after)...)
	s.check("production", fmt.Sprintf("undisturbed: %d requests over one connection, slowest %.1f ms; unchanged",
		s.worker.answers, s.worker.slowest.Seconds()*1000), faults)
	s.branch(ctx, e)
}

// changes returns the first lines in which two snapshots differ.
func changes(before, after string) []string {
	was, is := strings.Split(before, "\n"), strings.Split(after, "\n")
	var out []string
	for _, line := range is {
		if !slices.Contains(was, line) {
			out = append(out, "new: "+line)
		}
	}
	for _, line := range was {
		if !slices.Contains(is, line) {
			out = append(out, "gone: "+line)
		}
	}
	return out
}

// strike takes everything down and looks whether that worked. It works with
// whatever of the show there is.
func (s *show) strike(before []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	for _, c := range []*colleague{s.worker, s.clerk} {
		if c != nil {
			c.leave()
		}
	}
	var errs []error
	for _, card := range s.cards {
		errs = append(errs, card.Close())
	}
	var faults []string
	if s.stage != nil && len(s.before) > 0 { // else there is nothing to compare with
		if err := s.stage.Down(ctx); err != nil {
			faults = append(faults, err.Error())
		}
		faults = append(faults, s.remains(ctx)...)
		s.check("decoynet", "stopped on gw and crm; they and linux are as they were before it started", faults)
	}
	faults = nil
	if s.stage != nil { // else NewStage has removed what it had made
		s.log = s.stage.Log()
		if err := s.stage.Close(); err != nil {
			faults = append(faults, err.Error())
		}
	}
	after, err := hostState(ctx, s.Name)
	if err != nil {
		faults = append(faults, err.Error())
	}
	ours, others := leftovers(before, after)
	s.check("host", "links, routes, firewall, namespaces, mounts, files as before", append(faults, ours...))
	if len(others) > 0 {
		s.screen.say("        %-11s (something else on this host changed meanwhile:)", "")
		for _, line := range others[:min(3, len(others))] {
			s.screen.say("        %-11s   %s", "", line)
		}
	}
	return errors.Join(errs...)
}

// remains returns in what the machines differ from what they were. The kernel
// removes a namespace and its links in its own time.
func (s *show) remains(ctx context.Context) []string {
	var faults []string
	err := lab.Eventually(ctx, 3*time.Second, func() error {
		after, err := s.snapshots(ctx)
		if err != nil {
			return err
		}
		faults = nil
		for _, name := range []string{"gw", "linux", "crm"} {
			for _, c := range changes(s.before[name], after[name]) {
				faults = append(faults, name+": "+c)
			}
		}
		if len(faults) > 0 {
			return errors.New(faults[0])
		}
		return nil
	})
	if err != nil && len(faults) == 0 {
		faults = append(faults, err.Error())
	}
	return faults
}

// failed names what was not as it should be.
func (s *show) failed() []string {
	var names []string
	for _, st := range s.summary.Steps {
		if !st.OK && !slices.Contains(names, "the attack") {
			names = append(names, "the attack")
		}
	}
	for _, v := range s.summary.Servers {
		if !v.OK {
			names = append(names, v.Server)
		}
	}
	for _, c := range s.summary.Checks {
		if !c.OK {
			names = append(names, c.Name)
		}
	}
	return names
}

// pass tells that all is well.
func (s *show) pass() {
	too := ""
	if s.detects {
		too = ", and so did Suricata"
	}
	s.screen.say("\n%s in %.1f s: every server saw the intruders' own addresses and ports%s.",
		s.screen.paint(green, "PASS"), s.summary.Seconds, too)
}

// outcome tells the end.
func (s *show) outcome(err error) (Summary, error) {
	failed := s.failed()
	left := "Nothing is left behind."
	if slices.Contains(failed, "host") {
		left = "NOT everything could be removed, see above."
	}
	if err != nil || len(failed) > 0 {
		s.summary.OK = false
	}
	if s.summary.Seconds == 0 {
		s.summary.Seconds = time.Since(s.screen.began).Seconds()
	}
	switch {
	case s.summary.Interrupted:
	case !s.summary.OK:
		s.lastWords()
		s.screen.say("\n%s after %.1f s", s.screen.paint(red, "FAIL"), s.summary.Seconds)
		if len(failed) > 0 {
			err = errors.Join(err, fmt.Errorf("%w: %s", ErrFailed, strings.Join(failed, ", ")))
		}
	case !s.Keep: // else it is told
		s.pass()
	}
	s.screen.say("%s", left)
	return s.summary, err
}

// lastWords shows the end of decoynet's own log, which has gone with the lab.
func (s *show) lastWords() {
	if s.log == "" {
		return
	}
	lines := strings.Split(strings.TrimSpace(s.log), "\n")
	s.screen.title("What decoynet itself said last")
	for _, line := range lines[max(0, len(lines)-10):] {
		s.screen.say("  %s", line)
	}
}

// tools are the programs that the demo needs, with Debian's packages.
var tools = []struct{ program, pkg string }{
	{"ip", "iproute2"},
	{"nsenter", "util-linux"},
	{"setpriv", "util-linux"},
	{"nft", "nftables"},
	{"bpftool", "bpftool"},
	{"nginx", "nginx-light"},
	{"redis-server", "redis-server"},
	{"/usr/sbin/sshd", "openssh-server"},
	{"redis-cli", "redis-tools"},
	{"ssh", "openssh-client"},
	{"ssh-keygen", "openssh-client"},
	{"nmap", "nmap"},
	{"curl", "curl"},
	{"ping", "iputils-ping"},
}

// checkTools names what is not installed, and how to install it.
func checkTools() error {
	var missing []string
	for _, t := range tools {
		found := false
		for _, dir := range []string{"", "/usr/sbin/", "/sbin/"} {
			if _, err := exec.LookPath(dir + t.program); err == nil {
				found = true
			}
		}
		if !found && !slices.Contains(missing, t.pkg) {
			missing = append(missing, t.pkg)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("the demo needs programs that are not installed: apt-get install %s", strings.Join(missing, " "))
	}
	return nil
}
