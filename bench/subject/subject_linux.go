package subject

import (
	"context"
	"errors"
	"fmt"
	"time"

	"decoynet/bench/load"
	"decoynet/internal/lab"
)

// Subject is one way of leading connections to a service.
type Subject struct {
	Name string
	// Prepare returns shell lines, for the gateway machine and the service's,
	// that are run once.
	Prepare func(s *Site) (gateway, service []string)
	// Command writes its configuration in the gateway machine's folder and returns the gateway
	// process's arguments. It is nil where the kernel does it all.
	Command func(s *Site) ([]string, error)
	// Ready, where there is one, waits for the subject's own word.
	Ready func(ctx context.Context, s *Site) error
	// Parallel bounds the connections at a time that make sense here; 0 is no
	// bound. A bounded subject is measured in connections per second only.
	Parallel int
}

// Instance is a subject that is up.
type Instance struct {
	Subject
	Site    *Site
	process *lab.Process
}

// readyWithin is how long a subject may take from its start to the first
// connection; decoynet probes every decoy for conflicts first.
const readyWithin = 40 * time.Second

// Up builds the subject's site and starts it.
func Up(ctx context.Context, n *Network, s Subject) (*Instance, error) {
	site, err := n.AddSite(ctx, s.Name)
	if err != nil {
		return nil, fmt.Errorf("build the site of %s: %w", s.Name, err)
	}
	gateway, service := s.Prepare(site)
	if err := shell(ctx, site.Gateway, gateway...); err != nil {
		return nil, err
	}
	if err := shell(ctx, site.Service, service...); err != nil {
		return nil, err
	}
	in := &Instance{Subject: s, Site: site}
	return in, in.Start(ctx)
}

// Start starts the gateway process and returns when connections get through.
func (in *Instance) Start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	if in.Command != nil {
		argv, err := in.Command(in.Site)
		if err == nil {
			in.process, err = in.Site.Gateway.Start(argv[0], argv[1:]...)
		}
		if err != nil {
			return fmt.Errorf("start %s: %w", in.Name, err)
		}
	}
	if in.Ready != nil {
		if err := in.Ready(ctx, in.Site); err != nil {
			return fmt.Errorf("wait for %s: %w%s", in.Name, err, in.log())
		}
	}
	return in.probe(ctx)
}

// probe waits until a handful of connections to the first decoy all work.
func (in *Instance) probe(ctx context.Context) error {
	spec := load.Spec{Kind: load.Connect, Targets: in.Site.Targets(1), Parallel: 1, Limit: 3, Duration: time.Second, Timeout: time.Second}
	for {
		r, err := in.Site.Load(ctx, spec, nil)
		if err == nil && r.Done >= spec.Limit && r.Failures() == 0 {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("wait for %s to serve: %w (failures: %v)%s", in.Name, errors.Join(ctx.Err(), err), r.Failed, in.log())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Usage returns what the gateway process uses; false where there is none.
func (in *Instance) Usage() (Usage, bool, error) {
	if in.process == nil {
		return Usage{}, false, nil
	}
	u, err := UsageOf(in.process.PID())
	if err != nil {
		return u, true, fmt.Errorf("%s: %w%s", in.Name, err, in.log())
	}
	return u, true, nil
}

// Stop ends the gateway process; Start brings up a fresh one.
func (in *Instance) Stop(ctx context.Context) error {
	if in.process == nil {
		return nil
	}
	err := in.process.Stop(ctx)
	in.process = nil
	if err != nil {
		return fmt.Errorf("stop %s: %w", in.Name, err)
	}
	return nil
}

// log returns the end of what the gateway process said, for an error.
func (in *Instance) log() string {
	if in.process == nil {
		return ""
	}
	s := in.process.Log()
	const enough = 4096
	return "\n" + s[max(0, len(s)-enough):]
}
