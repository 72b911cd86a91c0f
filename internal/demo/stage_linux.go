package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"decoynet/internal/lab"
)

// LabName is the name of the lab that a person plays in, where nothing else is
// said.
const LabName = "demo"

// commandDir is in every machine's private /run; what is linked there is found
// by name.
const commandDir = "/run/bin"

// Stage is the office network with decoynet on its gateway, and a branch office
// with decoynet on its business server.
type Stage struct {
	lab.Topology
	Branch   lab.Branch
	CRM      *lab.Server // the business server's own
	Lab      *lab.Lab
	Document string // path of the document that decoynet runs by

	binary  string
	process *lab.Process // on gw, nil before Up
	agent   *lab.Process // on crm, nil before Up
	stopped bool
}

// StageConfig says how a stage is to be built. Zero values take the defaults.
type StageConfig struct {
	Name     string       // of the lab (default: one that is free)
	Binary   string       // the program decoynet
	Document string       // path of the document (default: the demo's own, written into the lab)
	Progress func(string) // is told what has been done
}

// NewStage builds the networks with their servers; decoynet does not run yet.
func NewStage(ctx context.Context, cfg StageConfig) (*Stage, error) {
	if err := checkTools(); err != nil {
		return nil, err
	}
	if cfg.Progress == nil {
		cfg.Progress = func(string) {}
	}
	l, top, err := lab.Office(ctx, cfg.Name, cfg.Progress)
	if err != nil {
		return nil, fmt.Errorf("build the network: %w", err)
	}
	s := &Stage{Topology: top, Lab: l, Document: cfg.Document, binary: cfg.Binary}
	err = s.addBranch(ctx, cfg.Progress)
	if err == nil {
		err = s.furnish(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("build the network: %w", err), l.Close())
	}
	return s, nil
}

// furnish makes it comfortable: `decoynet status` just works in the gateway,
// and the host's own data directory is out of reach.
func (s *Stage) furnish(ctx context.Context) error {
	s.Gateway.ShowNetns("linux", s.Linux)
	for _, m := range s.machines() {
		_, err := m.Run(ctx, "sh", "-ec", `mkdir `+commandDir+` && ln -s "$1" `+commandDir+`/decoynet`, "sh", s.binary)
		if err != nil {
			return err
		}
	}
	// No name server can be reached; a tool that knows it does not wait for one.
	resolver := filepath.Join(s.Lab.Dir(), "resolv.conf")
	if err := os.WriteFile(resolver, []byte("# the lab has no name server\n"), 0o644); err != nil {
		return err
	}
	for _, m := range s.machines() {
		_, err := m.Run(ctx, "sh", "-ec", `[ ! -e /etc/resolv.conf ] || mount --bind "$1" /etc/resolv.conf`, "sh", resolver)
		if err != nil {
			return err
		}
	}
	// Without the directory on the host there is nothing to mount over but the
	// one above it. Suricata's events may take half a gigabyte before they go;
	// memory is used for what is written only.
	for m, size := range map[*lab.Machine]string{s.Gateway: "1200m", s.Branch.Server: "256m"} {
		_, err := m.Run(ctx, "sh", "-ec", `
		at=`+dataDir+`
		[ -d $at ] || at=$(dirname $at)
		mount -t tmpfs -o mode=755,size=$1 decoynet-lab-data $at`, "sh", size)
		if err != nil {
			return err
		}
	}
	if err := s.furnishCRM(ctx); err != nil {
		return err
	}
	if s.Document == "" {
		s.Document = filepath.Join(s.Gateway.Dir(), "office.yaml")
		return os.WriteFile(s.Document, Document, 0o644)
	}
	var err error
	s.Document, err = filepath.Abs(s.Document)
	return err
}

func (s *Stage) machines() []*lab.Machine {
	return []*lab.Machine{
		s.Gateway, s.Intruder, s.Production, s.Linux,
		s.Branch.Router, s.Branch.Server, s.Branch.Intruder,
	}
}

// Settle waits until the kernel has finished what it does by itself when links
// come up (the link-local addresses of bridge ports, whose duplicate address
// detection takes a second or two): what changes later is somebody's doing.
func (s *Stage) Settle(ctx context.Context) error {
	return lab.Eventually(ctx, 5*time.Second, func() error {
		for _, m := range s.machines() {
			out, err := m.Run(ctx, "ip", "-6", "-o", "address", "show", "tentative")
			if err != nil {
				return err
			}
			if out != "" {
				return fmt.Errorf("%s: %s", m, strings.TrimSpace(out))
			}
		}
		return nil
	})
}

// dataDir is where decoynet keeps its data unless told otherwise.
const dataDir = "/var/lib/decoynet"

// nodeStatus is what the demo needs of `decoynet status -o json`.
type nodeStatus struct {
	Ready    bool
	Problems []string
	Segments []struct {
		Name, Steering, MAC string
		Addresses           int
		OpenPorts           int `json:"open_ports"`
		Problems            []string
	}
	Services []struct {
		Name  string
		Ports []struct {
			Port, At, Error string
			Up              bool
		}
	}
	Relay struct {
		MovedPorts int `json:"moved_ports"`
	}
	Recording struct{ Queued, Lost int }
	Inspect   *inspectStatus
}

// Up starts decoynet on gw and, where the document names it, on the branch's
// business server, and returns when all is as it should be.
func (s *Stage) Up(ctx context.Context) error {
	if err := s.upGateway(ctx); err != nil {
		return err
	}
	if err := s.enrol(ctx); err != nil {
		return fmt.Errorf("make crm the node %s: %w", crmNode, err)
	}
	return nil
}

// upGateway starts decoynet on gw and returns when it says that it is ready and
// that every service is up.
func (s *Stage) upGateway(ctx context.Context) error {
	var err error
	if s.process, err = s.Gateway.Start(s.binary, "up", "-c", s.Document); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-s.process.Done():
			cancel(errors.New("it has ended"))
		case <-ctx.Done():
		}
	}()
	err = lab.Eventually(ctx, 15*time.Second, func() error {
		st, err := s.status(ctx)
		if err != nil {
			return err
		}
		return st.wanting()
	})
	if err != nil {
		return fmt.Errorf("start decoynet: %w; it said:\n%s", errors.Join(err, context.Cause(ctx)), s.process.Log())
	}
	return nil
}

// wanting says what is not yet as it should be.
func (st *nodeStatus) wanting() error {
	if !st.Ready {
		return fmt.Errorf("not ready: %s", strings.Join(st.Problems, "; "))
	}
	for _, v := range st.Services {
		for _, p := range v.Ports {
			if !p.Up {
				return fmt.Errorf("service %s: port %s at %s is down: %s", v.Name, p.Port, p.At, p.Error)
			}
		}
	}
	return nil
}

// Decoynet runs one of decoynet's commands on the gateway.
func (s *Stage) Decoynet(ctx context.Context, args ...string) (string, error) {
	return s.Gateway.Run(ctx, s.binary, args...)
}

func (s *Stage) status(ctx context.Context) (nodeStatus, error) {
	var st nodeStatus
	out, err := s.Decoynet(ctx, "status", "-o", "json")
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		return st, fmt.Errorf("read decoynet's status: %w", err)
	}
	return st, nil
}

// sessions returns all that `decoynet get sessions` lists.
func (s *Stage) sessions(ctx context.Context) ([]session, error) {
	return listed(ctx, s, "sessions", sessionOf)
}

// listed returns all that `decoynet get` lists of something.
func listed[D, T any](ctx context.Context, s *Stage, what string, of func(D) T) ([]T, error) {
	out, err := s.Decoynet(ctx, "get", what, "--limit", "0", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list []T
	for line := range strings.Lines(out) {
		var d D
		if err := json.Unmarshal([]byte(line), &d); err != nil {
			return nil, fmt.Errorf("read decoynet's %s: %w", what, err)
		}
		list = append(list, of(d))
	}
	return list, nil
}

// Down asks decoynet to end, as an init system would, and waits for it. It may
// be called when decoynet does not run.
func (s *Stage) Down(ctx context.Context) error {
	if s.process == nil || s.stopped {
		return nil
	}
	s.stopped = true
	var err error
	if s.agent != nil { // first, so that its last records arrive
		err = s.agent.Stop(ctx)
	}
	return errors.Join(err, s.process.Stop(ctx))
}

// Done is closed when decoynet has ended, whyever.
func (s *Stage) Done() <-chan struct{} { return s.process.Done() }

// Log returns what decoynet has written.
func (s *Stage) Log() string {
	if s.process == nil {
		return ""
	}
	return s.process.Log()
}

// Close stops decoynet and takes the network down.
func (s *Stage) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	return errors.Join(s.Down(ctx), s.Lab.Close())
}

// Picture draws the network, with decoynet running in it.
func (s *Stage) Picture(ctx context.Context) (string, error) {
	document, err := os.ReadFile(s.Document)
	if err != nil {
		return "", fmt.Errorf("read the document: %w", err)
	}
	p, err := readPlan(document, branchHosts())
	if err != nil {
		return "", err
	}
	sc, err := s.scene(ctx, p)
	if err != nil {
		return "", err
	}
	return draw(sc), nil
}

// CommandEnv returns the environment with decoynet, the program that the lab
// runs by, first in PATH.
func CommandEnv(env []string) []string {
	out := make([]string, 0, len(env)+1)
	path := commandDir
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, "PATH="); ok {
			path = commandDir + ":" + value // of several the last counts
			continue
		}
		out = append(out, e)
	}
	return append(out, "PATH="+path)
}

// Usage tells a person how to use a lab that is up.
func (s *Stage) Usage() string {
	self := s.binary
	if path, err := exec.LookPath("decoynet"); err == nil && path == self {
		self = "decoynet"
	}
	exec := self + " lab exec"
	if s.Lab.Name() != LabName {
		exec += " --name " + s.Lab.Name()
	}
	return strings.NewReplacer("EXEC", exec, "DOCUMENT", s.Document, "LOGS", s.Linux.Dir()).Replace(usage)
}

const usage = `From another terminal, as root:
  EXEC intruder -- nmap -sV 192.0.2.21-30    # your own tools in the intruder's place
  EXEC intruder -- bash                      # or a shell there
  EXEC b-intruder -- curl 198.51.100.10      # the same in the branch office
  EXEC gw -- decoynet get sessions --watch   # what decoynet records meanwhile
  EXEC gw -- decoynet get alerts --watch     # what Suricata's rules say of it
  EXEC gw -- decoynet session ID             # one session whole; alerts name theirs
  EXEC gw -- decoynet pcap ID > one.pcap     # and its packets
  EXEC gw -- decoynet status                 # and how it is
  EXEC gw -- decoynet get nodes -o wide      # here, and in the branch office
  EXEC gw -- decoynet reload                 # after a change of DOCUMENT
  EXEC lan -- tcpdump -ni br0                # the LAN's wire
Machines: intruder, production, gw, linux, lan; b-intruder, crm, b-router, branch. The servers log below LOGS.
`
