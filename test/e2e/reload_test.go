//go:build linux

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"decoynet/internal/lab"
)

// reloadDocument is the part that stays; decoys follow.
const reloadDocument = `
node: gw
segments:
  - name: office
    parent: eth0
    steering: %s
    subnets: [{prefix: 192.0.2.0/24, gateway: 192.0.2.1}, {prefix: "2001:db8:2::/64"}]
zones:
  - {name: linux, subnet: [10.1.0.0/24, "fd00:1::/64"], link: br-linux}
services:
  - {name: web, zone: linux, address: [10.1.0.2, "fd00:1::2"], ports: [80]}
  - {name: ssh, zone: linux, address: [10.1.0.4, "fd00:1::4"], ports: [22]}
  - {name: script, zone: linux, address: [10.1.0.5, "fd00:1::5"], ports: [9000]}
decoys:
`

const (
	keeper = `
  - name: keeper
    segment: office
    addresses: [192.0.2.100-192.0.2.109, "2001:db8:2::100-2001:db8:2::109"]
    bind: [{ports: [2222], service: ssh, target: 22}, {ports: [80], service: web}, {ports: [9000], service: script}]
`
	keeperWithMore = `
  - name: keeper
    segment: office
    addresses: [192.0.2.100-192.0.2.109, "2001:db8:2::100-2001:db8:2::109"]
    bind: [{ports: [2222], service: ssh, target: 22}, {ports: [80], service: web}, {ports: [9000], service: script}, {ports: [9001], service: script, target: 9000}]
`
	leaver = `
  - name: leaver
    segment: office
    addresses: [192.0.2.120-192.0.2.123, "2001:db8:2::120-2001:db8:2::121"]
    bind: [{ports: [9000], service: script}]
`
	newcomer = `
  - name: newcomer
    segment: office
    addresses: [192.0.2.132-192.0.2.135, "2001:db8:2::130-2001:db8:2::131"]
    bind: [{ports: [80], service: web}]
`
)

// TestReload changes the document under running sessions.
func TestReload(t *testing.T) {
	for _, steering := range steerings {
		t.Run(steering, func(t *testing.T) {
			t.Parallel()
			r := &reloadOffice{relayOffice: &relayOffice{office: newOffice(t)}, steering: steering}
			r.script = newPuppet(t, r.Linux, 9000)
			r.document(r.text(keeper, leaver))
			r.up()
			r.watch()
			r.testReload()
			r.down()
		})
	}
}

type reloadOffice struct {
	*relayOffice
	steering string
	monitors []*monitor
}

func (r *reloadOffice) text(decoys ...string) string {
	return fmt.Sprintf(reloadDocument, r.steering) + strings.Join(decoys, "")
}

func (r *reloadOffice) testReload() {
	ssh := r.shell("192.0.2.100")
	ssh.alive("before everything")
	staying4, service4 := r.pair(at("192.0.2.109", 9000))
	staying6, service6 := r.pair(at("2001:db8:2::109", 9000))
	leaving4, gone4 := r.pair(at("192.0.2.120", 9000))
	leaving6, gone6 := r.pair(at("2001:db8:2::121", 9000))
	alive := func(when string) {
		r.t.Helper()
		ssh.alive(when)
		say(r.t, staying4, service4, when)
		say(r.t, service6, staying6, when)
	}
	r.quiet("connections")

	// The same in other words.
	r.hangUp("# the same\n" + r.text(keeper, leaver))
	r.quiet("a reload without a difference")
	alive("after a reload without a difference")

	// A new range and a new binding.
	r.reload(r.text(keeperWithMore, leaver, newcomer))
	r.changed([]string{"192.0.2.132", "2001:db8:2::130", "2001:db8:2::131"}, "192.0.2.12", "2001:db8:2::12", "Deleted")
	r.wantWeb("192.0.2.132", "192.0.2.135", "[2001:db8:2::131]")
	binding4, unbound4 := r.pair(at("192.0.2.101", 9001))
	binding6, unbound6 := r.pair(at("2001:db8:2::101", 9001))
	alive("after an addition")
	say(r.t, leaving4, gone4, "still there")

	// A document with faults changes nothing, however it is brought.
	r.refuseInvalid()
	alive("after an invalid document")

	// The binding and a range go, and the flows through them.
	r.hangUp(r.text(keeper, newcomer))
	r.changed([]string{"Deleted", "192.0.2.120", "2001:db8:2::120", "2001:db8:2::121"}, "192.0.2.13", "2001:db8:2::13")
	for _, c := range []io.Closer{leaving4, leaving6, binding4, binding6} {
		defer c.Close()
	}
	wantEnd(r.t, binding4, unix.ECONNRESET)
	wantEnd(r.t, binding6, unix.ECONNRESET)
	wantEnd(r.t, unbound4, unix.ECONNRESET)
	wantEnd(r.t, unbound6, unix.ECONNRESET)
	wantEnd(r.t, gone4, unix.ECONNRESET)
	wantEnd(r.t, gone6, unix.ECONNRESET)
	wantEnd(r.t, leaving4, unix.ECONNRESET)
	wantEnd(r.t, leaving6, unix.ECONNRESET)
	for _, conn := range []netip.AddrPort{localAddr(leaving4), localAddr(leaving6), localAddr(binding4), localAddr(binding6)} {
		r.wantReason(conn, "unbound")
	}
	for _, addr := range []string{"192.0.2.101", "2001:db8:2::101"} {
		if !r.refused(at(addr, 9001)) {
			r.t.Errorf("%s is bound no longer and is not refused", at(addr, 9001))
		}
	}
	if out, err := r.Intruder.Run(r.t.Context(), "arping", "-r", "-c", "1", "-w", "1", "-i", "eth0", "192.0.2.120"); err == nil {
		r.t.Errorf("192.0.2.120 is no decoy any more and is at %s", out)
	}
	if out, err := r.Intruder.Run(r.t.Context(), "ndisc6", "-q", "-1", "-r", "1", "-w", "700", "2001:db8:2::120", "eth0"); err == nil {
		r.t.Errorf("2001:db8:2::120 is no decoy any more and is at %s", out)
	}
	alive("at the end")
	ssh.end()
	r.wantNoErrorsBut("the document is not valid")
}

// refuseInvalid brings a document with two faults in both ways.
func (r *reloadOffice) refuseInvalid() {
	r.t.Helper()
	before, err := r.status()
	check(r.t, err)
	good := r.text(keeperWithMore, leaver, newcomer)
	bad := strings.Replace(strings.Replace(good, "link: br-linux", "lynk: br-linux", 1), "service: web", "service: webb", 1)
	check(r.t, writeDocument(r.file, bad))
	faults := []string{r.file + ":", `did you mean "link"`, `did you mean "web"`}
	out, err := r.decoynet("reload")
	for _, want := range faults {
		if err == nil || !strings.Contains(err.Error(), want) {
			r.t.Errorf("reload of an invalid document says %q, %v; want %q in it", out, err, want)
		}
	}
	logged := len(r.process.Log())
	check(r.t, r.process.Signal(syscall.SIGHUP))
	eventually(r.t, 5*time.Second, func() error {
		log := r.process.Log()[logged:]
		for _, want := range []string{"level=ERROR", "lynk", "webb"} {
			if !strings.Contains(log, want) {
				return fmt.Errorf("after SIGHUP with an invalid document the log has no %s: %s", want, log)
			}
		}
		return nil
	})
	r.quiet("an invalid document")
	after, err := r.status()
	if err != nil || after.Revision != before.Revision || !after.Ready || !cmp.Equal(after.Segments, before.Segments) {
		r.t.Errorf("status after an invalid document: %+v, %v; before: %+v", after, err, before)
	}
	check(r.t, writeDocument(r.file, good))
	_, err = r.decoynet("reload")
	check(r.t, err)
	r.quiet("the document from before")
}

// reload writes a document and has it applied by the command.
func (r *reloadOffice) reload(text string) {
	r.t.Helper()
	check(r.t, writeDocument(r.file, text))
	out, err := r.decoynet("reload")
	check(r.t, err)
	st, err := r.status()
	check(r.t, err)
	if out != "applied revision "+st.Revision+"\n" {
		r.t.Errorf("reload says %q; revision %s", out, st.Revision)
	}
	r.waitReady(5 * time.Second) // new addresses are asked for first
}

// hangUp writes a document and has it applied by SIGHUP.
func (r *reloadOffice) hangUp(text string) {
	r.t.Helper()
	before, err := r.status()
	check(r.t, err)
	check(r.t, writeDocument(r.file, text))
	check(r.t, r.process.Signal(syscall.SIGHUP))
	eventually(r.t, 5*time.Second, func() error {
		st, err := r.status()
		if err == nil && (st.Revision == before.Revision || !st.Ready) {
			err = fmt.Errorf("revision %s is in force, ready %v", st.Revision, st.Ready)
		}
		return err
	})
}

// wantNoErrorsBut checks decoynet's log for errors other than an expected one.
func (o *office) wantNoErrorsBut(expected string) {
	o.t.Helper()
	for line := range strings.Lines(o.process.Log()) {
		if strings.Contains(line, "level=ERROR") && !strings.Contains(line, expected) {
			o.t.Errorf("decoynet logged %s", line)
		}
	}
}

// monitor is a program that prints changes of the kernel's configuration.
type monitor struct {
	process *lab.Process
	seen    int
}

// watch starts ip monitor and nft monitor, on the machine and in the segment.
func (r *reloadOffice) watch() {
	r.t.Helper()
	for _, m := range []*lab.Machine{r.Gateway, r.Gateway.InSegment("decoynet-office")} {
		for _, args := range [][]string{{"stdbuf", "-oL", "ip", "monitor", "link", "address", "route", "rule"}, {"stdbuf", "-oL", "nft", "monitor"}} {
			p, err := m.Start(args[0], args[1:]...)
			check(r.t, err)
			r.monitors = append(r.monitors, &monitor{process: p})
		}
	}
	// They say nothing when they are ready; a route of no consequence does.
	for i, m := range []*lab.Machine{r.Gateway, r.Gateway.InSegment("decoynet-office")} {
		eventually(r.t, 5*time.Second, func() error {
			_, err := m.Run(r.t.Context(), "sh", "-c", "ip route add blackhole 198.51.100.1 && ip route del blackhole 198.51.100.1 && nft add table inet canary && nft delete table inet canary")
			time.Sleep(50 * time.Millisecond)
			for _, p := range r.monitors[2*i : 2*i+2] {
				if p.process.Log() == "" {
					return fmt.Errorf("a monitor sees nothing: %v", err)
				}
			}
			return err
		})
	}
	r.changes()
}

// changes returns what the monitors have printed since the last call.
func (r *reloadOffice) changes() string {
	time.Sleep(150 * time.Millisecond) // for them to print it
	var all strings.Builder
	for _, m := range r.monitors {
		log := m.process.Log()
		for line := range strings.Lines(log[m.seen:]) {
			// A link's own link-local address is ready when it has been probed
			// for duplicates, a second or two after the link came up.
			if !strings.Contains(line, " fe80::") && !strings.Contains(line, "valid_lft") && !strings.Contains(line, "# new generation") {
				all.WriteString(line)
			}
		}
		m.seen = len(log)
	}
	return all.String()
}

// quiet checks that nothing was changed in the kernel.
func (r *reloadOffice) quiet(after string) {
	r.t.Helper()
	if seen := r.changes(); seen != "" {
		r.t.Errorf("%s changed the kernel's state:\n%s", after, seen)
	}
}

// changed checks that the kernel's changes speak of some things and not of
// others, given as the beginnings of addresses.
func (r *reloadOffice) changed(want []string, not ...string) {
	r.t.Helper()
	seen := r.changes()
	for _, w := range want {
		if !strings.Contains(seen, w) {
			r.t.Errorf("no change of %s in:\n%s", w, seen)
		}
	}
	for line := range strings.Lines(seen) {
		forbidden := not
		if !strings.Contains(line, "element inet decoynet-steer") {
			// The keeper's bindings do change, its addresses do not.
			forbidden = append(not[:len(not):len(not)], "192.0.2.10", "2001:db8:2::10")
		}
		for _, w := range forbidden {
			if strings.Contains(line, w) {
				r.t.Errorf("a change of what is as it was: %s", line)
			}
		}
	}
}

// shell is an ssh session that echoes what it is told.
type shell struct {
	t       *testing.T
	command *exec.Cmd
	in      io.WriteCloser
	out     *lineReader
}

func (r *reloadOffice) shell(addr string) *shell {
	r.t.Helper()
	args := r.SSH.ClientArgs(netip.AddrPortFrom(netip.MustParseAddr(addr), 2222))
	s := &shell{t: r.t, command: r.Intruder.Command(r.t.Context(), "ssh", append(args, "cat")...)}
	var err error
	s.in, err = s.command.StdinPipe()
	check(r.t, err)
	out, err := s.command.StdoutPipe()
	check(r.t, err)
	check(r.t, s.command.Start())
	s.out = newLineReader(bufio.NewReader(out))
	return s
}

// alive has the other end echo a line.
func (s *shell) alive(when string) {
	s.t.Helper()
	_, err := fmt.Fprintln(s.in, when)
	check(s.t, err)
	if got, ok := s.out.next(10 * time.Second); !ok || got != when {
		s.t.Fatalf("the ssh session echoes %q for %q", got, when)
	}
}

// end ends the session in order.
func (s *shell) end() {
	s.t.Helper()
	check(s.t, s.in.Close())
	if line, ok := s.out.next(5 * time.Second); ok {
		s.t.Errorf("ssh said %q at its end", line)
	}
	check(s.t, s.command.Wait())
}
