package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Info describes a lab that is up.
type Info struct {
	Name     string
	Dir      string
	Owner    int      // process id
	Machines []string // in the order they were made, switches included
}

// holding is what a holder's command line says.
type holding struct {
	pid, owner, serial int
	lab, machine, dir  string
}

// holders returns the holders of all labs' machines, in the order they were
// made in their lab.
func holders() ([]holding, error) {
	pids, err := marked(markPrefix)
	if err != nil {
		return nil, err
	}
	var out []holding
	for _, pid := range pids {
		line, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
		if err != nil {
			continue // ended meanwhile
		}
		args := strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")
		if len(args) != 9 || args[2] != holderScript || args[3] != holderName {
			continue // some other program in a machine
		}
		owner, err1 := strconv.Atoi(args[6])
		serial, err2 := strconv.Atoi(args[8])
		if err1 != nil || err2 != nil {
			continue
		}
		out = append(out, holding{pid: pid, lab: args[4], machine: args[5], owner: owner, dir: args[7], serial: serial})
	}
	slices.SortFunc(out, func(a, b holding) int { return a.serial - b.serial })
	return out, nil
}

// List returns the labs that are up and have a machine, whoever owns them.
func List() ([]Info, error) {
	all, err := holders()
	if err != nil {
		return nil, fmt.Errorf("list labs: %w", err)
	}
	var out []Info
	for _, h := range all {
		i := slices.IndexFunc(out, func(o Info) bool { return o.Name == h.lab })
		if i < 0 {
			i = len(out)
			out = append(out, Info{Name: h.lab, Dir: h.dir, Owner: h.owner})
		}
		out[i].Machines = append(out[i].Machines, h.machine)
	}
	slices.SortFunc(out, func(a, b Info) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// Attach returns a lab that another process has built, to run things in its
// machines. Nothing can be added to it, and Close ends only what was started
// through it. It returns ErrNotFound where no such lab is up.
func Attach(name string) (*Lab, error) {
	if unix.Geteuid() != 0 {
		return nil, ErrPrivilege
	}
	all, err := holders()
	if err != nil {
		return nil, fmt.Errorf("attach to lab %q: %w", name, err)
	}
	l := &Lab{name: name, attached: true}
	for _, h := range all {
		if h.lab != name {
			continue
		}
		l.dir = h.dir
		m := &Machine{lab: l, name: h.machine, pid: h.pid}
		l.machines = append(l.machines, m)
		if err := m.grasp(); err != nil {
			return nil, errors.Join(fmt.Errorf("attach to lab %q: %w", name, err), l.Close())
		}
	}
	if len(l.machines) == 0 {
		return nil, fmt.Errorf("attach to lab %q: %w", name, ErrNotFound)
	}
	return l, nil
}

// Remove takes down a lab that another process has built: it asks the owner to
// end (SIGTERM), and where the lab is still up after grace, kills all that is
// in it and leaves the owner alone. It returns ErrNotFound where no such lab is
// up.
func Remove(ctx context.Context, name string, grace time.Duration) error {
	labs, err := List()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(labs, func(o Info) bool { return o.Name == name })
	if i < 0 {
		return removeOrphans(name)
	}
	info := labs[i]
	if info.Owner == os.Getpid() {
		return fmt.Errorf("remove lab %q: it is this process's own: close it", name)
	}
	// The owner is alive: a holder of a dead one ends at once.
	if err := unix.Kill(info.Owner, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove lab %q: ask its owner %d to end: %w", name, info.Owner, err)
	}
	gone := func() error {
		pids, err := marked(mark(name, ""))
		if err == nil && len(pids) > 0 {
			err = fmt.Errorf("processes %v are left", pids)
		}
		if _, statErr := os.Stat(info.Dir); err == nil && statErr == nil {
			err = fmt.Errorf("directory %s is left", info.Dir)
		}
		return err
	}
	if Eventually(ctx, grace, gone) == nil {
		return nil
	}
	// The directory and its lock stay with the owner, who may yet close.
	if err := sweep(mark(name, "")); err != nil {
		return fmt.Errorf("remove lab %q: %w", name, err)
	}
	return nil
}

// removeOrphans sweeps a lab whose owner, warden and holders have all been
// killed, so that only programs in it are left.
func removeOrphans(name string) error {
	pids, err := marked(mark(name, ""))
	if err == nil && len(pids) == 0 {
		err = ErrNotFound
	}
	if err == nil {
		err = sweep(mark(name, ""))
	}
	if err != nil {
		return fmt.Errorf("remove lab %q: %w", name, err)
	}
	return nil
}
