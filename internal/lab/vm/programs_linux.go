package vm

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// furniture is what every guest has: what internal/lab needs, and whatever starts
// other programs. Debian's busybox is built so that its shell, its env and its
// timeout prefer busybox's own ip to the ip in PATH.
var furniture = []string{
	"ip", "bridge", "tc", "ss", "nsenter", "bpftool",
	"sh", "env", "find", "nice", "nohup", "setpriv", "setsid", "stdbuf", "timeout", "xargs",
}

// packageOf names Debian's packages of programs that are named otherwise.
var packageOf = map[string]string{
	emulator: "qemu-system-x86", "busybox": "busybox-static", "ldd": "libc-bin", "xz": "xz-utils",
	"ip": "iproute2", "bridge": "iproute2", "tc": "iproute2", "ss": "iproute2", "nsenter": "util-linux",
	"sh": "dash", "env": "coreutils", "find": "findutils", "nice": "coreutils", "nohup": "coreutils",
	"setpriv": "util-linux", "setsid": "util-linux", "stdbuf": "coreutils", "timeout": "coreutils", "xargs": "findutils",
	"nft": "nftables", "nc": "netcat-openbsd", "ping": "iputils-ping", "iptables-legacy": "iptables",
	"iptables-save": "iptables", "sshd": "openssh-server", "ssh": "openssh-client", "redis-cli": "redis-tools",
	"nginx": "nginx-light",
}

// companions are files that a program reads at run time, so that its list of
// libraries does not tell.
var companions = map[string][]string{
	"iptables": {"/usr/lib/x86_64-linux-gnu/xtables"},
	"tc":       {"/usr/lib/tc"},
	"nmap":     {"/usr/share/nmap"},
	"suricata": {"/usr/share/misc/magic.mgc"},
}

// settings are copied where they are: names of users, protocols and services.
var settings = []string{
	"/etc/passwd", "/etc/group", "/etc/protocols", "/etc/services", "/etc/nsswitch.conf", "/etc/iproute2",
	"/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d",
}

// find looks a program up, in the directories of administration tools too, which
// are not in everybody's PATH.
func find(name string) (string, error) {
	if strings.Contains(name, "/") {
		return filepath.Abs(name)
	}
	if path, err := exec.LookPath(name); err == nil {
		return filepath.Abs(path)
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	pkg := packageOf[name]
	if pkg == "" {
		pkg = name
	}
	return "", &Missing{What: name + " is not installed", Packages: pkg}
}

// Missing is the error where something is not installed.
type Missing struct {
	What     string // a sentence
	Packages string // of Debian's, that would mend it
}

func (m *Missing) Error() string {
	return m.What + "; type: apt-get install --no-install-recommends " + m.Packages
}

// complete looks for all programs and the kernel, so that one line names all
// packages that are missing.
func complete(o Options) error {
	_, err := findKernel("/")
	errs := []error{err}
	for _, name := range slices.Concat([]string{emulator, "busybox", "ldd"}, furniture, o.Programs) {
		_, err := find(name)
		errs = append(errs, err)
	}
	var what, packages []string
	for _, err := range errs {
		var m *Missing
		if !errors.As(err, &m) {
			if err != nil {
				return err
			}
			continue
		}
		what = append(what, m.What)
		if !slices.Contains(packages, m.Packages) {
			packages = append(packages, m.Packages)
		}
	}
	if len(what) == 0 {
		return nil
	}
	return &Missing{What: strings.Join(what, ", "), Packages: strings.Join(packages, " ")}
}

// programs puts programs into the archive, at the paths they have here, with
// the libraries and companions they need.
func (a *archive) programs(names []string) error {
	for _, name := range names {
		path, err := find(name)
		if err != nil {
			return err
		}
		if err := a.program(path); err != nil {
			return fmt.Errorf("add program %s: %w", name, err)
		}
		for about, files := range companions {
			if !strings.Contains(filepath.Base(path), about) {
				continue
			}
			for _, file := range files {
				if _, err := os.Stat(file); err == nil {
					a.tree(file, file)
				}
			}
		}
	}
	return a.err
}

// program adds an executable and, where it is named by symbolic links, those: a
// program may behave by the name it is called with.
func (a *archive) program(path string) error {
	real, err := a.chain(path)
	if err != nil {
		return err
	}
	return a.needs(real)
}

// chain adds the file and the links that lead to it, and returns the file.
func (a *archive) chain(path string) (string, error) {
	for range 16 {
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return "", err
		}
		path = filepath.Join(dir, filepath.Base(path))
		target, err := os.Readlink(path)
		if errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		if err != nil { // no link
			a.tree(path, path)
			return path, a.err
		}
		a.link(path, target)
		if !filepath.IsAbs(target) {
			target = filepath.Join(dir, target)
		}
		path = target
	}
	return "", fmt.Errorf("%s: too many links", path)
}

// needs adds what the executable cannot run without: a script's interpreter, or
// the dynamic linker and libraries.
func (a *archive) needs(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, 256)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read its first bytes: %w", err)
	}
	if line, ok := bytes.CutPrefix(head[:n], []byte("#!")); ok {
		line, _, _ = bytes.Cut(line, []byte("\n"))
		if words := strings.Fields(string(line)); len(words) > 0 {
			return a.program(words[0])
		}
	}
	binary, err := elf.NewFile(f)
	if err != nil {
		return fmt.Errorf("neither a script nor a binary: %w", err)
	}
	if !slices.ContainsFunc(binary.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return nil // static
	}
	return a.libraries(path)
}

// libraries asks the dynamic linker, which alone knows all of its rules.
func (a *archive) libraries(path string) error {
	ldd, err := find("ldd")
	if err != nil {
		return err
	}
	out, err := exec.Command(ldd, path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("list its libraries: %w: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		// "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)", or without the
		// arrow for the linker itself; the kernel's own has no path.
		if strings.Contains(line, "not found") {
			return fmt.Errorf("a library is missing: %s", strings.TrimSpace(line))
		}
		for _, word := range strings.Fields(line) {
			if !strings.HasPrefix(word, "/") {
				continue
			}
			if _, err := a.chain(word); err != nil {
				return fmt.Errorf("add library %s: %w", word, err)
			}
		}
	}
	return nil
}

// busybox adds busybox and a link for each thing it can do, but for what is
// there as a program of its own.
func (a *archive) busybox() error {
	path, err := find("busybox")
	if err != nil {
		return err
	}
	list, err := exec.Command(path, "--list-full").Output()
	if err != nil {
		return fmt.Errorf("ask busybox what it can do: %w", err)
	}
	own := map[string]bool{}
	for name := range a.have {
		if dir := filepath.Dir(name); strings.HasSuffix(dir, "bin") {
			own[filepath.Base(name)] = true
		}
	}
	const home = "/usr/bin/busybox"
	if err := a.regular(home, path); err != nil {
		return err
	}
	for applet := range strings.Lines(string(list)) {
		applet = strings.TrimSpace(applet)
		dir, name := "/usr/bin", filepath.Base(applet)
		if strings.HasSuffix(filepath.Dir(applet), "sbin") {
			dir = "/usr/sbin"
		}
		if !own[name] && name != "busybox" {
			a.link(filepath.Join(dir, name), home)
		}
	}
	return a.needs(path)
}
