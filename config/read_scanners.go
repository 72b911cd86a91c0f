package config

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"decoynet/deception"
)

// scannerDraft is a known scanner.
type scannerDraft struct {
	name  located[string]
	from  []located[netip.Prefix]
	ports []located[deception.PortRange]
	until located[time.Time]
}

func readScanner(o *object) *scannerDraft {
	s := &scannerDraft{name: checkName(o)}
	s.from, _ = readList(o, "from", parseScannerFrom)
	s.ports, _ = readList(o, "ports", parsePorts)
	if n := o.fields["ports"]; n != nil && n.kind == kindList && len(n.items) == 0 {
		o.r.add(n.at, "ports is empty; the ports that the scanner may touch, or drop the key for every port")
	}
	checkPortsOnce(o.r, o.label(), s.ports)
	if o.has("until") {
		s.until = readOne(o, "until", parseUntil)
	}
	return s
}

// parseScannerFrom reads addresses of a scanner. Everybody is none: nobody would
// ever be alerted to.
func parseScannerFrom(s string) (netip.Prefix, error) {
	p, err := parseAllowTo(s)
	switch {
	case err != nil && !strings.Contains(s, "/"):
		return p, fmt.Errorf("bad address %q; an address as 192.0.2.10 or a prefix as 192.0.2.0/28", s)
	case err == nil && p.Bits() == 0:
		return p, fmt.Errorf("%s takes in everybody; the scanner's own address or network, as 192.0.2.10 or 192.0.2.0/28", s)
	}
	return p, err
}

var dateForm = regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}$`)

// parseUntil reads a point in time. A day stands for its end, in UTC, so that
// every machine of the document means the same moment.
func parseUntil(s string) (time.Time, error) {
	const right = "a day as 2027-01-31, or a time as 2027-01-31T18:00:00Z"
	if dateForm.MatchString(s) {
		day, err := time.Parse(time.DateOnly, s)
		if err != nil {
			return day, fmt.Errorf("until %s is no day of the calendar; %s", s, right)
		}
		return day.AddDate(0, 0, 1), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fmt.Errorf("bad until %q; %s", s, right)
	}
	return t.UTC(), nil
}

func (s *scannerDraft) resolve() deception.Scanner {
	out := deception.Scanner{Name: s.name.v, From: values(s.from), Until: s.until.v}
	if len(s.ports) > 0 {
		out.Ports = values(s.ports)
	}
	return out
}
