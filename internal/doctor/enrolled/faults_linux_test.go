package enrolled_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/internal/lab"
)

// TestFaults breaks one thing after the other around an agent that runs.
func TestFaults(t *testing.T) {
	t.Parallel()
	p := newPatient(t)

	// Before it ran once.
	list := p.findings(agentUser, "")
	must(t, list, "agent", "no decoynet runs", "decoynet up --data "+p.data)
	must(t, list, "snapshot", "has not had its part", "decoynet up")
	p.up()
	list = p.findings(agentUser, "")
	healthy(t, list)
	t.Logf("a healthy node:\n%s", text(list))

	for _, f := range []struct {
		name             string
		on               *lab.Machine
		do, undo         string
		environment      string
		check, what, fix string
		well             string // a check that is not to find anything
	}{
		{
			name: "gateway's port closed", on: p.Gateway,
			do:    "nft 'table inet f { chain in { type filter hook input priority 0; tcp dport 7444 reject with tcp reset; }; }'",
			undo:  "nft delete table inet f",
			check: "gateway", what: "nothing listens at 192.0.2.5:7444", fix: "decoynet status", well: "controller",
		},
		{
			name: "gateway's port filtered", on: p.Router, do: "nft insert rule ip branch through tcp dport 7444 drop", undo: "nft flush chain ip branch through; " + letThrough,
			check: "gateway", what: "(the controller is reached)", fix: "decoynet proxy http://", well: "controller",
		},
		{
			name: "controller's port closed", on: p.Gateway,
			do:    "nft 'table inet f { chain in { type filter hook input priority 0; tcp dport 7443 reject with tcp reset; }; }'",
			undo:  "nft delete table inet f",
			check: "controller", what: "nothing listens at 192.0.2.5:7443", fix: "systemctl start decoynet", well: "gateway",
		},
		{
			name: "no route", on: p.Server, do: "ip route del default", undo: "ip route add default via 198.51.100.1",
			check: "controller", what: "no route to", fix: "ip route add default via",
		},
		{
			name: "no name", on: p.Server,
			do:    "cp -p " + p.data + "/identity.json /run/keep; sed -i s/192.0.2.5:7443/hq.invalid:7443/ " + p.data + "/identity.json",
			undo:  "cp -p /run/keep " + p.data + "/identity.json",
			check: "controller", what: "hq.invalid", fix: "nslookup hq.invalid", well: "gateway",
		},
	} {
		t.Run(f.name, func(t *testing.T) {
			p.t = t
			p.run(f.on, f.do)
			list := p.findings(agentUser, f.environment)
			must(t, list, f.check, f.what, f.fix)
			if f.well != "" {
				gone(t, list, f.well)
			}
			p.run(f.on, f.undo)
			gone(t, p.findings(agentUser, ""), f.check)
		})
	}
	p.t = t
	p.eventually("all is well again", func() error {
		if list := p.findings(agentUser, ""); find(list, "agent") != nil {
			return fmt.Errorf("problems:\n%s", text(list))
		}
		return nil
	}, p.agent)

	t.Run("revoked", func(t *testing.T) {
		p.t = t
		p.run(p.Gateway, "decoynet node revoke crm-1 --data "+p.hqData)
		list := p.findings(agentUser, "")
		found := must(t, list, "controller", "was revoked at", "decoynet token create --node crm-1")
		if !strings.Contains(found.On, "the controller") {
			t.Errorf("the fix belongs on %q", found.On)
		}
		must(t, list, "gateway", "", "decoynet status")
	})
}

// letThrough is the rest of what the router's chain holds.
const letThrough = `nft add rule ip branch through ct state established,related accept; nft add rule ip branch through iifname eth1 accept`

// TestProxy takes the direct way out away and leaves a proxy of others.
func TestProxy(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.up()
	const at = "198.51.100.1:8888"
	p.tinyproxy("")
	p.run(p.Router, "nft insert rule ip branch through iifname eth1 drop")

	// No proxy is known: both ways out are named.
	list := p.findings(agentUser, "")
	must(t, list, "controller", "did not answer in time", "decoynet proxy http://USER:PASSWORD@PROXY:3128")
	// The shell knows one.
	const variable = "HTTPS_PROXY=http://" + at
	list = p.findings(agentUser, variable)
	found := must(t, list, "controller", "through the proxy "+at+" that HTTPS_PROXY names", `decoynet proxy "$HTTPS_PROXY" --data `)
	p.run(p.Server, variable+"; "+found.Fix) // as root: the agent's user must still be able to read it
	list = p.findings(agentUser, "")
	gone(t, list, "controller")
	gone(t, list, "gateway")
	check(t, p.agent.Stop(t.Context()))
	p.up()
	p.healthyAtLast()

	for _, f := range []struct{ name, options, what, fix, on string }{
		{"password wanted", "BasicAuth joe s3cret", "407", "decoynet proxy http://USER:PASSWORD@" + at, ""},
		{"ports forbidden", "ConnectPort 443", "403", "allow CONNECT to 192.0.2.5:744", "the proxy " + at},
	} {
		t.Run(f.name, func(t *testing.T) {
			p.t = t
			p.tinyproxy(f.options)
			if found := must(t, p.findings(agentUser, ""), "proxy", f.what, f.fix); found.On != f.on {
				t.Errorf("the fix belongs on %q, want %q", found.On, f.on)
			}
		})
	}
	p.t = t
	p.tinyproxy("BasicAuth joe s3cret")
	p.run(p.Server, agentUser+"decoynet proxy http://joe:s3cret@"+at+" --data "+p.data)
	list = p.findings(agentUser, "")
	gone(t, list, "proxy")
	gone(t, list, "controller")
	if strings.Contains(text(list), "s3cret") {
		t.Errorf("the doctor tells the password:\n%s", text(list))
	}
	p.run(p.Server, agentUser+"decoynet proxy http://198.51.100.1:9 --data "+p.data)
	must(t, p.findings(agentUser, ""), "proxy", "cannot be reached", "decoynet proxy http://")
	p.run(p.Server, agentUser+"decoynet proxy none --data "+p.data)
	must(t, p.findings(agentUser, ""), "controller", "did not answer in time", "decoynet proxy http://")
}

// tinyproxy starts Debian's proxy on the branch's router, in place of the last one.
func (p *patient) tinyproxy(options string) {
	p.t.Helper()
	conf := filepath.Join(p.t.TempDir(), "conf")
	check(p.t, os.WriteFile(conf, []byte("Port 8888\nListen 198.51.100.1\nTimeout 600\nMaxClients 50\n"+options+"\n"), 0o644))
	if p.proxy != nil {
		check(p.t, p.proxy.Kill())
	}
	p.eventually("tinyproxy listens", func() error {
		var err error
		if p.proxy, err = p.Router.Start("tinyproxy", "-d", "-c", conf); err != nil {
			return err
		}
		return lab.Eventually(p.t.Context(), 3*time.Second, func() error {
			c, err := p.Server.Dial(p.t.Context(), "tcp", "198.51.100.1:8888")
			if err == nil {
				err = c.Close()
			}
			return err
		})
	}, nil)
}

// TestPorts has the machine's own service on a decoy's port, and no privilege.
func TestPorts(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.up()
	check(t, p.agent.Stop(t.Context()))
	own, err := p.Server.Listen(t.Context(), "tcp", "198.51.100.10:6379")
	check(t, err)
	defer own.Close()

	list := p.findings(nobody, "")
	must(t, list, "port", "port 6379/tcp of decoy crm is in use on", "leave 6379/tcp out of decoy crm")
	denied := must(t, list, "privilege", "without CAP_NET_BIND_SERVICE: 80/tcp", "sudo setcap cap_net_bind_service=+ep "+p.binary)

	// Root may see whose the port is.
	mine, err := os.ReadFile("/proc/self/comm")
	check(t, err)
	must(t, p.findings("", ""), "port", fmt.Sprintf("by %s (pid %d)", strings.TrimSpace(string(mine)), os.Getpid()), "stop")

	p.run(p.Server, strings.TrimPrefix(denied.Fix, "sudo "))
	gone(t, p.findings(nobody, ""), "privilege")

	// The running agent says the same, and takes the port when it is free.
	p.start()
	p.eventually("the agent names the port", func() error {
		if list := p.findings(agentUser, ""); find(list, "port") == nil {
			return fmt.Errorf("findings:\n%s", text(list))
		}
		return nil
	}, p.agent)
	must(t, p.findings(agentUser, ""), "port", "port 6379/tcp of decoy crm is in use on", "leave 6379/tcp")
	check(t, own.Close())
	p.eventually("the port is the decoy's", func() error {
		if list := p.findings(agentUser, ""); find(list, "port") != nil {
			return fmt.Errorf("findings:\n%s", text(list))
		}
		return nil
	}, p.agent)
	p.healthyAtLast()
}

// TestDataDirectory fills the disk, and makes it read-only.
func TestDataDirectory(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.run(p.Server, fmt.Sprintf(`set -e; cp -a %[1]s %[1]s.keep; mount -t tmpfs -o size=400m none %[1]s
		chown 65534:65534 %[1]s; chmod 700 %[1]s; cp -a %[1]s.keep/. %[1]s`, p.data))
	p.up()
	p.healthyAtLast()

	p.run(p.Server, "head -c 400m /dev/zero > "+p.data+"/fill || true")
	must(t, p.findings(agentUser, ""), "data", "the disk is full", "du -xh ")
	p.run(p.Server, "rm "+p.data+"/fill")
	gone(t, p.findings(agentUser, ""), "data")

	p.run(p.Server, "chown 0 "+p.data+" && chmod 755 "+p.data)
	must(t, p.findings(agentUser, ""), "data", "permission denied", "chown -R")
	p.run(p.Server, "chown 65534 "+p.data+" && chmod 700 "+p.data)

	check(t, p.agent.Stop(t.Context()))
	p.run(p.Server, "mount -o remount,ro "+p.data)
	found := must(t, p.findings(agentUser, ""), "data", "read-only file system", "remount,rw")
	p.run(p.Server, found.Fix)
	gone(t, p.findings(agentUser, ""), "data")

	p.run(p.Server, "chmod 644 "+p.data+"/key.pem")
	found = must(t, p.findings(agentUser, ""), "identity", "others may read", "chmod 600 ")
	p.run(p.Server, found.Fix)
	gone(t, p.findings(agentUser, ""), "identity")
	p.run(p.Server, `printf "\377\377" > `+p.data+"/snapshot.pb")
	found = must(t, p.findings(agentUser, ""), "snapshot", "damaged", "rm ")
	p.run(p.Server, found.Fix)
	must(t, p.findings(agentUser, ""), "snapshot", "has not had its part", "decoynet up")
	p.run(p.Server, "umount "+p.data)
}
