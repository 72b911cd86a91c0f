package vm

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Where the guest finds what concerns it alone.
const (
	orderFile   = "/vm/order.json"
	outcomeFile = "/vm/outcome"
	testBinary  = "/vm/test"
)

// order is what the guest is to do.
type order struct {
	Args    []string // of the test binary, its name first
	Env     []string
	Dir     string   // the working directory, as it is outside
	Modules []string // to be loaded before
}

// imageOf writes the guest's root file system into memory and returns it as a
// file, and its size.
func imageOf(k kernel, o Options, job order) (*os.File, int64, error) {
	f, err := memory("root")
	if err != nil {
		return nil, 0, err
	}
	buffered := bufio.NewWriterSize(f, 1<<20)
	a := newArchive(buffered)
	err = fill(a, k, o, job)
	if err == nil {
		err = a.close()
	}
	if err == nil {
		err = buffered.Flush()
	}
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("make the guest's root file system: %w", err)
	}
	return f, a.at, nil
}

func fill(a *archive, k kernel, o Options, job order) error {
	a.device("/dev/console", 5, 1)
	a.device("/dev/null", 1, 3)
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		a.dir("/usr/" + dir)
		a.link(dir, "usr/"+dir)
	}
	for _, dir := range []string{"/proc", "/sys", "/run", "/tmp", "/root", "/var/tmp", "/var/log", "/var/lib", "/etc", job.Dir} {
		a.dir(dir)
	}
	a.link("/var/run", "/run")
	for _, guest := range slices.Sorted(maps.Keys(o.Files)) {
		at := guest
		if !filepath.IsAbs(at) {
			at = filepath.Join(job.Dir, at)
		}
		a.tree(at, o.Files[guest])
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	a.tree(testBinary, self)
	a.link("/init", testBinary)
	if a.err != nil {
		return a.err
	}
	if err := a.needs(self); err != nil {
		return err
	}
	if err := a.programs(append(slices.Clone(furniture), o.Programs...)); err != nil {
		return err
	}
	if err := a.busybox(); err != nil {
		return err
	}
	if err := addModules(a, k, o.Modules); err != nil {
		return err
	}
	for _, file := range settings {
		if _, err := os.Stat(file); err == nil {
			a.tree(file, file)
		}
	}
	a.text("/etc/hosts", 0o644, []byte("127.0.0.1 localhost\n::1 localhost\n"))
	a.text("/etc/hostname", 0o644, []byte("guest\n"))
	text, err := json.Marshal(job)
	if err != nil {
		return err
	}
	a.text(orderFile, 0o644, text)
	return a.err
}

func addModules(a *archive, k kernel, names []string) error {
	tree, err := readModules(k.modules)
	if err != nil {
		return err
	}
	files, err := tree.pick(names)
	if err != nil {
		return err
	}
	return tree.add(a, k.version, files)
}

// memory makes a file that has no name and goes with the last who holds it open.
func memory(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate("decoynet-vm-"+name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
