package doctor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/kernel/firewall"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/route"
	"decoynet/internal/kernel/survey"
	"decoynet/internal/kernel/trial"
)

// Subject is what is to be looked at.
type Subject struct {
	State    *deception.State // nil: the kernel and the machine only
	Running  *Running         // nil where none runs
	Data     string           // the data directory
	Database string           // the session store in it
	Socket   string           // where a decoynet of that data directory answers
	// Listen is for how long frames are counted at the NICs of VLAN segments.
	Listen   time.Duration
	Passive  bool         // nothing is sent on the segments' networks
	Progress func(string) // told what takes a while; may be nil
	Suricata string       // the program; empty: it is looked for
}

// Read collects the facts. It works in the caller's network namespace, sends a
// few packets (see the package comment), and leaves nothing behind. What cannot
// be read is noted in the facts; there is no other error than that the
// namespace itself cannot be opened.
func Read(ctx context.Context, s Subject) (*Facts, error) {
	host, err := netns.Current()
	if err != nil {
		return nil, fmt.Errorf("open the host's network namespace: %w", err)
	}
	defer host.Close()
	r := &reader{Subject: s, host: host, facts: &Facts{State: s.State, Running: s.Running, Sysctl: map[string]string{}}}
	r.readMachine()
	r.facts.Features = trial.Run(ctx)
	r.readHost()
	r.readOwned()
	r.readLimits()
	r.readData()
	// Each sends and waits, and fills a part of the facts of its own.
	var wg sync.WaitGroup
	for _, ask := range []func(context.Context){r.readSegments, r.readServices, r.readKernelPaths, r.readInspect} {
		wg.Go(func() { ask(ctx) })
	}
	wg.Wait()
	return r.facts, nil
}

type reader struct {
	Subject
	host  *netns.NS
	facts *Facts

	mu sync.Mutex // guards facts.Unread
}

func (r *reader) unread(check, subject string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.facts.Unread = append(r.facts.Unread, Unread{check, subject, err})
}

// readMachine reads what belongs to no namespace.
func (r *reader) readMachine() {
	var name unix.Utsname
	if err := unix.Uname(&name); err == nil {
		r.facts.Release = unix.ByteSliceToString(name.Release[:])
	}
	for _, list := range []string{"modules.dep", "modules.builtin"} {
		text, err := os.ReadFile(filepath.Join("/lib/modules", r.facts.Release, list))
		r.facts.VLANModule = r.facts.VLANModule || err == nil && bytes.Contains(text, []byte("/8021q.ko"))
	}
	for _, part := range []string{"sys_vendor", "product_name"} {
		text, _ := os.ReadFile("/sys/class/dmi/id/" + part) // no firmware tells
		r.facts.Maker = strings.TrimSpace(r.facts.Maker + " " + string(text))
	}
	missing, err := missingCapabilities()
	if err != nil {
		r.unread("capabilities", "", err)
	}
	r.facts.Capabilities = missing
	var clock unix.Timex
	state, err := unix.Adjtimex(&clock)
	if err != nil {
		r.unread("clock", "", fmt.Errorf("ask for the clock's state: %w", err))
		return
	}
	const timeError = 5 // TIME_ERROR
	r.facts.Unsynced = state == timeError || clock.Status&unix.STA_UNSYNC != 0
}

// missingCapabilities lists those that decoynet needs and this process has not.
func missingCapabilities() ([]string, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return nil, fmt.Errorf("read capabilities: %w", err)
	}
	var missing []string
	for _, c := range []struct {
		bit  uint
		name string
	}{
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"},
		{unix.CAP_NET_BIND_SERVICE, "CAP_NET_BIND_SERVICE"},
		{unix.CAP_NET_RAW, "CAP_NET_RAW"},
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"},
	} {
		if data[c.bit/32].Effective&(1<<(c.bit%32)) == 0 {
			missing = append(missing, c.name)
		}
	}
	return missing, nil
}

// readHost reads the host's network namespace.
func (r *reader) readHost() {
	f := r.facts
	var err error
	if f.Links, err = survey.Links(r.host); err != nil {
		r.unread("links", "", err)
	}
	if f.Filters, err = survey.Filters(r.host); err != nil {
		r.unread("filter", "", err)
	}
	if f.Listeners, err = wildcardPorts(); err != nil {
		r.unread("source ports", "", err)
	}
	keys := []string{
		"net/ipv4/ip_forward", "net/ipv4/conf/all/rp_filter", "net/ipv6/conf/all/forwarding",
		"net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables", "net/bridge/bridge-nf-call-arptables",
		"net/netfilter/nf_conntrack_max", "net/netfilter/nf_conntrack_count",
		"net/ipv4/neigh/default/gc_thresh3", "net/ipv6/neigh/default/gc_thresh3",
	}
	for _, l := range f.Links {
		keys = append(keys, sysctlKey("net/ipv4/conf", l.Name, "rp_filter"), sysctlKey("net/ipv4/conf", l.Name, "forwarding"),
			sysctlKey("net/ipv4/conf", l.Name, "src_valid_mark"), sysctlKey("net/ipv6/conf", l.Name, "force_forwarding"))
	}
	for _, key := range keys {
		value, err := r.host.ReadSysctl(key)
		switch {
		case err == nil:
			f.Sysctl[key] = value
		case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission):
			r.unread("settings", key, err)
		}
	}
}

// readOwned finds the kernel objects that are ours, and among them those that no
// running decoynet holds.
func (r *reader) readOwned() {
	f := r.facts
	rules, err := route.Owned(r.host)
	if err != nil {
		r.unread("leftovers", "", err)
	}
	f.OurRules = rules
	names, err := netns.List(netns.Prefix)
	if err != nil {
		r.unread("leftovers", "", err)
	}
	if f.Running != nil {
		for _, n := range names {
			if n != trunkNamespace && !slices.ContainsFunc(f.Running.Segments, func(s RunningSegment) bool { return netns.SegmentName(s.Name) == n }) {
				f.Leftovers = append(f.Leftovers, leftoverNamespace+n)
			}
		}
		return
	}
	if f.Elsewhere, err = runsElsewhere(r.Socket); err != nil {
		r.unread("running", "", err)
	}
	if f.Elsewhere != "" {
		return
	}
	for _, n := range names {
		f.Leftovers = append(f.Leftovers, leftoverNamespace+n)
	}
	links, err := link.Owned(r.host)
	if err != nil {
		r.unread("leftovers", "", err)
	}
	for _, l := range links {
		f.Leftovers = append(f.Leftovers, "link "+l)
	}
	f.Leftovers = append(f.Leftovers, rules...)
	tables, err := firewall.Owned(r.host)
	if err != nil {
		r.unread("leftovers", "", err)
	}
	for _, t := range tables {
		f.Leftovers = append(f.Leftovers, fmt.Sprintf("nftables table %s %s", t.Family, t.Name))
	}
	r.readAliasRoutes(names)
}

// readAliasRoutes finds routes of ours in the named namespaces of services.
func (r *reader) readAliasRoutes(segments []string) {
	names, err := netns.List("")
	if err != nil {
		r.unread("leftovers", "", err)
	}
	for _, n := range names {
		if slices.Contains(segments, n) {
			continue
		}
		ns, err := netns.Open(n)
		if err != nil {
			continue // a lost mount of somebody else, or gone meanwhile
		}
		owned, err := route.Owned(ns)
		if err != nil {
			r.unread("leftovers", n, err)
		}
		for _, o := range owned {
			r.facts.Leftovers = append(r.facts.Leftovers, o+" in namespace "+n)
		}
		ns.Close()
	}
}

// runsElsewhere returns the data directory of a decoynet that holds this network
// namespace, or "". Its lock is an abstract socket; nobody accepts on it, so
// that it is looked for, not connected to.
func runsElsewhere(own string) (string, error) {
	file, err := os.Open("/proc/thread-self/net/unix")
	if err != nil {
		return "", fmt.Errorf("list unix sockets: %w", err)
	}
	defer file.Close()
	held, where := false, ""
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		path := fields[len(fields)-1]
		held = held || path == "@decoynet"
		if filepath.Base(path) == filepath.Base(own) && path != own && strings.HasPrefix(path, "/") {
			where = filepath.Dir(path)
		}
	}
	switch {
	case !held:
		return "", nil
	case where == "":
		return elsewhereUnknown, nil
	}
	return where, nil
}

// wildcardPorts lists the ports that sockets of this namespace hold on all
// addresses: TCP listeners and unconnected UDP sockets.
func wildcardPorts() ([]WildcardPort, error) {
	var out []WildcardPort
	var errs []error
	for _, t := range []struct {
		file      string
		transport deception.Transport
		state     string
	}{
		{"tcp", deception.TCP, "0A"},
		{"tcp6", deception.TCP, "0A"},
		{"udp", deception.UDP, "07"},
		{"udp6", deception.UDP, "07"},
	} {
		text, err := os.ReadFile("/proc/thread-self/net/" + t.file)
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("list sockets: %w", err))
			continue
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) < 4 || fields[3] != t.state {
				continue
			}
			address, port, _ := strings.Cut(fields[1], ":")
			n, err := strconv.ParseUint(port, 16, 16)
			if err != nil || strings.Trim(address, "0") != "" || n == 0 {
				continue
			}
			if w := (WildcardPort{t.transport, uint16(n)}); !slices.Contains(out, w) {
				out = append(out, w)
			}
		}
	}
	slices.SortFunc(out, func(a, b WildcardPort) int {
		return int(a.Transport)<<16 + int(a.Port) - int(b.Transport)<<16 - int(b.Port)
	})
	return out, errors.Join(errs...)
}

// familyEntries counts neighbours that take room in the kernel's table: permanent
// ones are not limited by it.
func familyEntries(list []survey.Neighbour) (v4, v6 uint64) {
	for _, n := range list {
		switch {
		case n.State == "PERMANENT" || n.State == "NOARP":
		case n.Addr.Is4():
			v4++
		default:
			v6++
		}
	}
	return v4, v6
}
