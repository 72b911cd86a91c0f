package lab_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"

	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
)

// role makes the test binary stand for another process: an owner of a lab, or
// somebody who attaches to one.
const role = "LAB_TEST_ROLE"

var roles = map[string]func(args []string) error{
	"owner": func(args []string) error { return own(args[0], nil) },
	"stubborn": func(args []string) error {
		signal.Ignore(syscall.SIGTERM)
		return own(args[0], nil)
	},
	"panicking": func(args []string) error {
		return own(args[0], func() { panic("as told") })
	},
	"attached": attached,
	"nobody": func([]string) error {
		_, err := lab.New("")
		return err
	},
}

func TestMain(m *testing.M) {
	if name := os.Getenv(role); name != "" {
		if err := roles[name](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	labtest.Main(m)
}

// own builds a lab with a daemon that hides as well as it can, says so, and
// waits for the worst.
func own(name string, then func()) error {
	l, err := lab.New(name)
	if err != nil {
		return err
	}
	m := l.Machine("a")
	if err := l.Err(); err != nil {
		return err
	}
	if err := hide(m); err != nil {
		return err
	}
	fmt.Println("up")
	if then != nil {
		then()
	}
	for { // not select {}: with the last process of the lab gone the runtime would call that a deadlock
		time.Sleep(time.Hour)
	}
}

// hide leaves a process in the machine that has another parent, session,
// environment, user and network and mount namespace than what started it.
func hide(m *lab.Machine) error {
	_, err := m.Run(context.Background(), "sh", "-c", `ip netns add inner &&
		ip netns exec inner env -i /usr/bin/setsid -f /usr/bin/setpriv --reuid 65534 --clear-groups /bin/sleep 3600 >/dev/null 2>&1 </dev/null`)
	return err
}

func attached(args []string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	l, err := lab.Attach(args[0])
	if err != nil {
		return err
	}
	m, ok := l.Lookup(args[1])
	if !ok {
		return fmt.Errorf("no machine %s in %v", args[1], l.Machines())
	}
	out, err := m.Run(ctx, args[2], args[3:]...)
	fmt.Print(out)
	if err != nil {
		return err
	}
	return l.Close()
}

// other prepares another process with the role.
func other(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), role+"="+name)
	return cmd
}

// startOwner starts another process that has the lab up when this returns.
func startOwner(t *testing.T, kind, name string) *exec.Cmd {
	t.Helper()
	cmd := other(t, kind, name)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if line != "up\n" {
		t.Fatalf("the owner said %q (%v): %v: %s", line, err, cmd.Wait(), stderr.String())
	}
	return cmd
}
