package vm

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// kernel is a kernel of Debian's that is installed here, running or not.
type kernel struct {
	version string
	image   string // the bzImage
	modules string // the directory of its modules
}

// flavour: the cloud and real-time kernels leave out what the tests are for.
var flavour = regexp.MustCompile(`^[0-9.]+(-[0-9]+)*(\+[a-z0-9]+)?(\+deb[0-9]+)?-amd64$`)

// findKernel returns the newest kernel below the root directory that has its
// modules with it.
func findKernel(root string) (kernel, error) {
	images, err := filepath.Glob(filepath.Join(root, "boot/vmlinuz-*"))
	if err != nil {
		return kernel{}, err
	}
	var newest kernel
	for _, image := range images {
		k := kernel{version: strings.TrimPrefix(filepath.Base(image), "vmlinuz-"), image: image}
		k.modules = filepath.Join(root, "lib/modules", k.version)
		if _, err := os.Stat(filepath.Join(k.modules, "modules.dep")); err != nil || !flavour.MatchString(k.version) {
			continue
		}
		if newest.version == "" || newer(k.version, newest.version) {
			newest = k
		}
	}
	if newest.version == "" {
		return kernel{}, &Missing{
			What:     "no kernel of Debian's with its modules is in /boot and /lib/modules",
			Packages: "linux-image-amd64",
		}
	}
	return newest, nil
}

var digits = regexp.MustCompile(`[0-9]+`)

// newer compares versions number by number.
func newer(a, b string) bool {
	as, bs := digits.FindAllString(a, -1), digits.FindAllString(b, -1)
	for i := 0; i < len(as) && i < len(bs); i++ {
		x, _ := strconv.Atoi(as[i]) // digits only; beyond an int they are no version
		y, _ := strconv.Atoi(bs[i])
		if x != y {
			return x > y
		}
	}
	return len(as) > len(bs)
}

// unpacked holds kernels in the form that boots fastest, by image: unpacking
// takes most of a second, and a package may start many guests.
var unpacked sync.Map // string to func() ([]byte, error)

// bootImage returns what QEMU is to load. The kernel unpacks itself in four
// seconds under emulation, so that is done here: QEMU boots the ELF file inside
// by its PVH entry (CONFIG_PVH). A compression that is not known here is left to
// the guest.
func (k kernel) bootImage() ([]byte, error) {
	load, _ := unpacked.LoadOrStore(k.image, sync.OnceValues(func() ([]byte, error) {
		image, err := os.ReadFile(k.image)
		if err != nil {
			return nil, fmt.Errorf("read the kernel: %w", err)
		}
		elf, err := unpack(image)
		if errors.Is(err, errUnknownPacking) {
			return image, nil
		}
		if err != nil {
			return nil, fmt.Errorf("unpack %s: %w", k.image, err)
		}
		return elf, nil
	}))
	return load.(func() ([]byte, error))()
}

var errUnknownPacking = errors.New("the kernel is packed in a way that is not known here")

// unpack returns the ELF file in a bzImage. The fields are those of the Linux
// boot protocol (Documentation/x86/boot.rst), 2.08 or later.
func unpack(image []byte) ([]byte, error) {
	const (
		setupSects    = 0x1f1
		magic         = 0x202
		protocol      = 0x206
		payloadOffset = 0x248
		payloadLength = 0x24c
		end           = 0x250
	)
	if len(image) < end || string(image[magic:magic+4]) != "HdrS" || binary.LittleEndian.Uint16(image[protocol:]) < 0x208 {
		return nil, errUnknownPacking
	}
	start := uint64(image[setupSects]+1)*512 + uint64(binary.LittleEndian.Uint32(image[payloadOffset:]))
	length := uint64(binary.LittleEndian.Uint32(image[payloadLength:]))
	if length < 8 || start+length > uint64(len(image)) {
		return nil, errors.New("the image is cut short")
	}
	payload := image[start : start+length]
	// The unpacked size is appended to what does not say it itself.
	sized := payload[:length-4]
	switch {
	case bytes.HasPrefix(payload, []byte("\x1f\x8b")):
		r, err := gzip.NewReader(bytes.NewReader(payload))
		if err != nil {
			return nil, err
		}
		r.Multistream(false)
		return io.ReadAll(r)
	case bytes.HasPrefix(payload, []byte("\xfd7zXZ\x00")):
		return filter(sized, "xz")
	case bytes.HasPrefix(payload, []byte("\x28\xb5\x2f\xfd")):
		return filter(sized, "zstd")
	}
	return nil, errUnknownPacking
}

// filter has a program unpack the bytes.
func filter(packed []byte, program string) ([]byte, error) {
	path, err := find(program)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(path, "-dc")
	cmd.Stdin = bytes.NewReader(packed)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", program, err, stderr.String())
	}
	return out, nil
}
