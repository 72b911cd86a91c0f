package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/survey"
	"decoynet/internal/store"
)

// readLimits reads how much the process, the machine and its tables can hold.
func (r *reader) readLimits() {
	l := &r.facts.Limits
	pid := 0 // this process
	if r.facts.Running != nil {
		pid, l.OfRunning = r.facts.Running.PID, true
	}
	var files unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &files); err != nil {
		r.unread("limits", "descriptors", fmt.Errorf("read the limit of process %d: %w", pid, err))
	}
	// The Go runtime raises the soft limit to the hard one when it starts.
	l.Files = files.Max
	l.PerProcess = number("/proc/sys/fs/nr_open", 0)
	l.SystemInUse = number("/proc/sys/fs/file-nr", 0)
	l.SystemFiles = number("/proc/sys/fs/file-nr", 2)
	l.Tasks, l.InUse = tasks()
	l.Conntrack, _ = strconv.ParseUint(r.facts.setting("net/netfilter/nf_conntrack_max"), 10, 64)
	l.ConntrackUsed = map[string]uint64{}
	if used, err := strconv.ParseUint(r.facts.setting("net/netfilter/nf_conntrack_count"), 10, 64); err == nil {
		l.ConntrackUsed[""] = used
	}
	n := &r.facts.Neighbour
	n.Limit4, _ = strconv.ParseUint(r.facts.setting("net/ipv4/neigh/default/gc_thresh3"), 10, 64)
	n.Limit6, _ = strconv.ParseUint(r.facts.setting("net/ipv6/neigh/default/gc_thresh3"), 10, 64)
	r.countNeighbours("", r.host)
	for _, s := range r.facts.segments() {
		r.readTables(&s)
	}
}

// readTables counts what the segment's namespace adds to the machine's tables.
func (r *reader) readTables(s *deception.Segment) {
	ns, err := netns.Open(netns.SegmentName(s.Name))
	if err != nil {
		return // the segment does not stand
	}
	defer ns.Close()
	r.countNeighbours(s.Name, ns)
	text, err := ns.ReadSysctl("net/netfilter/nf_conntrack_count")
	if used, errNumber := strconv.ParseUint(text, 10, 64); err == nil && errNumber == nil {
		r.facts.Limits.ConntrackUsed[s.Name] = used
	}
}

func (r *reader) countNeighbours(subject string, ns *netns.NS) {
	list, err := survey.Neighbours(ns, 0)
	if err != nil {
		r.unread("limits", subject, err)
		return
	}
	v4, v6 := familyEntries(list)
	r.facts.Neighbour.InUse4 += v4
	r.facts.Neighbour.InUse6 += v6
}

// number reads one of the numbers in a file, 0 where there is none.
func number(path string, field int) uint64 {
	text, err := os.ReadFile(path)
	if fields := strings.Fields(string(text)); err == nil && field < len(fields) {
		n, _ := strconv.ParseUint(fields[field], 10, 64)
		return n
	}
	return 0
}

// tasks returns the limit of this process's control group and how much of it is
// taken; zero where there is none.
func tasks() (limit, used uint64) {
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0, 0
	}
	for line := range strings.Lines(string(text)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			dir := filepath.Join("/sys/fs/cgroup", path)
			return number(filepath.Join(dir, "pids.max"), 0), number(filepath.Join(dir, "pids.current"), 0)
		}
	}
	return 0, 0
}

// File systems by the magic numbers of statfs(2).
var fileSystems = map[int64]string{
	unix.NFS_SUPER_MAGIC: "nfs", unix.SMB_SUPER_MAGIC: "smb", unix.CIFS_SUPER_MAGIC: "cifs", unix.SMB2_SUPER_MAGIC: "smb",
	unix.V9FS_MAGIC: "9p", unix.CEPH_SUPER_MAGIC: "ceph", unix.AFS_FS_MAGIC: "afs", unix.AFS_SUPER_MAGIC: "afs",
	unix.TMPFS_MAGIC: "tmpfs", unix.RAMFS_MAGIC: "ramfs",
}

// readData looks at the data directory, or, where it is not there yet, at the
// directory that it will be made in.
func (r *reader) readData() {
	d := &r.facts.Data
	if d.Path = r.Data; d.Path == "" {
		return
	}
	if path, err := filepath.Abs(d.Path); err == nil {
		d.Path = path
	}
	dir := d.Path
	info, err := os.Stat(dir)
	for errors.Is(err, fs.ErrNotExist) && dir != "/" {
		dir = filepath.Dir(dir)
		info, err = os.Stat(dir)
	}
	d.Exists = dir == d.Path
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is no directory", dir)
	}
	if err == nil {
		err = writable(dir)
	}
	if err != nil {
		d.Unwritable = err.Error()
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		r.unread("data", d.Path, fmt.Errorf("look at its file system: %w", err))
		return
	}
	d.FreeBytes = st.Bavail * uint64(st.Bsize)
	d.FileSystem = fileSystems[int64(uint32(st.Type))]
	d.Mount = mountPoint(dir)
	if sessions, err := store.OpenReader(r.Database); err == nil {
		sessions.Close()
	} else if !errors.Is(err, store.ErrNoStore) {
		d.Database = err.Error()
	}
}

// writable makes a file there, and takes it away again.
func writable(dir string) error {
	f, err := os.CreateTemp(dir, ".decoynet-doctor-")
	if err != nil {
		var pe *fs.PathError
		if errors.As(err, &pe) {
			err = pe.Err
		}
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// mountPoint goes up as long as the device is the same.
func mountPoint(dir string) string {
	var here, above unix.Stat_t
	if unix.Stat(dir, &here) != nil {
		return dir
	}
	for dir != "/" {
		if unix.Stat(filepath.Dir(dir), &above) != nil || above.Dev != here.Dev {
			return dir
		}
		dir = filepath.Dir(dir)
	}
	return dir
}
