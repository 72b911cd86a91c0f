package vm

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// network are the parts of the kernel's tree that every guest has. Nothing of it
// is loaded until it is asked for: by Options.Modules, or by the kernel itself,
// which calls modprobe for a link's kind, a rule's expression or a socket's
// family that it does not know yet.
var network = []string{
	"kernel/net/802/", "kernel/net/8021q/", "kernel/net/bridge/", "kernel/net/core/", "kernel/net/ipv4/",
	"kernel/net/ipv6/", "kernel/net/llc/", "kernel/net/netfilter/", "kernel/net/packet/", "kernel/net/sched/",
	"kernel/net/unix/",
	"kernel/drivers/net/bonding/", "kernel/drivers/net/dummy.ko", "kernel/drivers/net/ifb.ko",
	"kernel/drivers/net/macvlan.ko", "kernel/drivers/net/macvtap.ko", "kernel/drivers/net/tap.ko",
	"kernel/drivers/net/tun.ko", "kernel/drivers/net/veth.ko", "kernel/drivers/net/vrf.ko", "kernel/drivers/net/vxlan/",
	"kernel/crypto/crc32c", "kernel/arch/x86/crypto/crc32c-intel",
}

// moduleTree is what modules.dep says: of each module's file, those it needs.
type moduleTree struct {
	dir   string
	needs map[string][]string // by path below dir; all of them, not only the direct ones
	paths map[string]string   // by name
	built map[string]bool     // names of those that are no modules but in the kernel
}

func readModules(dir string) (*moduleTree, error) {
	t := &moduleTree{dir: dir, needs: map[string][]string{}, paths: map[string]string{}, built: map[string]bool{}}
	text, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, fmt.Errorf("read what modules need: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		file, needs, ok := strings.Cut(strings.TrimSpace(line), ":")
		if ok {
			t.needs[file] = strings.Fields(needs)
			t.paths[moduleName(file)] = file
		}
	}
	text, err = os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, fmt.Errorf("read what the kernel has built in: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		t.built[moduleName(strings.TrimSpace(line))] = true
	}
	return t, nil
}

// moduleName returns the name of the module in a file: the kernel makes no
// difference between hyphens and underscores.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// pick returns the files of the network modules and of those that are named, with
// all that they need.
func (t *moduleTree) pick(names []string) ([]string, error) {
	var files []string
	for file := range t.needs {
		if slices.ContainsFunc(network, func(part string) bool { return strings.HasPrefix(file, part) }) {
			files = append(files, file)
		}
	}
	for _, name := range names {
		file, ok := t.paths[moduleName(name)]
		switch {
		case ok:
			files = append(files, file)
		case !t.built[moduleName(name)]:
			return nil, fmt.Errorf("the kernel has no module %s (looked in %s)", name, t.dir)
		}
	}
	for _, file := range slices.Clone(files) {
		files = append(files, t.needs[file]...)
	}
	slices.Sort(files)
	return slices.Compact(files), nil
}

// add puts the modules into the archive, unpacked, with indices that name no
// others: modprobe reads all of them each time.
func (t *moduleTree) add(a *archive, version string, files []string) error {
	dir := "/lib/modules/" + version
	names := map[string]bool{}
	var dep strings.Builder
	for _, file := range files {
		content, err := readModule(filepath.Join(t.dir, file))
		if err != nil {
			return fmt.Errorf("read module %s: %w", file, err)
		}
		a.text(path.Join(dir, plain(file)), 0o644, content)
		names[moduleName(file)] = true
		fmt.Fprintf(&dep, "%s:", plain(file))
		for _, need := range t.needs[file] {
			fmt.Fprintf(&dep, " %s", plain(need))
		}
		dep.WriteByte('\n')
	}
	a.text(path.Join(dir, "modules.dep"), 0o644, []byte(dep.String()))
	// Lines of `alias PATTERN MODULE`, `softdep MODULE pre: OTHERS` and `alias
	// symbol:SYMBOL MODULE`.
	for index, field := range map[string]int{"modules.alias": 2, "modules.softdep": 1, "modules.symbols": 2} {
		text, err := os.ReadFile(filepath.Join(t.dir, index))
		if err != nil {
			return fmt.Errorf("read the index of modules: %w", err)
		}
		var kept strings.Builder
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > field && names[moduleName(f[field])] {
				kept.WriteString(line)
			}
		}
		a.text(path.Join(dir, index), 0o644, []byte(kept.String()))
	}
	a.tree(path.Join(dir, "modules.builtin"), filepath.Join(t.dir, "modules.builtin"))
	return a.err
}

// plain returns the name of a module's file once it is unpacked.
func plain(file string) string {
	before, _, _ := strings.Cut(file, ".ko")
	return before + ".ko"
}

// readModule reads a module's file. Debian 13 packs them.
func readModule(file string) ([]byte, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	switch path.Ext(file) {
	case ".xz":
		return filter(content, "xz")
	case ".zst":
		return filter(content, "zstd")
	case ".gz":
		r, err := gzip.NewReader(bytes.NewReader(content))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r)
	}
	return content, nil
}
