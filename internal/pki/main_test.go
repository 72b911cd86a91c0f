package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// roleVar makes the test binary a process of another kind.
const roleVar = "DECOYNET_PKI_TEST_ROLE"

// roles are the other kinds of process; a file of one system adds its own.
var roles = map[string]func() error{}

func TestMain(m *testing.M) {
	name := os.Getenv(roleVar)
	if name == "" {
		goleak.VerifyTestMain(m)
		return
	}
	if err := roles[name](); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// role prepares a run of the test binary in another role, with the directory as
// its only argument.
func role(t testing.TB, name, dir string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self, dir)
	cmd.Env = append(os.Environ(), roleVar+"="+name)
	return cmd
}

// patience bounds every wait: a loaded machine takes its time.
const patience = 20 * time.Second

// makeCA makes a CA that is a quarter of a year old.
func makeCA(t testing.TB) *CA {
	t.Helper()
	ca, err := newCA(func() time.Time { return time.Now().Add(-90 * 24 * time.Hour) })
	if err != nil {
		t.Fatal(err)
	}
	ca.now = time.Now
	return ca
}

// enrol makes the identity of a node as enrolment does; made is when it was signed.
func enrol(t testing.TB, ca *CA, node string, generation uint32, made time.Time) *Identity {
	t.Helper()
	key, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	der, err := ca.SignNode(csr, node, generation, 0, made)
	if err != nil {
		t.Fatal(err)
	}
	i, err := NewIdentity(IdentityConfig{
		Key: key, Certificate: der, CA: ca.Certificate().Raw,
		Controllers: []string{"https://hq.example.com:7443"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// shook is what both sides know after a handshake and one byte each way.
type shook struct {
	client, server           error
	clientState, serverState tls.ConnectionState
}

// shake makes a connection over loopback. The client also reads one byte, since
// with TLS 1.3 it learns only then that the server refused it.
func shake(t testing.TB, server, client *tls.Config) shook {
	t.Helper()
	l := listen(t)
	var out shook
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			out.server = err
			return
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(patience))
		c := tls.Server(raw, server)
		if out.server = c.Handshake(); out.server != nil {
			return
		}
		out.serverState = c.ConnectionState()
		var b [1]byte
		if _, err := io.ReadFull(c, b[:]); err != nil {
			out.server = err
			return
		}
		c.Write(b[:])
		c.Read(b[:])
	}()
	out.client = func() error {
		raw, err := net.DialTimeout("tcp", l.Addr().String(), patience)
		if err != nil {
			return err
		}
		defer raw.Close()
		raw.SetDeadline(time.Now().Add(patience))
		c := tls.Client(raw, client)
		if err := c.Handshake(); err != nil {
			return err
		}
		out.clientState = c.ConnectionState()
		c.Write([]byte{1})
		var b [1]byte
		_, err = io.ReadFull(c, b[:])
		return err
	}()
	select {
	case <-done:
	case <-time.After(2 * patience):
		t.Fatal("the server's side does not end")
	}
	return out
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// openssl runs it and returns what it prints.
func openssl(t testing.TB, input string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "openssl", args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run openssl: %v", err)
	}
	return string(out), err
}

// resign makes a certificate of the CA that SignNode would never make.
func resign(t testing.TB, ca *CA, change func(*x509.Certificate)) *tls.Certificate {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{Subject: subject("odd"), ExtKeyUsage: []x509.ExtKeyUsage{
		x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth,
	}}
	change(template)
	der, err := ca.sign(template, &key.PublicKey, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return keyPair(key, leaf)
}

// mentions fails where a text lacks one of the parts.
func mentions(t testing.TB, what, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%s: %q does not say %q", what, text, p)
		}
	}
}
