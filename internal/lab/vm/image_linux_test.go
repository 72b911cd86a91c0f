package vm

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestArchive has busybox's cpio unpack what was written.
func TestArchive(t *testing.T) {
	host := t.TempDir()
	for name, text := range map[string]string{"tree/a": "one", "tree/sub/b": "three", "tool": "#!/bin/sh\n"} {
		path := filepath.Join(host, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("sub/b", filepath.Join(host, "tree/link")); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	a := newArchive(&b)
	a.tree("/opt/tree", filepath.Join(host, "tree"))
	a.tree("/usr/bin/tool", filepath.Join(host, "tool"))
	a.tree("/usr/bin/tool", filepath.Join(host, "tree/a")) // the first stays
	a.text("etc/empty", 0o644, nil)
	a.dir("/opt/tree")
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	cpio := exec.Command("busybox", "cpio", "-idm")
	cpio.Dir, cpio.Stdin = root, &b
	if out, err := cpio.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	find := exec.Command("find", ".", "-printf", `%p %y %s %l\n`)
	find.Dir = root
	out, err := find.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); f[1] != "d" {
			got = append(got, strings.Join(f, " "))
		}
	}
	slices.Sort(got)
	want := []string{
		"./etc/empty f 0", "./opt/tree/a f 3", "./opt/tree/link l 5 sub/b", "./opt/tree/sub/b f 5", "./usr/bin/tool f 10",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("unpacked (-want +got):\n%s", diff)
	}
}

func TestArchiveFails(t *testing.T) {
	a := newArchive(&bytes.Buffer{})
	a.tree("/here", "testdata/no-such-file")
	a.text("/after", 0o644, []byte("x"))
	if err := a.close(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("archive of a file that is not there: %v", err)
	}
}

func TestFindKernel(t *testing.T) {
	root := t.TempDir()
	var missing *Missing
	if _, err := findKernel(root); !errors.As(err, &missing) {
		t.Errorf("without any: %v", err)
	}
	for _, version := range []string{
		"6.1.0-9-amd64", "6.1.0-37-amd64", "6.1.0-57-cloud-amd64", "6.1.0-57-rt-amd64", "6.18.44-fc",
		"6.12.9+deb13-amd64", "6.12.43+deb13-amd64",
	} {
		image, modules := filepath.Join(root, "boot/vmlinuz-"+version), filepath.Join(root, "lib/modules", version)
		err := errors.Join(os.MkdirAll(filepath.Dir(image), 0o755), os.MkdirAll(modules, 0o755),
			os.WriteFile(image, nil, 0o644), os.WriteFile(filepath.Join(modules, "modules.dep"), nil, 0o644))
		if err != nil {
			t.Fatal(err)
		}
	}
	// One whose modules have been removed does not count.
	if err := os.WriteFile(filepath.Join(root, "boot/vmlinuz-6.12.99+deb13-amd64"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if k, err := findKernel(root); err != nil || k.version != "6.12.43+deb13-amd64" {
		t.Errorf("found %q, %v", k.version, err)
	}
}

func TestUnpack(t *testing.T) {
	k, err := findKernel("/")
	if err != nil {
		t.Fatal(err)
	}
	elf, err := k.bootImage()
	if err != nil || !bytes.HasPrefix(elf, []byte("\x7fELF")) {
		t.Errorf("%s holds no ELF file: %v", k.image, err)
	}
	image, err := os.ReadFile(k.image)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unpack(image[:len(image)/2]); err == nil {
		t.Error("half an image was unpacked")
	}
	if _, err := unpack([]byte("no kernel")); !errors.Is(err, errUnknownPacking) {
		t.Errorf("what is no kernel: %v", err)
	}
}

// TestPick compares the closure of dependencies with modprobe's.
func TestPick(t *testing.T) {
	k, err := findKernel("/")
	if err != nil {
		t.Fatal(err)
	}
	tree, err := readModules(k.modules)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"8021q", "nft-tproxy", "xt_set", "e1000", "virtio_net", "cls_bpf"}
	files, err := tree.pick(names)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("/sbin/modprobe", append([]string{"-S", k.version, "--show-depends", "-a"}, names...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line) // insmod PATH, or builtin NAME
		if path, ok := strings.CutPrefix(f[1], k.modules+"/"); f[0] == "insmod" && (!ok || !slices.Contains(files, path)) {
			t.Errorf("lacks %s", f[1])
		}
	}
	if _, err := tree.pick([]string{"no_such_module"}); err == nil || !strings.Contains(err.Error(), "no_such_module") {
		t.Errorf("a module that is not there: %v", err)
	}
	if _, err := tree.pick([]string{"af_packet"}); err != nil {
		t.Errorf("what is built in: %v", err)
	}
}

func TestPattern(t *testing.T) {
	if got, want := pattern("TestA/b.c/d"), `^TestA$/^b\.c$/^d$`; got != want {
		t.Errorf("pattern is %s instead of %s", got, want)
	}
}
