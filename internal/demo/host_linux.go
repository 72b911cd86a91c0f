package demo

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"decoynet/internal/lab"
)

// hostState returns what a demo could leave behind on the host, one thing a
// line: links, addresses, routes, rules, firewall, namespaces, mounts, files, and
// the lab of that name.
func hostState(ctx context.Context, labName string) ([]string, error) {
	var out []string
	for _, command := range []string{
		"ip -o link show", "ip -o address show", "ip rule show", "ip -6 rule show",
		"ip route show table all", "ip -6 route show table all", "nft list ruleset",
	} {
		argv := strings.Fields(command)
		text, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			text = []byte(err.Error()) // a tool that is missing is so both times
		}
		for line := range strings.Lines(string(text)) {
			out = append(out, command+": "+stable(line))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	for line := range strings.Lines(string(mounts)) {
		// What is mounted where; the rest is numbers.
		if f := strings.Fields(line); len(f) > 4 {
			out = append(out, "mount: "+f[4]+" "+strings.Join(f[len(f)-3:len(f)-1], " "))
		}
	}
	for _, pattern := range []string{"/run/netns/*", "/sys/fs/bpf/*", "/run/decoynet*", dataDir, filepath.Join(os.TempDir(), "decoynet-lab-"+labName)} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			out = append(out, "file: "+path)
		}
	}
	labs, err := lab.List()
	if err != nil {
		return nil, err
	}
	for _, l := range labs {
		if l.Name == labName {
			out = append(out, "lab: "+l.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// stable removes from a line of ip(8) and nft(8) what changes by itself.
func stable(line string) string {
	words := strings.Fields(line)
	for i, w := range words {
		switch w {
		case "valid_lft", "preferred_lft", "packets", "bytes", "expires":
			if i+1 < len(words) {
				words[i+1] = "_"
			}
		}
	}
	return strings.Join(words, " ")
}

// leftovers returns what differs. Ours is what is new and carries decoynet's
// marks; the host has other users, who may change other things meanwhile.
func leftovers(before, after []string) (ours, others []string) {
	for _, line := range after {
		switch {
		case slices.Contains(before, line):
		case strings.Contains(line, "decoynet"), strings.Contains(line, "proto 142"):
			ours = append(ours, line)
		default:
			others = append(others, "new: "+line)
		}
	}
	for _, line := range before {
		if !slices.Contains(after, line) {
			others = append(others, "gone: "+line)
		}
	}
	return ours, others
}
