package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"decoynet/internal/kernel/netns/netnstest"
	"decoynet/internal/lab"
)

// program is decoynet, built once.
var program string

func TestMain(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "demo-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "decoynet")
	build := exec.Command("go", "build", "-o", program, "decoynet/cmd/decoynet")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build decoynet: %v\n%s", err, out)
		return 1
	}
	code := m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, "goroutines are left:", err)
		return 1
	}
	return code
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// noLab fails the test where the lab is up, or anything of it is left.
func noLab(t *testing.T, name string) {
	t.Helper()
	labs, err := lab.List()
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(labs, func(l lab.Info) bool { return l.Name == name }) {
		t.Errorf("lab %s is still up", name)
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "decoynet-lab-"+name+"*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func freeName(t *testing.T, kind string) string {
	name := fmt.Sprintf("%s-%d", kind, os.Getpid())
	t.Cleanup(func() { noLab(t, name) })
	return name
}

// TestDemo plays the demo as `make demo` does.
func TestDemo(t *testing.T) {
	cmd := exec.CommandContext(within(t, 90*time.Second), program, "demo", "-o", "json", "--name", freeName(t, "demo"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	began := time.Now()
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v:\n%s", err, stderr.String())
	}
	if took := time.Since(began); took > time.Minute {
		t.Errorf("took %v", took)
	}
	text := stderr.String()
	for _, want := range []string{
		"2001:db8:2::66", "192.0.2.21-.65 .100-.199", "80 443 6379 2222 161/udp", // the drawing
		"decoynet token create --node crm-1", "decoynet join https://192.0.2.5:7443 --token", "node crm-1 now",
		"port 8443/tcp of decoy crm is in use", "crm-1  converged",
		"276 connections from port 4000", "200 hosts up (4 are real), 682 ports open", "8 decoy ports open",
		"-> 198.51.100.10:80          crm-1   198.51.100.66:",
		"192.0.2.200:80            kernel  192.0.2.66:", // a session beside the server's own log
		`"GET / HTTP/1.1" 200`,
		"ok    nginx", "ok    redis", "ok    sshd", "ok    udp",
		"ok    sessions", "ok    addresses", "ok    production", "ok    decoynet", "ok    host",
		"ok    branch", "ok    nodes", "ok    crm",
		"rules, as user nobody without any privilege", "  Suricata 7.", // beside gw, in the drawing
		"192.0.2.21:6379     redis  DECOY redis: data written or deleted", "198.51.100.10:2222  ssh    DECOY ssh: keys exchanged, login begins",
		"DECOY contact: connection closed without a word",
		"ok    suricata", "each at the intruder's own address and port",
		"PASS in ", ", and so did Suricata.",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the output", want)
		}
	}
	if strings.Contains(text, "\x1b") {
		t.Error("colour where no terminal is")
	}
	if !strings.HasSuffix(text, "\nNothing is left behind.\n") {
		t.Error("the last line does not say that nothing is left behind")
	}
	var s Summary
	if err := json.Unmarshal(stdout.Bytes(), &s); err != nil {
		t.Fatalf("%v: %s", err, stdout.String())
	}
	if !s.OK || s.Interrupted || s.Decoys != 276 || s.Accepted < 900 || s.Sessions < s.Accepted || len(s.Steps) != 12 {
		t.Errorf("summary: %s", stdout.String())
	}
	if s.Suricata == "" || s.Alerts < s.Sessions {
		t.Errorf("Suricata %q, %d alerts about %d sessions", s.Suricata, s.Alerts, s.Sessions)
	}
	least := map[string]int{"nginx": 288, "redis": 151, "sshd": 6, "udp": 6}
	for _, v := range s.Servers {
		if v.Peers < least[v.Server] || v.Matched != v.Peers {
			t.Errorf("server: %+v", v)
		}
		delete(least, v.Server)
	}
	if len(least) > 0 {
		t.Errorf("no verdict about %v", least)
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestSpoilt plays the demo on a gateway that masquerades: no server sees the
// intruder any more, and the demo must say so.
func TestSpoilt(t *testing.T) {
	var out strings.Builder
	summary, err := Run(within(t, 90*time.Second), Options{
		Binary: program, Out: &out, Name: freeName(t, "spoilt"), patience: time.Second,
		spoil: func(ctx context.Context, s *Stage) error {
			_, err := s.Gateway.Run(ctx, "nft", `
				add table inet spoil
				add chain inet spoil post { type nat hook postrouting priority 100; }
				add rule inet spoil post oifname br-linux ip saddr { 192.0.2.0/24, 198.51.100.0/24 } masquerade
				add rule inet spoil post oifname br-linux ip6 saddr 2001:db8::/32 masquerade`)
			return err
		},
	})
	if !errors.Is(err, ErrFailed) || summary.OK {
		t.Errorf("a masquerading gateway passes: ok %v, %v", summary.OK, err)
	}
	for _, v := range summary.Servers {
		if v.OK || v.Matched > 0 {
			t.Errorf("%s passes: %d of %d peers match", v.Server, v.Matched, v.Peers)
		}
	}
	text := out.String()
	for _, want := range []string{
		`" is about 192.0.2.66:`, "FAIL  suricata", // it saw the truth, but its word alone is not enough
		"nginx saw 10.1.0.1:", "nginx saw [fd00:1::1]:", "redis saw 10.1.0.1:", "sshd saw 10.1.0.1:",
		"but udp has not logged that peer", "nginx has not seen 198.51.100.66", "but the service answered that it sees 10.1.0.1:", "\nFAIL after ",
		// The rules are still there when decoynet has gone.
		"gw: new: table inet spoil {",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the output", want)
		}
	}
	if strings.Contains(text, "PASS") {
		t.Error("it says PASS")
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestWithoutSuricata plays the demo where decoynet finds no Suricata: it passes
// without what that would say, and tells how to get one.
func TestWithoutSuricata(t *testing.T) {
	var out strings.Builder
	var line string
	summary, err := Run(within(t, 90*time.Second), Options{
		Binary: program, Out: &out, Name: freeName(t, "blind"),
		spoil: func(ctx context.Context, s *Stage) error {
			line = s.Analysis(ctx)
			return nil
		},
		prepare: func(ctx context.Context, s *Stage) error {
			// What cannot be run is not found.
			_, err := s.Gateway.Run(ctx, "sh", "-ec", `
				touch `+commandDir+`/nothing
				mount --bind `+commandDir+`/nothing "$(readlink -f "$(command -v suricata)")"`)
			return err
		},
	})
	if err != nil || !summary.OK || summary.Suricata != "" || summary.Alerts != 0 || len(summary.Steps) != 12 {
		t.Errorf("%v: %+v", err, summary)
	}
	if !strings.HasPrefix(line, "nothing will be detected: suricata is not installed: ") {
		t.Errorf("a lab would say %q", line)
	}
	text := out.String()
	for _, want := range []string{
		"there is none, so nothing will be detected\n", "suricata is not installed: ", "--    suricata    none on this machine",
		"ok    nodes", "PASS in ", "own addresses and ports.\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the output", want)
		}
	}
	if strings.Contains(text, "What Suricata says") || strings.Contains(text, "so did Suricata") {
		t.Error("it shows what nobody said")
	}
	if t.Failed() {
		t.Log(text)
	}
}

// background starts decoynet and waits until it has written the text.
func background(t *testing.T, until string, args ...string) (*exec.Cmd, *netnstest.Buffer) {
	t.Helper()
	ctx := within(t, 90*time.Second)
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	out := &netnstest.Buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	err := lab.Eventually(ctx, 60*time.Second, func() error {
		if !strings.Contains(out.String(), until) {
			return fmt.Errorf("no %q in the output", until)
		}
		return nil
	})
	if err != nil {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		t.Fatalf("%v, %v:\n%s", err, cmd.Wait(), out)
	}
	return cmd, out
}

// TestInterrupt presses Ctrl-C in the middle of an attack.
func TestInterrupt(t *testing.T) {
	cmd, out := background(t, "nmap -sT", "demo", "--name", freeName(t, "interrupted"))
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 130 {
		t.Errorf("ended with %v, want status 130", err)
	}
	text := out.String()
	for _, want := range []string{"\ninterrupted\n", "ok    decoynet", "ok    host"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in the output", want)
		}
	}
	if !strings.HasSuffix(text, "\nNothing is left behind.\n") || strings.Contains(text, "PASS") {
		t.Error("the end is not that of an interrupted demo")
	}
	if t.Failed() {
		t.Log(text)
	}
}

// TestLab plays a person who keeps the network up and works in it from another
// terminal.
func TestLab(t *testing.T) {
	name := freeName(t, "lab")
	owner, out := background(t, "Up until Ctrl-C", "lab", "up", "--name", name)
	defer func() {
		if t.Failed() {
			_ = owner.Process.Signal(syscall.SIGTERM) // when `lab down` did not get that far
			t.Log(out)
		}
	}()
	decoynet := func(stdin string, args ...string) (string, int) {
		t.Helper()
		cmd := exec.CommandContext(within(t, 30*time.Second), program, args...)
		cmd.Stdin = strings.NewReader(stdin)
		text, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(text), cmd.ProcessState.ExitCode()
	}
	document := filepath.Join(os.TempDir(), "decoynet-lab-"+name, "gw", "office.yaml")
	in := func(machine string, argv ...string) []string {
		return append([]string{"lab", "exec", "--name", name, machine, "--"}, argv...)
	}
	for _, c := range []struct {
		what  string
		args  []string
		stdin string
		want  string // in the output
		code  int
	}{
		{"the exit status", in("intruder", "sh", "-c", "hostname; exit 7"), "", "intruder\n", 7},
		{"standard input", in("linux", "cat"), "from outside", "from outside", 0},
		{"without --", []string{"lab", "exec", "--name", name, "production", "ls", "-d", "/run/bin"}, "", "/run/bin\n", 0},
		{"decoynet's status", in("gw", "decoynet", "status"), "", "ready  node gw", 0},
		{"an intruder's tool", in("intruder", "nmap", "-n", "-sV", "-p22", "192.0.2.21"), "", "OpenSSH", 0},
		{"its session", in("gw", "decoynet", "get", "sessions"), "", "192.0.2.21:22 ", 0},
		{"the nodes", in("gw", "decoynet", "get", "nodes"), "", "crm-1  converged", 0},
		{"an intruder in the branch", in("b-intruder", "curl", "-sS", "198.51.100.10"), "", "peer 198.51.100.66 ", 0},
		{"who looks on", in("gw", "decoynet", "status"), "", "suricata 7.", 0},
		{"its alert", in("gw", "decoynet", "get", "alerts"), "", "DECOY contact: connection closed without a word", 0},
		{"the branch's alert", in("gw", "decoynet", "get", "alerts", "--source", "198.51.100.66"), "", "DECOY http: request", 0},
		{"the rules", in("gw", "decoynet", "rules", "list"), "", "14200109  3 ", 0},
		{"room for what is found", in("gw", "sh", "-c", "! decoynet doctor -c $0 | grep '^problem  *inspect'", document), "", "", 0},
		{"reload", in("gw", "decoynet", "reload"), "", "applied revision", 0},
		{"the switch", in("lan", "ip", "-br", "link", "show", "br0"), "", "br0", 0},
		{"the list", []string{"lab", "list"}, "", name + " ", 0},
		{"an unknown machine", in("printer", "true"), "", "one of lan, intruder, production, gw, linux", 2},
		{"an unknown lab", []string{"lab", "exec", "--name", "nowhere", "gw", "true"}, "", `no lab named "nowhere" is up`, 1},
		{"no command", []string{"lab", "exec", "--name", name, "gw", "--"}, "", "no command to run", 2},
		{"the same name again", []string{"lab", "up", "--name", name}, "", "is up already", 1},
	} {
		// Again where it has to: a session may be listed a moment late.
		err := lab.Eventually(t.Context(), 3*time.Second, func() error {
			text, code := decoynet(c.stdin, c.args...)
			if code != c.code || !strings.Contains(text, c.want) {
				return fmt.Errorf("status %d, %q; want %d and %q", code, text, c.code, c.want)
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dataDir, "decoynet.db")); err == nil {
		t.Errorf("the lab's sessions are in the host's %s", dataDir)
	}
	// One session whole, and its packets, by what an alert names.
	text, _ := decoynet("", in("gw", "sh", "-ec", `
		id=$(decoynet get alerts --source 198.51.100.66 -o json | tail -n 1 | sed 's/.*"decoynet.session":"\([^"]*\)".*/\1/')
		decoynet session $id
		decoynet pcap $id | tcpdump -nr -`)...)
	for _, want := range []string{"ALERT     severity 3", "198.51.100.66.", "> 198.51.100.10.80: Flags [S]", "GET / HTTP/1.1"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	if text, code := decoynet("", "lab", "down", "--name", name); code != 0 {
		t.Errorf("lab down: status %d, %s", code, text)
	}
	if err := owner.Wait(); err != nil {
		t.Errorf("the owner ended with %v", err)
	}
}
