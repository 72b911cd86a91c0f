package netns

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// Sysctl sets keys below net (net.ipv4.ip_forward or net/ipv4/ip_forward) inside
// the namespace, in sorted order, and leaves alone those that already hold the
// value: writing some of them has side effects even then. Keys that cannot be
// set do not stop the others; the error joins theirs, each naming its key, and
// wraps fs.ErrNotExist where this kernel has no such key.
func (n *NS) Sysctl(values map[string]string) error {
	return n.Do(func() error {
		var errs []error
		for _, key := range slices.Sorted(maps.Keys(values)) {
			if err := setSysctl(key, values[key]); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", n, err))
			}
		}
		return errors.Join(errs...)
	})
}

// ReadSysctl returns the value of a key below net inside the namespace.
func (n *NS) ReadSysctl(key string) (string, error) {
	path, err := sysctlPath(key)
	if err != nil {
		return "", err
	}
	var value string
	err = n.Do(func() error {
		data, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read sysctl %s: %w", key, cause(err))
		}
		value = strings.TrimSpace(string(data))
		return nil
	})
	return value, err
}

// setSysctl works on the calling thread's namespace: /proc/sys/net shows that
// of whoever looks.
func setSysctl(key, value string) error {
	path, err := sysctlPath(key)
	if err != nil {
		return err
	}
	// Some keys can only be written; those are written every time.
	if data, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(data)) == value {
		return nil
	}
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", key, value, cause(err))
	}
	_, err = file.WriteString(value)
	if err := errors.Join(err, file.Close()); err != nil {
		return fmt.Errorf("set sysctl %s to %s: %w", key, value, cause(err))
	}
	return nil
}

// cause drops the operation and the path, which only repeat the key.
func cause(err error) error {
	if pe, ok := errors.AsType[*os.PathError](err); ok {
		return pe.Err
	}
	return err
}
