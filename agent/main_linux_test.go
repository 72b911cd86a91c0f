package agent

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"go.uber.org/goleak"
)

// roleVar makes the test binary a process of another kind.
const roleVar = "DECOYNET_AGENT_TEST_ROLE"

// roles are the other kinds of process.
var roles = map[string]func() error{"machine": runTests, "listen": listenRole, "mirror": mirrorRole}

// testMachine is what the tests' own network namespace has beside loopback.
var testMachine = [][]string{
	{"link", "set", "lo", "up"},
	{"link", "add", "eth0", "type", "veth", "peer", "name", "far"},
	{"link", "set", "eth0", "up"},
	{"link", "set", "far", "up"},
	{"addr", "add", "192.0.2.7/24", "brd", "+", "dev", "eth0"},
	{"addr", "add", "192.0.2.8/24", "dev", "eth0"},
	{"addr", "add", "2001:db8::7/64", "dev", "eth0", "nodad"},
}

var tests *testing.M

// TestMain runs the tests in a network namespace of their own: their ports are
// given, and nobody else's.
func TestMain(m *testing.M) {
	tests = m
	role, ok := roles[os.Getenv(roleVar)]
	if !ok {
		role = inNamespace
	}
	if err := role(); err != nil {
		if ended, ok := err.(*exec.ExitError); ok { // of inNamespace: it has said all
			os.Exit(ended.ExitCode())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// inNamespace starts this binary anew in a network namespace.
func inNamespace() error {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), roleVar+"=machine")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	return cmd.Run()
}

func runTests() error {
	if err := os.Unsetenv(roleVar); err != nil {
		return err
	}
	for _, args := range testMachine {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
	}
	goleak.VerifyTestMain(tests)
	return nil
}
