package suricata

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Binary is a Suricata program on this machine.
type Binary struct {
	Path     string
	Version  string // as 7.0.10
	Major    int
	JA4      bool     // it makes JA4 fingerprints
	Features []string // as the program names them
	// Size and Modified tell a program that was exchanged.
	Size     int64
	Modified time.Time
}

// ErrMissing says that there is no Suricata on this machine.
var ErrMissing = errors.New("suricata is not installed")

// ErrTooOld says that the Suricata of this machine cannot be used.
var ErrTooOld = errors.New("suricata is too old")

// oldest is the first major version whose events can be read and joined.
const oldest = 7

// answersWithin is how long Suricata may take to say its version: a moment, but for a
// machine that has just begun to start everything at once.
const answersWithin = 30 * time.Second

// Find looks for Suricata: at path, or in PATH and the system's directories where
// path is empty. The error says what to type on this distribution; it is
// ErrMissing or ErrTooOld where that is the matter.
func Find(ctx context.Context, path string) (Binary, error) {
	path, err := locate(path)
	if err != nil {
		return Binary{}, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return Binary{}, fmt.Errorf("look at suricata: %w", err)
	}
	ctx, stop := context.WithTimeout(ctx, answersWithin)
	defer stop()
	cmd := exec.CommandContext(ctx, path, "--build-info")
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return Binary{}, fmt.Errorf("ask %s for its version: %w: %s", path, err, lastLine(string(out)))
	}
	b, err := parseBuild(string(out))
	if err != nil {
		return Binary{}, fmt.Errorf("ask %s for its version: %w", path, err)
	}
	b.Path, b.Size, b.Modified = path, info.Size(), info.ModTime()
	if b.Major < oldest {
		return b, fmt.Errorf("%w: %s is version %s, decoynet needs %d or later; %s", ErrTooOld, path, b.Version, oldest, Advice(osRelease()))
	}
	return b, nil
}

// Same tells whether the program on disk is still the one that was found.
func (b *Binary) Same() bool {
	info, err := os.Stat(b.Path)
	return err == nil && info.Size() == b.Size && info.ModTime().Equal(b.Modified)
}

func locate(path string) (string, error) {
	if path == "" {
		path = "suricata"
	}
	found, err := exec.LookPath(path)
	// A service's PATH may lack the directory of system programs.
	for _, dir := range []string{"/usr/bin", "/usr/local/bin", "/usr/sbin", "/usr/local/sbin"} {
		if err == nil || filepath.IsAbs(path) {
			break
		}
		found, err = exec.LookPath(filepath.Join(dir, path))
	}
	if err != nil {
		return "", fmt.Errorf("%w: %s", ErrMissing, Advice(osRelease()))
	}
	if found, err = filepath.EvalSymlinks(found); err != nil {
		return "", fmt.Errorf("look for suricata: %w", err)
	}
	return found, nil
}

// parseBuild reads what --build-info prints.
func parseBuild(text string) (Binary, error) {
	var b Binary
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "This is Suricata version "); ok {
			b.Version, _, _ = strings.Cut(rest, " ")
		}
		if rest, ok := strings.CutPrefix(line, "Features: "); ok {
			b.Features = strings.Fields(rest)
		}
	}
	major, _, _ := strings.Cut(b.Version, ".")
	var err error
	if b.Major, err = strconv.Atoi(major); err != nil {
		return b, fmt.Errorf("read its answer %q: no version", firstLine(text))
	}
	for _, f := range b.Features {
		b.JA4 = b.JA4 || f == "HAVE_JA4"
	}
	return b, nil
}

// release is what /etc/os-release tells of a distribution.
type release struct{ id, like, codename, name string }

func osRelease() release {
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		text, _ = os.ReadFile("/usr/lib/os-release")
	}
	return parseRelease(string(text))
}

func parseRelease(text string) release {
	var r release
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		value = strings.Trim(value, `"'`)
		switch key {
		case "ID":
			r.id = value
		case "ID_LIKE":
			r.like = value
		case "VERSION_CODENAME":
			r.codename = value
		case "PRETTY_NAME":
			r.name = value
		}
	}
	return r
}

// Install is what to type on this machine to get Suricata, for a person.
func Install() string { return Advice(osRelease()) }

// Advice says what to type to get a Suricata that is new enough.
func Advice(r release) string {
	const backports = `Debian 12 has it in bookworm-backports; as root type: ` +
		`echo "deb http://deb.debian.org/debian bookworm-backports main" >/etc/apt/sources.list.d/backports.list; ` +
		`apt update; apt install --no-install-recommends suricata/bookworm-backports libhtp2/bookworm-backports`
	family := " " + r.id + " " + r.like + " "
	switch {
	case r.id == "debian" && r.codename == "bookworm":
		return backports
	case r.id == "debian":
		return "as root type: apt update; apt install --no-install-recommends suricata"
	case strings.Contains(family, " ubuntu "):
		return "as root type: add-apt-repository ppa:oisf/suricata-stable; apt update; apt install suricata"
	case strings.Contains(family, " fedora ") && !strings.Contains(family, " rhel "):
		return "as root type: dnf install suricata"
	case strings.Contains(family, " rhel "):
		return "as root type: dnf install epel-release dnf-plugins-core; dnf copr enable @oisf/suricata-7.0; dnf install suricata"
	case strings.Contains(family, " suse ") || strings.Contains(family, " opensuse "):
		return "as root type: zypper install suricata"
	case strings.Contains(family, " arch "):
		return "it is in the AUR, as suricata"
	case strings.Contains(family, " alpine "):
		return "as root type: apk add suricata"
	}
	return "install version 7 or later with the system's package tool, or see https://suricata.io/download/"
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}
