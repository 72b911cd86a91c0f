//go:build linux

package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"decoynet/internal/lab"
	"decoynet/internal/pki"
)

// TestBadInput sends to the open ports of controller and gateway what is no
// request: each is turned away in time, and nobody else is disturbed.
func TestBadInput(t *testing.T) {
	t.Parallel()
	b := newManagedBranch(t)
	client, service, source := b.converse() // runs through all below, and at least one comparison of everything with the kernel
	var random strings.Builder
	for i := range 4096 {
		random.WriteByte(byte(i*i*31 + i*7 + i>>3))
	}
	var all sync.WaitGroup
	for _, port := range []string{"7443", "7444"} {
		for _, c := range []struct{ name, said, answer string }{
			{"garbage", random.String(), ""},
			{"half a TLS record", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", ""},
			{"nothing", "", ""},
			{"HTTP", "GET / HTTP/1.1\r\nHost: 192.0.2.5\r\n\r\n", map[string]string{"7443": "HTTPS server"}[port]},
			{"a PROXY header", "PROXY TCP4 198.51.100.66 10.1.0.2 4711 80\r\nGET / HTTP/1.0\r\n\r\n", ""},
		} {
			all.Go(func() {
				began := time.Now()
				answer, err := exchangeWith(t.Context(), b.office.Intruder, "192.0.2.5:"+port, c.said)
				t.Logf("%s to %s: closed after %v, answer %.60q", c.name, port, time.Since(began).Round(time.Millisecond), answer)
				if err != nil || c.answer != "" && !strings.Contains(answer, c.answer) || len(answer) > 300 {
					t.Errorf("%s to %s: the answer is %q, %v", c.name, port, answer, err)
				}
			})
		}
	}
	all.Wait()
	b.wantEvent("peer-refused", func(e event) bool { return e.Node == "hq" && e.SourceIP == lab.OfficeIntruder.V4.String() })
	if s := b.recorded(source, func(*record) bool { return true }); s.EndReason != "" {
		t.Errorf("the flow that ran meanwhile ended: %s", s.EndReason)
	}
	exchange(t, client, service)
	check(t, b.curl())
	st, err := b.linked()
	check(t, err)
	if st.Ingress.Refused["connection"] < 4 {
		t.Errorf("status counts refusals %v", st.Ingress.Refused)
	}
}

// exchangeWith says something to a port and returns the answer once the other
// side has closed, which it has to do by itself.
func exchangeWith(ctx context.Context, from *lab.Machine, at, said string) (string, error) {
	conn, err := from.Dial(ctx, "tcp", at)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return "", err
	}
	_, _ = io.WriteString(conn, said) // it may close before all is said
	answer, err := io.ReadAll(conn)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "", fmt.Errorf("the connection is kept: %w", err)
	}
	return string(answer), nil // a reset is an end as well
}

// TestForeignCertificates has somebody with certificates of another controller
// knock, and a machine be sent to the wrong controller.
func TestForeignCertificates(t *testing.T) {
	t.Parallel()
	b := newManagedBranch(t)
	_, foreign := foreignIdentity(t, "crm-1")

	// The gateway's side: a name alone opens nothing.
	conn, err := b.Branch.Intruder.Dial(t.Context(), "tcp", "192.0.2.5:7444")
	check(t, err)
	defer conn.Close()
	check(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	cfg := foreign.GatewayTLS("hq")
	cfg.InsecureSkipVerify, cfg.VerifyConnection, cfg.VerifyPeerCertificate = true, nil, nil
	client := tls.Client(conn, cfg)
	if err = client.Handshake(); err == nil {
		_, err = client.Read(make([]byte, 1)) // TLS 1.3 refuses a certificate after the client's handshake
	}
	if err == nil {
		t.Error("the gateway takes a certificate of another controller's CA")
	}
	if text := pki.Explain(err); !strings.Contains(text, "certificate") && !strings.Contains(text, "CA") {
		t.Errorf("the client learns %q", text)
	}
	e := b.wantEvent("peer-refused", func(e event) bool { return strings.Contains(e.Message, "CA") })
	t.Logf("event: %s", e.Message)

	// The client's side: another controller's files, this one's gateway.
	dir := filepath.Join(t.TempDir(), "stray")
	check(t, os.MkdirAll(dir, 0o700))
	check(t, foreign.Save(dir))
	stray, err := b.Branch.Intruder.Start(binary, "up", "--data", dir, "-v")
	check(t, err)
	eventually(t, 15*time.Second, func() error {
		st, err := readStatus(b.Branch.Intruder.Run(t.Context(), binary, "status", "-o", "json", "--data", dir))
		if err == nil && !strings.Contains(strings.Join(st.Problems, "\n"), "another") {
			err = errors.New("status says " + strings.Join(st.Problems, "\n"))
		}
		return err
	})
	check(t, stray.Stop(t.Context()))
	check(t, b.curl())
}

// foreignIdentity makes a node of a controller that nobody knows.
func foreignIdentity(t *testing.T, node string) (*pki.CA, *pki.Identity) {
	t.Helper()
	ca, err := pki.NewCA()
	check(t, err)
	key, csr, err := pki.NewRequest()
	check(t, err)
	der, err := ca.SignNode(csr, node, 1, time.Hour, time.Now())
	check(t, err)
	identity, err := pki.NewIdentity(pki.IdentityConfig{
		Key: key, Certificate: der, CA: ca.Certificate().Raw, Controllers: []string{"https://192.0.2.5:7443"},
	})
	check(t, err)
	return ca, identity
}

// TestJoinRefused tries join tokens that are used, expired and forged, and pins
// of another controller.
func TestJoinRefused(t *testing.T) {
	t.Parallel()
	b := newBranch(t)
	b.document(branchDocument)
	b.up()
	join := func(words []string) error {
		_, err := b.Server.Run(t.Context(), binary, append(words, "--data", filepath.Join(t.TempDir(), "node"))...)
		return err
	}
	token := func(words []string) int {
		for i, w := range words {
			if w == "--token" {
				return i + 1
			}
		}
		t.Fatalf("no token in %q", words)
		return 0
	}

	used := b.joinCommand("crm-1")
	check(t, join(used))
	wantFailure(t, join(used), 1, "refuse", "used", "token create")

	expired := b.joinCommand("crm-1", "--ttl", "1s")
	time.Sleep(1500 * time.Millisecond) // until it has expired, by the controller's clock
	wantFailure(t, join(expired), 1, "refuse", "expired", "token create")

	forged := b.joinCommand("crm-1")
	at := token(forged)
	good := forged[at]
	last := "a"
	if strings.HasSuffix(good, last) {
		last = "b"
	}
	for _, bad := range []string{good[:len(good)-2] + last + last, "letmein", strings.Repeat("x", 4000)} {
		forged[at] = bad
		wantFailure(t, join(forged), 1, "refuse", "token")
	}

	astray := b.joinCommand("crm-1")
	ca, _ := foreignIdentity(t, "crm-1")
	for i, w := range astray {
		if strings.HasPrefix(w, "sha256:") {
			astray[i] = ca.Pin()
		}
	}
	wantFailure(t, join(astray), 1, "pin")

	e := b.wantEvent("enrol-refused", func(e event) bool { return strings.Contains(e.Message, "expired") })
	if !strings.Contains(e.Message, lab.BranchOutside.String()) {
		t.Errorf("the event is %+v", e)
	}
	for _, why := range []string{"used", "expired"} {
		b.wantAudit(`EnrolmentService/Enrol"`, `"denied"`, why)
	}
	// What was forged and refused can still be used by who has it right.
	forged[at] = good
	check(t, join(forged))
}
