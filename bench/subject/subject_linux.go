package subject

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"decoynet/bench/load"
	"decoynet/internal/lab"
)

// Layout says what stands between intruder and service. The zero value is one
// gateway machine with decoys on the LAN.
type Layout struct {
	Front bool          // a machine of its own takes the intruder's connections
	Own   bool          // at its own address, not at decoys
	Delay time.Duration // of the way between the two machines, in each direction
}

// Setup holds shell lines for a site's machines, run once.
type Setup struct{ Front, Gateway, Service []string }

// Start starts a program on a machine as part of the subject: what it uses is
// the subject's, and it ends with it.
type Start func(m *lab.Machine, argv ...string) (*lab.Process, error)

// Subject is one way of leading connections to a service.
type Subject struct {
	Name   string
	Ours   bool // needs decoynet's binary
	Layout Layout
	// Prepare returns how the site's machines are set up.
	Prepare func(s *Site) Setup
	// Run writes configurations into the machines' folders, starts the subject's
	// processes and, where they have a word for it, waits until they are ready.
	// It is nil where the kernel does it all.
	Run func(ctx context.Context, s *Site, start Start) error
	// Parallel bounds the connections at a time that make sense here; 0 is no
	// bound. A bounded subject is measured in connections per second only.
	Parallel int
}

// Peers returns what decoynet is compared with.
func Peers() []Subject {
	return []Subject{Routed(), HAProxy(), HAProxyAuto(), Nginx(), SNAT(), HAProxyTLS(), HAProxyTLSDirect(), HAProxyMMProxy()}
}

// Ours returns the ways of running decoynet's binary.
func Ours(binary string) []Subject {
	ours := []Subject{Tunnel(binary), Hop(binary)}
	for _, v := range Variants {
		ours = append(ours, Decoynet(binary, v))
	}
	return ours
}

// Instance is a subject that is up.
type Instance struct {
	Subject
	Site      *Site
	processes []*lab.Process
}

// readyWithin is how long a subject may take from its start to the first
// connection; decoynet probes every decoy for conflicts first.
const readyWithin = 40 * time.Second

// Up builds the subject's site and starts it.
func Up(ctx context.Context, n *Network, s Subject) (*Instance, error) {
	site, err := n.AddSite(ctx, s.Name, s.Layout)
	if err != nil {
		return nil, fmt.Errorf("build the site of %s: %w", s.Name, err)
	}
	setup := s.Prepare(site)
	for _, part := range []struct {
		on    *lab.Machine
		lines []string
	}{{site.Front, setup.Front}, {site.Gateway, setup.Gateway}, {site.Service, setup.Service}} {
		if err := shell(ctx, part.on, part.lines...); err != nil {
			return nil, err
		}
	}
	in := &Instance{Subject: s, Site: site}
	return in, in.Start(ctx)
}

// Start starts the subject's processes and returns when connections get through.
func (in *Instance) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	if in.Run != nil {
		if err := in.Run(ctx, in.Site, in.start); err != nil {
			return fmt.Errorf("start %s: %w%s", in.Name, err, in.log())
		}
	}
	return in.probe(ctx)
}

func (in *Instance) start(m *lab.Machine, argv ...string) (*lab.Process, error) {
	p, err := m.Start(argv[0], argv[1:]...)
	if err == nil {
		in.processes = append(in.processes, p)
	}
	return p, err
}

// probe waits until a handful of connections to the first decoy all work.
func (in *Instance) probe(ctx context.Context) error {
	spec := load.Spec{Kind: load.Connect, Targets: in.Site.Targets(1), Parallel: 1, Limit: 3, Duration: 2 * time.Second, Timeout: 2 * time.Second}
	for {
		r, err := in.Site.Load(ctx, spec, nil)
		if err == nil && r.Done >= spec.Limit && r.Failures() == 0 {
			return nil
		}
		if dead := in.ended(); dead != nil {
			return fmt.Errorf("wait for %s to serve: %w%s", in.Name, dead, in.log())
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for %s to serve: %w (failures: %v)%s", in.Name, errors.Join(ctx.Err(), err), r.Failed, in.log())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// ended returns an error where one of the subject's processes has ended.
func (in *Instance) ended() error {
	for _, p := range in.processes {
		select {
		case <-p.Done():
			return fmt.Errorf("process %d has ended", p.PID())
		default:
		}
	}
	return nil
}

// Usage returns what the subject's processes use together; false where there
// are none.
func (in *Instance) Usage() (sum Usage, any bool, err error) {
	for _, p := range in.processes {
		u, err := UsageOf(p.PID())
		if err != nil {
			return sum, true, fmt.Errorf("%s: %w%s", in.Name, err, in.log())
		}
		sum.add(u)
	}
	return sum, len(in.processes) > 0, nil
}

// Stop ends the subject's processes; Start brings up fresh ones.
func (in *Instance) Stop(ctx context.Context) error {
	var errs []error
	for _, p := range slices.Backward(in.processes) {
		if err := p.Stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", in.Name, err))
		}
	}
	in.processes = nil
	return errors.Join(errs...)
}

// log returns the ends of what the subject's processes said, for an error.
func (in *Instance) log() string {
	const enough = 4096
	var b strings.Builder
	for _, p := range in.processes {
		s := p.Log()
		fmt.Fprintf(&b, "\n%s", s[max(0, len(s)-enough):])
	}
	return b.String()
}
