package outbound

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// tinyproxy starts Debian's proxy on loopback with the options and returns its
// address and what it has logged so far.
func tinyproxy(t testing.TB, options string) (at string, logged func() string) {
	t.Helper()
	dir := t.TempDir()
	logFile := filepath.Join(dir, "log")
	for range 5 {
		// It takes no port 0. A port that was free a moment ago nearly always still
		// is; where not, tinyproxy ends and another one is tried.
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		conf := filepath.Join(dir, "conf")
		text := fmt.Sprintf("Port %d\nListen 127.0.0.1\nTimeout 60\nLogFile \"%s\"\nLogLevel Info\nMaxClients 20\n%s\n", port, logFile, options)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("tinyproxy", "-d", "-c", conf)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := cmd.Start(); err != nil {
			t.Fatalf("start tinyproxy: %v", err)
		}
		ended := make(chan struct{})
		go func() { cmd.Wait(); close(ended) }()
		stop := func() { cmd.Process.Kill(); <-ended }
		at = fmt.Sprintf("127.0.0.1:%d", port)
		if listens(at, ended) {
			t.Cleanup(stop)
			return at, func() string { b, _ := os.ReadFile(logFile); return string(b) }
		}
		stop()
	}
	b, _ := os.ReadFile(logFile)
	t.Fatalf("tinyproxy does not start: %s", b)
	return "", nil
}

func listens(at string, ended chan struct{}) bool {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("tcp", at); err == nil {
			c.Close()
			return true
		}
		select {
		case <-ended:
			return false
		default:
		}
	}
	return false
}

// TestTinyproxy goes through a proxy that others wrote.
func TestTinyproxy(t *testing.T) {
	v4, v6 := serve(t, "127.0.0.1:0", greeter), serve(t, "[::1]:0", greeter)
	_, port, _ := net.SplitHostPort(v4)
	byName := net.JoinHostPort("localhost", port)
	gone := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}()

	t.Run("open", func(t *testing.T) {
		at, logged := tinyproxy(t, "")
		for _, target := range []string{v4, v6, byName} {
			if err := echoOnce(t.Context(), dialer(t, "http://"+at), target, 1); err != nil {
				t.Errorf("%s: %v", target, err)
			}
			// The proxy's own word that the connection went through it.
			mentions(t, "tinyproxy's log", logged(), "CONNECT "+target+" HTTP/1.1")
		}
		_, err := dialer(t, "http://"+at).DialContext(t.Context(), "tcp", gone)
		explained(t, err, StageRefused, "it could not reach it")
	})
	t.Run("password", func(t *testing.T) {
		at, _ := tinyproxy(t, "BasicAuth joe s3cret")
		if err := echoOnce(t.Context(), dialer(t, "http://joe:s3cret@"+at), v4, 1); err != nil {
			t.Error(err)
		}
		_, err := dialer(t, "http://"+at).DialContext(t.Context(), "tcp", v4)
		explained(t, err, StageRefused, "wants a user and password")
		_, err = dialer(t, "http://joe:wrong@"+at).DialContext(t.Context(), "tcp", v4)
		explained(t, err, StageRefused, "user or password in the proxy's URL are wrong")
	})
	t.Run("ports", func(t *testing.T) {
		at, _ := tinyproxy(t, "ConnectPort 443")
		_, err := dialer(t, "http://"+at).DialContext(t.Context(), "tcp", v4)
		explained(t, err, StageRefused, "allow CONNECT to this address and port")
	})
	t.Run("many", func(t *testing.T) {
		at, _ := tinyproxy(t, "")
		d := dialer(t, "http://"+at)
		ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
		defer cancel()
		results := make(chan error, 64)
		for n := range cap(results) {
			go func() { results <- echoOnce(ctx, d, v4, n) }()
		}
		for range cap(results) {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
	})
}

// echoOnce sends a text of its own to a greeter and wants it back. It does not
// close its direction before that: tinyproxy takes a FIN for the end of both.
func echoOnce(ctx context.Context, d *Dialer, target string, n int) error {
	c, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * patience))
	text := strings.Repeat(fmt.Sprintf("flow %d\n", n), 1000)
	sent := make(chan error, 1)
	go func() {
		_, err := io.WriteString(c, text)
		sent <- err
	}()
	want := "hello\n" + text
	got := make([]byte, len(want))
	n, err = io.ReadFull(c, got)
	if err := errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", n, len(want), err)
	}
	if string(got) != want {
		return fmt.Errorf("another flow's bytes: %q", got[:80])
	}
	return nil
}
