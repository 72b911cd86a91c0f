package doctor_test

import (
	"strings"
	"testing"
	"time"

	"decoynet/internal/doctor"

	"github.com/google/go-cmp/cmp"
)

// TestHealthy looks at the office with decoynet running in it, on either path:
// there is no problem, every check that can has found something well, and no
// server and no session record has noticed.
func TestHealthy(t *testing.T) {
	t.Parallel()
	for name, document := range map[string]string{"relay": relayed, "kernel": kernel} {
		t.Run(name, func(t *testing.T) {
			p := newPatient(t, document)
			p.up()
			before, err := p.Web.Contacts()
			if err != nil {
				t.Fatal(err)
			}
			list := p.findings("")
			t.Log("\n" + text(list))
			p.healthy(list)
			for _, check := range []string{"kernel", "running", "data", "parent", "lan", "conflicts", "zone", "service"} {
				if !wellDone(list, check) {
					t.Errorf("check %q found nothing well", check)
				}
			}
			if document == kernel && (!wellDone(list, "kernel path") || !wellDone(list, "forwarding")) {
				t.Error("the kernel path was not found well")
			}
			time.Sleep(1200 * time.Millisecond) // what is half open would be tried again
			after, err := p.Web.Contacts()
			if err != nil {
				t.Fatal(err)
			}
			if len(after) != len(before) {
				t.Errorf("nginx noticed: %v", after[len(before):])
			}
			if out := p.run(p.Gateway, "decoynet get sessions -o json"); out != "" {
				t.Errorf("sessions were recorded:\n%s", out)
			}
			if out := p.run(p.Linux, "ss -Htn state syn-recv"); strings.TrimSpace(out) != "" {
				t.Errorf("half open connections are left in the services' machine:\n%s", out)
			}
			if out := p.run(p.Gateway, "decoynet status -o json | jq '.zones[].denied_packets'"); strings.TrimSpace(out) != "0" {
				t.Errorf("the zone's containment denied %s packets", strings.TrimSpace(out))
			}
		})
	}
}

// TestHealthyBefore looks at the office before decoynet runs there, with the
// document, and without.
func TestHealthyBefore(t *testing.T) {
	t.Parallel()
	p := newPatient(t, kernel)
	// Link-local addresses come a moment after the links.
	p.run(p.Gateway, "for i in $(seq 50); do [ $(ip -6 addr show scope link -tentative | grep -c inet6) = 3 ] && break; sleep 0.1; done")
	before, err := p.Gateway.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list := p.findings("", "-c", p.file)
	p.healthy(list)
	for _, check := range []string{"kernel", "parent", "lan", "conflicts", "zone", "service", "forwarding"} {
		if !wellDone(list, check) {
			t.Errorf("check %q found nothing well in:\n%s", check, text(list))
		}
	}
	p.healthy(p.findings(""))
	after, err := p.Gateway.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(after, "\n")); diff != "" {
		t.Errorf("the doctor left something behind (-before +after):\n%s", diff)
	}
}

func wellDone(list []doctor.Finding, check string) bool {
	for _, f := range list {
		if f.Check == check && f.Severity == doctor.OK {
			return true
		}
	}
	return false
}
