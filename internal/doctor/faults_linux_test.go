package doctor_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"decoynet/internal/doctor"
	"decoynet/internal/lab"
)

// fault is something that is broken on a machine, and the finding that must
// come of it. The printed fix, run as it is, must make the finding go.
type fault struct {
	name string
	on   func(*patient) *lab.Machine // nil: the gateway
	do   string
	undo string // what do has changed besides what the fix mends

	check, subject string
	severity       doctor.Severity // "": a problem
	what           string          // part of the finding's text
	fix            string          // part of the fix
	fixOn          func(*patient) *lab.Machine
	// mended says that decoynet itself puts it right now and then (every ten
	// seconds), perhaps before the doctor has looked: then it is done again.
	mended bool
}

func linux(p *patient) *lab.Machine   { return p.Linux }
func gateway(p *patient) *lab.Machine { return p.Gateway }

func (p *patient) suffers(t *testing.T, f fault) {
	t.Helper()
	p.t = t
	if f.on == nil {
		f.on = gateway
	}
	if f.fixOn == nil {
		f.fixOn = gateway
	}
	if f.severity == "" {
		f.severity = doctor.Problem
	}
	p.run(f.on(p), f.do)
	list := p.findings("")
	for range 3 {
		if !f.mended || find(list, f.check, f.subject) != nil {
			break
		}
		p.run(f.on(p), f.do)
		list = p.findings("")
	}
	found := p.must(list, f.severity, f.check, f.subject)
	if !strings.Contains(found.What, f.what) || !strings.Contains(found.Fix, f.fix) {
		t.Errorf("found %q, fix %q; want %q, fix %q", found.What, found.Fix, f.what, f.fix)
	}
	if local := f.fixOn(p) == p.Gateway; local != (found.On == "") {
		t.Errorf("the fix belongs on %q", found.On)
	}
	p.run(f.fixOn(p), found.Fix)
	after := p.findings("")
	p.gone(after, f.check, f.subject)
	p.healthy(after)
	if f.undo != "" {
		p.run(f.on(p), f.undo)
	}
}

// TestFaultsOfTheKernelPath breaks what only the kernel path needs.
func TestFaultsOfTheKernelPath(t *testing.T) {
	t.Parallel()
	p := newPatient(t, kernel)
	p.up()
	for _, f := range []fault{
		{
			name: "forwarding off", do: "sysctl -qw net.ipv4.ip_forward=0",
			check: "forwarding", subject: "br-linux", what: "IPv4", fix: "net.ipv4.conf.br-linux.forwarding=1",
			undo: "sysctl -qw net.ipv4.ip_forward=1",
		},
		{
			name: "IPv6 forwarding off", do: "sysctl -qw net.ipv6.conf.all.forwarding=0",
			check: "forwarding", subject: "br-linux", what: "IPv6", fix: "forwarding=1",
			undo: "sysctl -qw net.ipv6.conf.all.forwarding=1",
		},
		{
			name: "iptables drops", do: "sysctl -qw net.bridge.bridge-nf-call-iptables=0; iptables -P FORWARD DROP",
			check: "filter", subject: "br-linux", what: "chain ip filter FORWARD", fix: "iptables -I FORWARD -i dnv-+ -o br-linux -j ACCEPT",
			undo: "iptables -F; iptables -P FORWARD ACCEPT",
		},
		{
			name: "Docker's rules",
			do: `iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN; iptables -A FORWARD -j DOCKER-USER
				iptables -A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
				iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT; iptables -A FORWARD -i docker0 -o docker0 -j ACCEPT`,
			check: "filter", subject: "br-linux", what: "chain ip filter FORWARD", fix: "iptables -I DOCKER-USER -i dnv-+ -o br-linux -j ACCEPT",
			undo: "iptables -P FORWARD ACCEPT; iptables -F; iptables -X",
		},
		{
			name: "answers dropped", do: "ip6tables -A FORWARD -o dnv-+ -j REJECT",
			check: "filter", subject: "br-linux", what: "chain ip6 filter FORWARD", fix: "ip6tables -I FORWARD -i br-linux -o dnv-+ -j ACCEPT",
			undo: "ip6tables -F",
		},
		{
			name:  "nftables drops",
			do:    `nft 'table inet host { chain through { type filter hook forward priority 0; policy drop; ct state established,related accept; iifname { "eth7", "eth8" } accept; }; }'`,
			check: "filter", subject: "br-linux", what: "chain inet host through", fix: `nft insert rule inet host through iifname '"dnv-*"' oifname '"br-linux"' accept`,
			undo: "nft delete table inet host",
		},
		{
			name: "iptables-legacy drops", do: "iptables-legacy -P FORWARD DROP",
			check: "filter", subject: "br-linux", what: "iptables-legacy", fix: "iptables-legacy -I FORWARD",
			undo: "iptables-legacy -F; iptables-legacy -P FORWARD ACCEPT",
		},
		{
			name: "a bridge's frames dropped", do: "sysctl -qw net.bridge.bridge-nf-call-iptables=1; iptables -P FORWARD DROP; iptables -A FORWARD -i dnv-+ -j ACCEPT; iptables -A FORWARD -o dnv-+ -j ACCEPT",
			check: "bridge", subject: "br-linux", what: "drops frames", fix: "sysctl -w net.bridge.bridge-nf-call-iptables=0",
			undo: "iptables -F; iptables -P FORWARD ACCEPT",
		},
		{
			name: "marks do not count", do: "for l in $(ls /sys/class/net | grep dnv-); do sysctl -qw net.ipv4.conf.$l.src_valid_mark=0; done",
			check: "rp_filter", what: "src_valid_mark is off", fix: ".src_valid_mark=1",
		},
	} {
		t.Run(f.name, func(t *testing.T) { p.suffers(t, f) })
	}
}

// TestStrictReversePath sets strict filtering for all links, as distributions do.
// Whether that stops a path the doctor has to find out, not to guess: what it
// says is held against a client.
func TestStrictReversePath(t *testing.T) {
	t.Parallel()
	for name, document := range map[string]string{
		"relay": relayed, "kernel": kernel,
		"kernel with aliases": fmt.Sprintf(office, `, aliases: [10.1.128.0/24, "fd00:1:0:8000::/112"], netns: linux`, "kernel"),
	} {
		t.Run(name, func(t *testing.T) {
			p := newPatient(t, document)
			p.Gateway.ShowNetns("linux", p.Linux)
			p.up()
			p.run(p.Gateway, "sysctl -qw net.ipv4.conf.all.rp_filter=1")
			reached := func() bool {
				_, err := p.Intruder.Run(t.Context(), "curl", "-sS", "-m", "2", "-o", "/dev/null", "http://192.0.2.100/")
				return err == nil
			}
			list := p.findings("")
			p.must(list, doctor.Note, "rp_filter", "br-linux")
			problem := find(list, "rp_filter", uplink(list))
			if works := reached(); works != (doctor.Problems(list) == 0) || works != (problem == nil) {
				t.Errorf("the client gets through: %t; the doctor says:\n%s", works, text(list))
			}
			if problem != nil {
				p.run(p.Gateway, problem.Fix)
				p.healthy(p.findings(""))
				if !reached() {
					t.Error("the fix does not help")
				}
			}
			if note := find(p.findings(""), "rp_filter", "br-linux"); note != nil {
				p.run(p.Gateway, note.Fix)
				p.gone(p.findings(""), "rp_filter", "br-linux")
			}
		})
	}
}

// uplink returns the host's end of the segment's veth pair that a finding of
// rp_filter is about.
func uplink(list []doctor.Finding) string {
	for _, f := range list {
		if f.Check == "rp_filter" && strings.HasPrefix(f.Subject, "dnv-") {
			return f.Subject
		}
	}
	return "no link"
}

// TestFaultsOfServices breaks what is between this host and the services.
func TestFaultsOfServices(t *testing.T) {
	t.Parallel()
	p := newPatient(t, relayed)
	p.up()
	for _, f := range []fault{
		{
			name: "no default route", on: linux, do: "ip route del default",
			check: "service", subject: "web", what: "go elsewhere", fix: "ip route replace default via 10.1.0.1", fixOn: linux,
		},
		{
			name: "no default route, IPv6", on: linux, do: "ip -6 route del default",
			check: "service", subject: "web", what: "go elsewhere", fix: "ip -6 route replace default via fd00:1::1", fixOn: linux,
		},
		{
			name: "another way into the segment", on: linux, do: "ip route add blackhole 192.0.2.0/24",
			check: "service", subject: "web", what: "in 192.0.2.0/24", fix: "ip route replace 192.0.2.0/24 via 10.1.0.1", fixOn: linux,
			undo: "ip route del 192.0.2.0/24",
		},
		{
			// A second way to the zone: the service's answers come in at
			// br-linux, this host's way to the service leads elsewhere.
			name: "strict reverse path", do: `set -e; ip link add other type veth peer other2; ip link set other up; ip link set other2 up
				ip route add 10.1.0.3/32 dev other; sysctl -qw net.ipv4.conf.br-linux.rp_filter=1`,
			check: "rp_filter", subject: "br-linux", what: "service redis", fix: "net.ipv4.conf.br-linux.rp_filter=2",
		},
		{
			name: "input dropped", do: "iptables -A INPUT -i br-linux -j DROP",
			check: "filter", subject: "br-linux", what: "chain ip filter INPUT", fix: "iptables -I INPUT -i br-linux -j ACCEPT",
			undo: "iptables -F",
		},
		{
			name: "no routing rule", do: "ip rule del iif br-linux",
			check: "service", subject: "web", what: "routing rule of br-linux is gone", fix: "decoynet reload", mended: true,
		},
		{
			name: "zone link down", do: "ip link set br-linux down",
			check: "zone", subject: "linux", what: "br-linux is down", fix: "ip link set br-linux up",
		},
		{
			name: "no address in the zone", do: "ip address del 10.1.0.1/24 dev br-linux",
			check: "zone", subject: "linux", what: "no address in 10.1.0.0/24", fix: "ip address add 10.1.0.1/24 dev br-linux",
		},
	} {
		t.Run(f.name, func(t *testing.T) {
			switch f.name {
			case "strict reverse path":
				strictReversePath(t, p, f)
			case "zone link down":
				p.zoneDown(t, f)
			default:
				p.suffers(t, f)
			}
		})
	}
}

// strictReversePath is a fault with two findings: the way to the service is
// wrong, and strict filtering drops its answers. Each fix removes its own.
func strictReversePath(t *testing.T, p *patient, f fault) {
	p.t = t
	p.run(p.Gateway, f.do)
	list := p.findings("")
	found := p.must(list, doctor.Problem, f.check, f.subject)
	if !strings.Contains(found.What, f.what) || !strings.Contains(found.Fix, f.fix) {
		t.Errorf("found %q, fix %q", found.What, found.Fix)
	}
	way := p.must(list, doctor.Problem, "zone", "linux")
	p.run(p.Gateway, found.Fix)
	p.gone(p.findings(""), f.check, f.subject)
	p.run(p.Gateway, way.Fix)
	p.healthy(p.findings(""))
	p.run(p.Gateway, "ip link del other; ip route del 10.1.0.3/32 dev br-linux")
}

// zoneDown takes the IPv6 address with it, as the kernel does, so that there are
// two things to be mended one after the other.
func (p *patient) zoneDown(t *testing.T, f fault) {
	p.t = t
	p.run(p.Gateway, f.do)
	for range 2 {
		found := p.must(p.findings(""), doctor.Problem, f.check, f.subject)
		p.run(p.Gateway, found.Fix)
	}
	p.healthy(p.findings(""))
}

// TestServiceStopped stops a server; what mends it is to start it.
func TestServiceStopped(t *testing.T) {
	t.Parallel()
	p := newPatient(t, relayed)
	p.up()
	ctx := t.Context()
	if err := p.Redis.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	found := p.must(p.findings(""), doctor.Problem, "service", "redis")
	if !strings.Contains(found.What, "port 6379 of 10.1.0.3 refuses") || !strings.Contains(found.On, "service redis (10.1.0.3)") {
		t.Errorf("found %+v", found)
	}
	if err := p.UDP.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if found := p.must(p.findings(""), doctor.Problem, "service", "snmp"); !strings.Contains(found.What, "port 161/udp of 10.1.0.5 refuses") {
		t.Errorf("found %+v", found)
	}
	for _, s := range []*lab.Server{p.Redis, p.UDP} {
		if err := s.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(1100 * time.Millisecond) // the machine's limit of ICMP errors
	p.healthy(p.findings(""))
	// A machine that is off says nothing at all.
	p.run(p.Linux, "ip link set eth0 down")
	if found := p.must(p.findings(""), doctor.Problem, "service", "web"); !strings.Contains(found.What, "does not answer") {
		t.Errorf("found %+v", found)
	}
}
