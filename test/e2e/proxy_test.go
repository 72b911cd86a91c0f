//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"
)

// proxyConfig allows CONNECT to the controller's and the gateway's port, for
// who knows the password.
const proxyConfig = `Port 3128
Listen 198.51.100.1
Timeout 600
MaxClients 20
LogLevel Connect
BasicAuth branch se-cret
ConnectPort 7443
ConnectPort 7444
`

// startProxy starts tinyproxy on the branch's router.
func (b *branch) startProxy(config string) *lab.Process {
	b.t.Helper()
	p, err := b.Router.Start("tinyproxy", "-d", "-c", config)
	check(b.t, err)
	eventually(b.t, 10*time.Second, func() error {
		conn, err := b.Router.Dial(b.t.Context(), "tcp", "198.51.100.1:3128")
		if err != nil {
			return errors.Join(err, errors.New(p.Log()))
		}
		return conn.Close()
	})
	return p
}

// closeBranch leaves the branch no way out but the proxy.
func (b *branch) closeBranch() {
	b.t.Helper()
	cmd := b.Router.Command(b.t.Context(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader("flush ruleset\ntable inet closed { chain through { type filter hook forward priority filter; policy drop; }; }\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("close the branch's router: %v: %s", err, out)
	}
}

// TestProxy has an agent whose only way out is an HTTP proxy with a password.
func TestProxy(t *testing.T) {
	t.Parallel()
	b := newBranch(t)
	b.closeBranch()
	config := filepath.Join(t.TempDir(), "tinyproxy.conf")
	check(t, os.WriteFile(config, []byte(proxyConfig), 0o600))
	proxy := b.startProxy(config)
	b.document(branchDocument)
	b.up()

	// Before the right one, those that a person at the console would try.
	for _, c := range []struct {
		proxy string
		says  string
	}{
		{"", "192.0.2.5:7443"},
		{"http://198.51.100.1:3128", "407"},
		{"http://branch:wrong@198.51.100.1:3128", ""},
		{"http://198.51.100.1:3129", "198.51.100.1:3129"},
	} {
		args := b.joinCommand("crm-1")
		if c.proxy != "" {
			args = append(args, "--proxy", c.proxy)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // dropped packets are not answered
		_, err := b.Server.Run(ctx, binary, append(args, "--data", filepath.Join(t.TempDir(), "refused"))...)
		cancel()
		if err == nil || c.proxy != "" && !strings.Contains(err.Error(), c.says) {
			t.Errorf("join by %q: %v", c.proxy, err)
		}
	}

	b.join("--proxy", "http://branch:se-cret@198.51.100.1:3128")
	b.startAgent()
	b.waitAgent()
	b.testWeb()
	b.testSSH()
	b.testUDP()

	check(t, proxy.Kill())
	eventually(t, 20*time.Second, func() error {
		st, err := readStatus(b.agentRun("status", "-o", "json"))
		if err == nil && (len(st.Gateways) != 1 || st.Gateways[0].Connected || !strings.Contains(st.Gateways[0].Error, "proxy")) {
			err = fmt.Errorf("without the proxy, gateways are %+v", st.Gateways)
		}
		return err
	})
	b.startProxy(config)
	began := time.Now()
	b.waitMet(b.places()[0])
	eventually(t, 20*time.Second, b.curl)
	t.Logf("flows get through %v after the proxy is back", time.Since(began).Round(time.Millisecond))
	b.testWeb()
	b.testUDP()
}
