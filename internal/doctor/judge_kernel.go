package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"decoynet/deception"
	"decoynet/internal/kernel/trial"
)

// parts says what a feature is in a kernel's configuration, and which modules
// hold it; no module where it cannot be one.
var parts = map[trial.Feature]struct{ config, modules, why string }{
	trial.Namespaces:  {"CONFIG_NET_NS", "", "every segment lives in one"},
	trial.Veth:        {"CONFIG_VETH", "veth", "the kernel path joins a segment to this host by one"},
	trial.Macvlan:     {"CONFIG_MACVLAN", "macvlan", "a segment stands on its NIC by one"},
	trial.VLAN:        {"CONFIG_VLAN_8021Q", "8021q", "segments with `vlan` stand on its devices"},
	trial.Containment: {"CONFIG_NF_TABLES_INET, NFT_SOCKET, NFT_FIB_INET, NFT_LOG", "nf_tables nft_socket nft_fib_inet nft_log", "without it nothing keeps services inside their zone"},
	trial.KernelPath:  {"CONFIG_NF_CONNTRACK, NFT_NAT, NFT_CT", "nf_conntrack nft_chain_nat nft_ct", "decoys with `path: kernel` need it"},
	trial.Events:      {"CONFIG_NF_CT_NETLINK, NF_CONNTRACK_EVENTS", "nf_conntrack_netlink", "sessions of `path: kernel` are recorded from them"},
	trial.Rules:       {"CONFIG_IP_MULTIPLE_TABLES", "", "services' answers are led to their sockets by it"},
	trial.Transparent: {"IP_TRANSPARENT", "", "services would not see the intruder's address"},
	trial.SKLookup:    {"CONFIG_BPF_SYSCALL, Linux 5.9", "", "the faster steering"},
	trial.TPROXY:      {"CONFIG_NFT_TPROXY, NF_TPROXY_IPV4, NF_TPROXY_IPV6", "nft_tproxy", "the steering of older kernels"},
	trial.IPTables:    {"the program iptables, CONFIG_IP_SET_HASH_NETPORT, NETFILTER_XT_SET, NETFILTER_XT_TARGET_TPROXY", "ip_set_hash_netport xt_set xt_TPROXY", "the steering of kernels without nftables"},
}

func judgeKernel(f *Facts) []Finding {
	var out []Finding
	have := map[trial.Feature]error{}
	for _, r := range f.Features {
		have[r.Feature] = r.Err
	}
	if len(f.Features) == 0 || errors.Is(have[trial.Namespaces], fs.ErrPermission) {
		return nil // the capabilities are missing, which is a finding of its own
	}
	for _, r := range f.Features {
		if r.Err == nil || slices.Contains(steerings, r.Feature) {
			continue
		}
		severity := Problem
		switch r.Feature {
		case trial.VLAN:
			if len(f.vlanSegments()) > 0 {
				out = append(out, missingVLAN(f, r))
			}
			continue
		case trial.Veth, trial.KernelPath, trial.Events:
			if len(kernelUses(f.State)) == 0 {
				severity = Note
			}
		}
		out = append(out, missing(r, severity))
	}
	return append(out, judgeSteering(f, have)...)
}

func missing(r trial.Result, severity Severity) Finding {
	p := parts[r.Feature]
	out := Finding{
		Check: "kernel", Subject: string(r.Feature), Severity: severity,
		What: fmt.Sprintf("this kernel refuses %s (%s): %v", r.Feature, p.config, r.Err), Why: p.why,
		Fix: "boot a kernel with " + p.config,
	}
	if p.modules != "" {
		out.Fix = "modprobe -a " + p.modules
	}
	return out
}

// steerings are the ways of steering, the best first; one is enough.
var steerings = []trial.Feature{trial.SKLookup, trial.TPROXY, trial.IPTables}

// judgeSteering tells which steering is in use, or would be.
func judgeSteering(f *Facts, have map[trial.Feature]error) []Finding {
	by := map[deception.Steering]trial.Feature{}
	best := deception.Steering("")
	var absent []Finding
	for i, s := range []deception.Steering{deception.SteeringSKLookup, deception.SteeringTPROXY, deception.SteeringIPTables} {
		by[s] = steerings[i]
		if err := have[by[s]]; err != nil {
			absent = append(absent, missing(trial.Result{Feature: by[s], Err: err}, Problem))
		} else if best == "" {
			best = s
		}
	}
	if best == "" {
		return absent
	}
	what := fmt.Sprintf("Linux %s; steering by %s", f.Release, best)
	if err := have[trial.SKLookup]; err != nil {
		what += fmt.Sprintf(" (no sk_lookup: %v)", err)
	}
	out := []Finding{{Check: "kernel", Severity: OK, What: what}}
	for _, s := range f.segments() {
		feature, forced := by[s.Steering]
		if forced && have[feature] != nil {
			out = append(out, Finding{
				Check: "kernel", Subject: s.Name, Severity: Problem,
				What: fmt.Sprintf("the segment asks for steering by %s, which this kernel refuses: %v", s.Steering, have[feature]),
				Why:  "none of its ports is open", Fix: fmt.Sprintf("segment %s: steering: %s", s.Name, best), On: OnDocument,
			})
		}
	}
	if f.Running != nil {
		for _, s := range f.Running.Segments {
			if s.Steering != "" {
				out = append(out, Finding{Check: "kernel", Subject: s.Name, Severity: OK, What: "steered by " + s.Steering})
			}
		}
	}
	return out
}

func judgeCapabilities(f *Facts) []Finding {
	if len(f.Capabilities) == 0 {
		return nil
	}
	return []Finding{{
		Check: "capabilities", Severity: Problem, What: "missing " + strings.Join(f.Capabilities, ", "),
		Why: "neither decoynet nor most of these checks work without", Fix: "sudo decoynet doctor",
	}}
}

func judgeClock(f *Facts) []Finding {
	if !f.Unsynced {
		return nil
	}
	return []Finding{{
		Check: "clock", Severity: Note, What: "the kernel says that the clock is not synchronised",
		Why: "sessions cannot be matched with other machines' logs", Fix: "timedatectl set-ntp true",
	}}
}

// judgeRunning passes on what decoynet says of itself. Its problems have their
// cause named by another check, as a rule.
func judgeRunning(f *Facts) []Finding {
	r := f.Running
	if r == nil {
		if f.Elsewhere == "" {
			return nil
		}
		out := Finding{
			Check: "running", Severity: Note, What: "a decoynet runs here with another data directory: " + f.Elsewhere,
			Why: "what it says about itself was not asked for",
		}
		if f.Elsewhere != elsewhereUnknown {
			out.Fix = "decoynet doctor --data " + f.Elsewhere
		}
		return []Finding{out}
	}
	var out []Finding
	if r.Ready && len(r.Problems) == 0 {
		out = append(out, Finding{Check: "running", Severity: OK, What: fmt.Sprintf("ready, process %d, document %s", r.PID, r.Document)})
	}
	for _, p := range r.Problems {
		out = append(out, Finding{Check: "running", Severity: Problem, What: "decoynet says: " + p})
	}
	if !r.Ready && len(r.Problems) == 0 {
		out = append(out, Finding{Check: "running", Severity: Problem, What: "decoynet says that it is not ready", Fix: "decoynet status"})
	}
	if r.Broken != "" {
		out = append(out, Finding{
			Check: "document", Subject: r.Document, Severity: Problem, What: "is not valid any more: " + r.Broken,
			Why: "decoynet goes on with what it has, and would not start again", Fix: "decoynet check -c " + r.Document,
		})
	} else if r.Stale {
		out = append(out, Finding{
			Check: "document", Subject: r.Document, Severity: Note, What: "has changed since it was applied", Fix: "decoynet reload",
		})
	}
	if r.Failing != "" {
		out = append(out, Finding{
			Check: "recording", Severity: Problem, What: "sessions cannot be written: " + r.Failing,
			Why: "they are kept in memory for a while, then lost", Fix: "df -h " + f.Data.Path,
		})
	}
	if r.Lost > 0 {
		out = append(out, Finding{Check: "recording", Severity: Note, What: fmt.Sprintf("%d sessions were not recorded since decoynet started", r.Lost)})
	}
	if r.Moved > 0 {
		out = append(out, Finding{
			Check: "recording", Severity: Note, What: fmt.Sprintf("%d flows reached their service from another port than the intruder's", r.Moved),
			Why: "sessions hold both ports; with one alias address a decoy none would move", Fix: "services: aliases: [PREFIX]", On: OnDocument,
		})
	}
	return out
}

func judgeLeftovers(f *Facts) []Finding {
	if len(f.Leftovers) == 0 {
		return nil
	}
	shown := f.Leftovers
	more := ""
	if len(shown) > 4 {
		more = fmt.Sprintf(" and %d more", len(shown)-4)
		shown = shown[:4]
	}
	out := Finding{
		Check: "leftovers", Severity: Problem, What: "left in the kernel by a decoynet that died: " + strings.Join(shown, "; ") + more,
		Why: "its decoys answer ARP and ping with nobody behind them", Fix: "decoynet cleanup",
	}
	if f.Running != nil {
		// cleanup is refused while one runs.
		out.Why = "they belong to no segment of the decoynet that runs"
		out.Fix = ""
		for _, l := range f.Leftovers {
			if name, ok := strings.CutPrefix(l, leftoverNamespace); ok {
				out.Fix = strings.TrimPrefix(out.Fix+" && ip netns delete "+name, " && ")
			}
		}
	}
	return []Finding{out}
}

// leftoverNamespace begins the leftovers that are network namespaces.
const leftoverNamespace = "network namespace "

// Free space of the data directory below which it is worth a word.
const (
	scarceBytes = 64 << 20
	littleBytes = 512 << 20
)

// Not every file system can hold the session store: its write-ahead log is
// shared memory, which needs one machine's page cache (sqlite.org/wal.html).
var remoteFileSystems = []string{"nfs", "smb", "cifs", "9p", "ceph", "afs"}

func judgeData(f *Facts) []Finding {
	d := f.Data
	if d.Path == "" {
		return nil
	}
	add := func(s Severity, what, why, fix string) Finding {
		return Finding{Check: "data", Subject: d.Path, Severity: s, What: what, Why: why, Fix: fix}
	}
	var out []Finding
	if d.Unwritable != "" {
		fix := fmt.Sprintf("install -d -m 700 %s", d.Path)
		if strings.Contains(d.Unwritable, "read-only") {
			fix = "mount -o remount,rw " + d.Mount
		}
		return append(out, add(Problem, "nothing can be written there: "+d.Unwritable, "decoynet does not start without it", fix))
	}
	switch {
	case slices.Contains(remoteFileSystems, d.FileSystem):
		out = append(out, add(Problem, "is on a network file system ("+d.FileSystem+")",
			"the session store corrupts or refuses there", "decoynet up --data /var/lib/decoynet -c FILE"))
	case d.FileSystem == "tmpfs" || d.FileSystem == "ramfs":
		out = append(out, add(Note, "is in memory ("+d.FileSystem+")", "sessions are gone after a reboot", ""))
	}
	switch {
	case d.FreeBytes < scarceBytes:
		out = append(out, add(Problem, fmt.Sprintf("only %d MiB are free", d.FreeBytes>>20), "sessions will be lost", "df -h "+d.Path))
	case d.FreeBytes < littleBytes:
		out = append(out, add(Note, fmt.Sprintf("%d MiB are free", d.FreeBytes>>20), "a million sessions take some hundred", ""))
	}
	if d.Database != "" {
		out = append(out, add(Problem, "the session store does not open: "+d.Database, "no session can be recorded or listed",
			fmt.Sprintf("mv %[1]s/decoynet.db %[1]s/decoynet.db.broken", d.Path)))
	}
	if len(out) == 0 {
		what := fmt.Sprintf("writable, %d GiB free", d.FreeBytes>>30)
		if !d.Exists {
			what = "can be made, " + strings.TrimPrefix(what, "writable, ")
		}
		out = append(out, add(OK, what, "", ""))
	}
	return out
}

func judgeUnread(f *Facts) []Finding {
	var out []Finding
	for _, u := range f.Unread {
		if len(f.Capabilities) > 0 && errors.Is(u.Err, fs.ErrPermission) {
			continue // said once
		}
		out = append(out, Finding{Check: u.Check, Subject: u.Subject, Severity: Note, What: fmt.Sprintf("could not be found out: %v", u.Err)})
	}
	return out
}
