package config

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"

	"decoynet/deception"
)

// Values that are written as one text each. Every error says what is wrong and
// what would be right.

var nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$`)

// nameFault returns what is wrong with a name, or "".
func nameFault(s string) string {
	if nameForm.MatchString(s) {
		return ""
	}
	msg := fmt.Sprintf("bad name %q; lower-case letters, digits and inner dashes, at most 32", s)
	if better := asName(s); better != "" {
		msg += ", as " + better
	}
	return msg
}

// asName makes a name of a text, or "" where nothing of it is left.
func asName(s string) string {
	var b strings.Builder
	for _, c := range strings.ToLower(s) {
		if c > unicode.MaxASCII || !unicode.IsLetter(c) && !unicode.IsDigit(c) {
			c = '-'
		}
		b.WriteRune(c)
	}
	out := strings.Trim(b.String(), "-")
	return strings.TrimRight(out[:min(len(out), 32)], "-")
}

var hostForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)

// parseNode reads the name of a machine, which may be its host name (RFC 1123).
func parseNode(s string) (string, error) {
	if len(s) > 253 || !hostForm.MatchString(s) {
		return "", fmt.Errorf("bad node %q; a host name of letters, digits, dashes and dots, as hq or hq.example.com", s)
	}
	return s, nil
}

func parseDataDir(s string) (string, error) {
	if !filepath.IsAbs(s) && !strings.HasPrefix(s, "/") {
		return "", fmt.Errorf("data directory %q is not absolute; a path from the root, as /var/lib/decoynet", s)
	}
	return s, nil
}

// parseInterface reads the name of a network interface, by the rules of the
// kernel's dev_valid_name.
func parseInterface(s string) (string, error) {
	switch {
	case s == "lo":
		return "", fmt.Errorf("interface lo is the machine's own loopback; the interface that leads to the network, as in `ip link`")
	case s == "", s == ".", s == "..", strings.ContainsAny(s, "/:"), strings.IndexFunc(s, unicode.IsSpace) >= 0:
		return "", fmt.Errorf("bad interface name %q; one name as in `ip link`, without / : and spaces", s)
	case len(s) > 15:
		return "", fmt.Errorf("interface name %q is %d bytes long; the kernel allows 15", s, len(s))
	}
	return s, nil
}

func parseNetns(s string) (string, error) {
	switch {
	case strings.HasPrefix(s, "/"):
		if s != path.Clean(s) {
			return "", fmt.Errorf("bad namespace path %q; without .. and doubled slashes, as /run/netns/web", s)
		}
	case s == "", s == ".", s == "..", strings.Contains(s, "/"), strings.IndexFunc(s, unicode.IsSpace) >= 0:
		return "", fmt.Errorf("bad network namespace %q; a name as in `ip netns`, or an absolute path as /proc/123/ns/net", s)
	}
	return s, nil
}

// special tells what an address range is set aside for, where no host of a
// usual network can be in it.
func special(p netip.Prefix) string {
	for _, s := range specials {
		if s.prefix.Overlaps(p) {
			return s.what
		}
	}
	return ""
}

var specials = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast"},
	{netip.MustParsePrefix("255.255.255.255/32"), "broadcast"},
	{netip.MustParsePrefix("::/128"), "unspecified"},
	{netip.MustParsePrefix("::1/128"), "loopback"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped"},
	{netip.MustParsePrefix("fe80::/10"), "link-local"},
	{netip.MustParsePrefix("ff00::/8"), "multicast"},
}

// parsePrefix reads the prefix of a network that hosts live in.
func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			return p, fmt.Errorf("%q has no prefix length; as %s/%d", s, a, a.BitLen()*3/4)
		}
		return p, fmt.Errorf("bad prefix %q; as 192.0.2.0/24 or 2001:db8::/64", s)
	}
	if p.Masked() != p {
		return p, fmt.Errorf("prefix %s has host bits set; write %s", s, p.Masked())
	}
	if what := special(p); what != "" {
		return p, fmt.Errorf("prefix %s holds %s addresses; a network of hosts, as 192.0.2.0/24 or 2001:db8::/64", s, what)
	}
	return p, nil
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		if p, err := netip.ParsePrefix(s); err == nil {
			return a, fmt.Errorf("%q is a prefix; one address, as %s", s, p.Addr())
		}
		return a, fmt.Errorf("bad address %q; as 192.0.2.10 or 2001:db8::10", s)
	}
	if a.Zone() != "" {
		return a, fmt.Errorf("address %q has a zone; write %s", s, a.WithZone(""))
	}
	if a.Is4In6() {
		return a, fmt.Errorf("address %q is IPv4 in IPv6 form; write %s", s, a.Unmap())
	}
	return a, nil
}

// parseHostAddr reads the address of a single host.
func parseHostAddr(s string) (netip.Addr, error) {
	a, err := parseAddr(s)
	if err != nil {
		return a, err
	}
	if what := special(netip.PrefixFrom(a, a.BitLen())); what != "" {
		return a, fmt.Errorf("address %s is no host's (%s); as 192.0.2.10 or 2001:db8::10", s, what)
	}
	return a, nil
}

// parseGateway reads a next hop; in IPv6 that is often a link-local address.
func parseGateway(s string) (netip.Addr, error) {
	if a, err := parseAddr(s); err == nil && a.Is6() && a.IsLinkLocalUnicast() {
		return a, nil
	}
	return parseHostAddr(s)
}

// parseAllowTo reads an address or a prefix that others have.
func parseAllowTo(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil || p.Addr().Is4In6() {
			return p, fmt.Errorf("bad prefix %q; as 10.1.0.0/24 or 2001:db8::/64", s)
		}
		if p.Masked() != p {
			return p, fmt.Errorf("prefix %s has host bits set; write %s", s, p.Masked())
		}
		return p, nil
	}
	a, err := parseAddr(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("bad address %q; an address as 10.1.0.1 or a prefix as 10.1.0.0/30", s)
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

var shortEnd = regexp.MustCompile(`^([0-9]+\.[0-9]+\.[0-9]+\.)[0-9]+ *- *([0-9]{1,3})$`)

func parseRange(s string) (deception.AddrRange, error) {
	if m := shortEnd.FindStringSubmatch(s); m != nil {
		from, _, _ := strings.Cut(s, "-")
		return deception.AddrRange{}, fmt.Errorf("range %q ends in half an address; write %s-%s%s", s, strings.TrimSpace(from), m[1], m[2])
	}
	return deception.ParseAddrRange(s)
}

// parsePorts reads ports as deception does, but takes no leading zeros: YAML
// takes 010 for 8, people take it for 10.
func parsePorts(s string) (deception.PortRange, error) {
	for _, number := range strings.FieldsFunc(s, func(c rune) bool { return c == '-' || c == '/' }) {
		if trimmed := strings.TrimLeft(number, "0"); len(number) > 1 && len(trimmed) < len(number) && trimmed != "" && isDigits(trimmed) {
			return deception.PortRange{}, fmt.Errorf("port %q has leading zeros; write %s", s, strings.Replace(s, number, trimmed, 1))
		}
	}
	return deception.ParsePortRange(s)
}

func parseTarget(s string) (uint16, error) {
	n, err := parseNumber("target", s, 1, 65535)
	return uint16(n), err
}

func parseNumber(what, s string, low, high uint64) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || n < low || n > high || s[0] == '0' {
		return 0, fmt.Errorf("bad %s %s; a number from %d to %d", what, s, low, high)
	}
	return n, nil
}

// parseListen reads where a process listens: an address of the machine, or all.
func parseListen(s string) (netip.AddrPort, error) {
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		return ap, fmt.Errorf("bad listen address %q; an address and a port, as 0.0.0.0:7444 or [::]:7444", s)
	}
	if ap.Addr().Is4In6() {
		return ap, fmt.Errorf("listen address %s is IPv4 in IPv6 form; write %s", s, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	}
	if ap.Addr().IsMulticast() || ap.Addr() == broadcast {
		return ap, fmt.Errorf("nothing can listen on the multicast or broadcast address %s; an address of the machine, as 192.0.2.10:%d", s, ap.Port())
	}
	return ap, nil
}

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// parseEndpoint reads where others reach a port: a host name or an address, and
// the port.
func parseEndpoint(s string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", fmt.Errorf("bad address %q; a host and its port, as hq.example.com:7444 or [2001:db8::10]:7444", s)
	}
	if fault := hostFault(host); fault != "" {
		return "", fmt.Errorf("address %q %s, as hq.example.com:7444 or 192.0.2.10:7444", s, fault)
	}
	if _, err := parseNumber("port", port, 1, 65535); err != nil {
		return "", err
	}
	return s, nil
}

// hostFault returns what is wrong with the host that others are to reach.
func hostFault(host string) string {
	a, err := netip.ParseAddr(host)
	switch {
	case err != nil && (len(host) > 253 || !hostForm.MatchString(host) || isDigits(strings.ReplaceAll(host, ".", ""))):
		return "has no host name or address in front of its port; a host that others reach"
	case err == nil && a.IsUnspecified():
		return "stands for every address, nobody can connect to it; one that others reach"
	case err == nil && (a.Zone() != "" || a.Is4In6() || a.IsMulticast() || a == broadcast):
		return "is no address that others reach; one of the machine's"
	}
	return ""
}

// parseControllerURL reads an address of the controller.
func parseControllerURL(s string) (string, error) {
	const right = "as https://hq.example.com:7443"
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "":
		return "", fmt.Errorf("bad URL %q; %s", s, right)
	case u.Scheme != "https":
		return "", fmt.Errorf("URL %q is not https; the controller speaks TLS only, %s", s, right)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Path != "" && u.Path != "/":
		return "", fmt.Errorf("URL %q has more than a host and a port; %s", s, right)
	}
	if fault := hostFault(u.Hostname()); fault != "" {
		return "", fmt.Errorf("URL %q %s, %s", s, fault, right)
	}
	if p := u.Port(); p != "" {
		if _, err := parseNumber("port", p, 1, 65535); err != nil {
			return "", err
		}
	}
	return "https://" + u.Host, nil
}

// hostRangeFault tells why no machine can have an address of the range.
func hostRangeFault(s string, r deception.AddrRange) error {
	for _, p := range specials {
		if p.what == "loopback" || !deception.RangeOf(p.prefix).Overlaps(r) {
			continue
		}
		if p.what == "unspecified" {
			return fmt.Errorf("%s takes in the unspecified address; addresses of the machine, or any for all of them", s)
		}
		return fmt.Errorf("%s takes in %s addresses; addresses of the machine, as 192.0.2.10, or any for all of them", s, p.what)
	}
	return nil
}

func isDigits(s string) bool {
	return strings.Trim(s, "0123456789") == ""
}

// durationIn returns a reader of durations within bounds. On top of Go's units
// it takes whole days, at the front.
func durationIn(what string, low, high time.Duration, example string) func(string) (time.Duration, error) {
	return func(s string) (time.Duration, error) {
		d, err := parseDuration(s)
		if err != nil {
			return 0, fmt.Errorf("bad %s %q; a number with its unit (s, m, h, d), as %s", what, s, example)
		}
		if d < low || d > high {
			return 0, fmt.Errorf("%s %s is out of bounds; from %s to %s", what, s, writeDuration(low), writeDuration(high))
		}
		return d, nil
	}
}

func parseDuration(s string) (time.Duration, error) {
	days, rest, hasDays := strings.Cut(s, "d")
	if !hasDays {
		return time.ParseDuration(s)
	}
	n, err := strconv.ParseUint(days, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("days of %q: %w", s, err)
	}
	d := time.Duration(n) * 24 * time.Hour
	if rest == "" {
		return d, nil
	}
	more, err := time.ParseDuration(rest)
	if err == nil && more < 0 {
		err = fmt.Errorf("negative duration %q", rest)
	}
	return d + more, err
}

func writeDuration(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day && d%day == 0:
		return strconv.Itoa(int(d/day)) + "d"
	case d >= time.Hour && d%time.Hour == 0:
		return strconv.Itoa(int(d/time.Hour)) + "h"
	case d >= time.Minute && d%time.Minute == 0:
		return strconv.Itoa(int(d/time.Minute)) + "m"
	}
	return d.String()
}
