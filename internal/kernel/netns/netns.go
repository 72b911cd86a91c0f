// Package netns makes, opens and enters network namespaces.
//
// Named namespaces are bind mounts below /run/netns, made exactly as iproute2
// makes them, so that `ip netns exec NAME ...` works on ours and we work on
// those made by `ip netns add`. A namespace lives on while anything refers to
// it: the mount, an open NS, a socket made inside, a process.
//
// The network namespace is a property of an OS thread (setns(2)). Nothing here
// leaves a thread in the wrong one: work inside a namespace runs on a thread of
// its own, which goes back to the scheduler only after it was put back.
package netns

import (
	"errors"
	"fmt"
	"strings"
)

// RunDir is where named namespaces are mounted, the same place as iproute2's.
const RunDir = "/run/netns"

// Prefix begins the name of every namespace that decoynet makes.
const Prefix = "decoynet-"

// SegmentName returns the name of a segment's namespace.
func SegmentName(segment string) string { return Prefix + segment }

// Trunk is the name of the namespace that holds the VLAN devices of all
// segments. No segment can have it: their names have no underscore.
const Trunk = Prefix + "_trunk"

// ErrNotNamespace is returned by Open if the file exists but is no network
// namespace: what stays below /run/netns when a mount was lost.
var ErrNotNamespace = errors.New("not a network namespace")

// ErrClosed is returned by the methods of an NS after Close.
var ErrClosed = errors.New("network namespace handle is closed")

// checkName refuses names that would leave RunDir or that `ip netns` refuses.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("bad namespace name %q", name)
	case strings.ContainsRune(name, '/'):
		return fmt.Errorf("bad namespace name %q: it must not hold a slash", name)
	case len(name) > 255:
		return fmt.Errorf("bad namespace name %q: longer than 255 bytes", name)
	}
	return nil
}

// sysctlPath returns the file of a sysctl key of the net tree. As sysctl(8)
// does, it takes both net.ipv4.ip_forward and net/ipv4/ip_forward; a key that
// names an interface with a dot in it must be written with slashes.
func sysctlPath(key string) (string, error) {
	path := key
	if !strings.ContainsRune(key, '/') {
		path = strings.ReplaceAll(key, ".", "/")
	}
	if !strings.HasPrefix(path, "net/") {
		return "", fmt.Errorf("sysctl %s: only keys below net belong to a network namespace", key)
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." {
			return "", fmt.Errorf("sysctl %s: malformed key", key)
		}
	}
	return "/proc/sys/" + path, nil
}
