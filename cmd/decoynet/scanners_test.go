package main

import (
	"net/netip"
	"testing"
	"time"

	"decoynet/deception"
)

// keeper is a recorder that keeps findings.
type keeper struct {
	noRecorder
	findings []deception.Finding
}

func (k *keeper) Finding(f *deception.Finding) { k.findings = append(k.findings, *f) }

// What is found of a known scanner carries its name, by the time at which the
// session started: a rule may match long after.
func TestFindingsOfScannersAreMarked(t *testing.T) {
	until := time.Now()
	k := &keeper{}
	m := &marker{recorder: k}
	m.know(&deception.State{Scanners: []deception.Scanner{{
		Name: "audit", From: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		Ports: []deception.PortRange{{Transport: deception.TCP, First: 1, Last: 1024}}, Until: until,
	}}})
	of := func(source, destination string, started time.Time) deception.Finding {
		return deception.Finding{
			Session: deception.NewSessionID(started), Time: until.Add(time.Hour), Transport: deception.TCP,
			Source: netip.MustParseAddrPort(source), Destination: netip.MustParseAddrPort(destination),
		}
	}
	for i, c := range []struct {
		finding deception.Finding
		want    string
	}{
		{of("192.0.2.7:50000", "198.51.100.1:80", until.Add(-time.Minute)), "audit"},
		{of("192.0.2.7:50000", "198.51.100.1:80", until.Add(time.Minute)), ""},
		{of("192.0.2.7:50000", "198.51.100.1:8080", until.Add(-time.Minute)), ""},
		{of("203.0.113.7:50000", "198.51.100.1:80", until.Add(-time.Minute)), ""},
	} {
		m.Finding(&c.finding)
		if got := k.findings[i].Scanner; got != c.want {
			t.Errorf("finding %d is marked %q, want %q", i, got, c.want)
		}
		if c.finding.Scanner != "" {
			t.Errorf("finding %d was changed where others may read it", i)
		}
	}
}
