// Package archtest holds the rules about the shape of the source tree (who may
// import whom, what may not be named how, how long a file may be) and checks a
// tree against them. Its test checks this module's.
package archtest

import (
	"slices"
	"strings"
)

const module = "decoynet"

// layer is a part of the tree with one rule about what it may import of our own.
// Whatever is outside the module may be imported, but for kernelModules.
type layer struct {
	dir string // the folder whose packages, at any depth, form the layer
	// uses are the layers that it may import besides itself.
	uses []string
	// any: it may import everything of ours.
	any bool
	// kernel: it may import kernelModules.
	kernel bool
	// stdOnly: it may import nothing but the standard library.
	stdOnly bool
}

// layers is the map of the tree, from the bottom up. A folder belongs to the
// layer with the longest matching dir; one that belongs to none is refused, so
// that a new folder is a decision.
var layers = []layer{
	{dir: "deception", stdOnly: true},
	{dir: "internal/kernel", kernel: true, uses: []string{"deception"}},
	{dir: "config", uses: []string{"deception"}},
	{dir: "internal", uses: []string{"deception", "internal/kernel", "config"}},
	{dir: "internal/lab", kernel: true, uses: []string{"deception", "internal/kernel", "config", "internal"}},
	{dir: "internal/demo", uses: []string{"deception", "internal/kernel", "config", "internal", "internal/lab"}},
	role("agent"),
	role("gateway"),
	role("inspect"),
	role("controller"),
	role("web"),
	{dir: "cmd", any: true},
	{dir: "test", any: true, kernel: true},
	{dir: "bench", any: true, kernel: true},
}

// role is a role of the binary: it imports what is below, and no other role.
func role(dir string) layer {
	return layer{dir: dir, uses: []string{"deception", "internal/kernel", "config", "internal"}}
}

// testLayers may be imported by every test of a layer that is not the domain.
var testLayers = []string{"internal/lab"}

// kernelModules change the machine's network; few packages may hold that power.
var kernelModules = []string{
	"github.com/vishvananda/netlink",
	"github.com/vishvananda/netns",
	"github.com/google/nftables",
	"github.com/cilium/ebpf",
	"github.com/mdlayher/netlink",
	"github.com/coreos/go-iptables",
}

// emptyWords say nothing about what a package or type is for.
var emptyWords = []string{"util", "utils", "manager", "helper", "helpers", "common"}

// maxLines is where a file has long become two. The aim is 500.
const maxLines = 600

// layerOf returns the layer that the folder belongs to, or nil.
func layerOf(dir string) *layer {
	var best *layer
	for i := range layers {
		l := &layers[i]
		if below(dir, l.dir) && (best == nil || len(l.dir) > len(best.dir)) {
			best = l
		}
	}
	return best
}

// mayImport tells whether a package of the layer may import one of the other.
func (l *layer) mayImport(other *layer, inTest bool) bool {
	if l == other || l.any || slices.Contains(l.uses, other.dir) {
		return true
	}
	return inTest && !l.stdOnly && slices.Contains(testLayers, other.dir)
}

// below tells whether path is the folder (or import path) or lies under it.
func below(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, folder+"/")
}
