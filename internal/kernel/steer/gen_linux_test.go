package steer

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
)

// The committed object is what the committed source compiles to. Another
// compiler makes other, equally good code: then only the Go part is compared.
func TestGeneratedFilesAreCurrent(t *testing.T) {
	version, err := exec.Command("clang", "--version").Output()
	if err != nil {
		t.Skipf("no clang, which alone can tell: %v", err)
	}
	dir := t.TempDir()
	source, err := os.ReadFile("gen_linux.go")
	if err != nil {
		t.Fatal(err)
	}
	directive := regexp.MustCompile(`(?m)^//go:generate go run (\S+) (.*)$`).FindSubmatch(source)
	if directive == nil {
		t.Fatal("gen_linux.go holds no go:generate directive")
	}
	run(t, "sh", "-c", "go run "+string(directive[1])+" -output-dir "+dir+" "+string(directive[2]))
	for _, name := range []string{"program_bpfel.go", "program_bpfel.o"} {
		if filepath.Ext(name) == ".o" && !bytes.Contains(version, []byte("clang version "+clangMajor+".")) {
			t.Logf("%s was made by clang %s, which is not here", name, clangMajor)
			continue
		}
		committed, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		made, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(committed, made) {
			t.Errorf("%s is not what steer.c compiles to: run go generate", name)
		}
	}
}

// clangMajor is the compiler of the committed object, Debian 12's.
const clangMajor = "14"
