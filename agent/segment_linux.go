package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/route"
	"decoynet/internal/kernel/steer"
	"decoynet/internal/relay"
)

// segment is what runs for one segment. The agent's lock guards it.
type segment struct {
	agent *Agent
	name  string
	plan  segmentPlan

	ns       *netns.NS
	steering *steer.Steering
	listener *relay.Listener
	kernel   *kernelPath

	linkStatus  link.Status
	steerStatus steer.Status
	problems    []string
	warnings    []string
	ready       bool
	settled     bool // all of plan was applied, and nobody doubts that it still is
}

// apply brings the segment to its plan: namespace, link, addresses, then ports,
// so that a port is only ever open at an address that is claimed. It may be
// repeated at any time and does nothing where nothing differs.
func (s *segment) apply(ctx context.Context, p segmentPlan) error {
	forced := s.plan.segment.Steering
	s.plan = p
	err := s.realise(ctx, forced)
	s.ready, s.settled = err == nil, err == nil
	s.problems = nil
	if err != nil {
		s.problems = append(s.problems, err.Error())
	}
	return err
}

func (s *segment) realise(ctx context.Context, steeredBy deception.Steering) error {
	p := &s.plan
	if s.ns == nil {
		ns, _, err := netns.Ensure(netns.SegmentName(s.name))
		if err != nil {
			return fmt.Errorf("make network namespace: %w", err)
		}
		s.ns = ns
	}
	if p.link.Uplink {
		// Before the namespace forwards, so that it never forwards what it should not.
		if err := s.applyKernelPath(ctx); err != nil {
			return err
		}
	}
	var err error
	links := p.link
	links.Trunk = s.agent.trunk
	if s.linkStatus, err = link.Apply(ctx, s.agent.host, s.ns, links); err != nil {
		return err // without a link there is nothing to put addresses on
	}
	errs := []error{s.limit(ctx)} // before an address is answered for
	status, err := route.Apply(ctx, s.ns, p.routes)
	errs = append(errs, err)
	s.agent.cfg.Log.Debug("addresses applied", "segment", s.name, "added", status.Added, "removed", status.Removed)
	errs = append(errs, s.steer(ctx, steeredBy))
	if !p.link.Uplink {
		errs = append(errs, s.closeKernelPath(ctx))
	}
	return errors.Join(errs...)
}

// steer opens the steering where it is missing or another one is asked for, and
// hands it the open ports.
func (s *segment) steer(ctx context.Context, steeredBy deception.Steering) error {
	want := s.plan.segment.Steering
	if s.steering != nil && want != steeredBy {
		if err := s.closeSteering(); err != nil {
			return err
		}
	}
	if s.steering == nil {
		if err := s.openSteering(want); err != nil {
			return err
		}
	}
	var err error
	s.steerStatus, err = s.steering.Apply(ctx, s.plan.groups)
	if err != nil {
		return fmt.Errorf("steer ports: %w", err)
	}
	return nil
}

func (s *segment) openSteering(mode deception.Steering) error {
	steering, err := steer.Open(s.ns, steer.Config{Mode: mode, Sockets: 1})
	if err != nil {
		return fmt.Errorf("open steering: %w", err)
	}
	listener := &relay.Listener{Name: s.name, Socket: s.socket}
	if err := s.agent.cfg.Engine.Add(listener, steering.TCP(), steering.UDP()); err != nil {
		return errors.Join(err, steering.Close())
	}
	s.steering, s.listener = steering, listener
	return nil
}

func (s *segment) closeSteering() error {
	if s.steering == nil {
		return nil
	}
	s.agent.cfg.Engine.Remove(s.listener)
	err := s.steering.Close()
	s.steering, s.listener = nil, nil
	if err != nil {
		return fmt.Errorf("close steering: %w", err)
	}
	return nil
}

// socket makes a socket inside the segment's namespace. It runs on a relay
// loop, whose thread is locked, and so may change the thread's namespace for
// the length of one call.
func (s *segment) socket(domain, typ int) (int, error) {
	if err := unix.Setns(s.ns.FD(), unix.CLONE_NEWNET); err != nil {
		return -1, fmt.Errorf("enter namespace of segment %s: %w", s.name, err)
	}
	fd, err := unix.Socket(domain, typ, 0)
	if back := unix.Setns(s.agent.host.FD(), unix.CLONE_NEWNET); back != nil {
		// Every socket this thread made from now on would be in the wrong place.
		panic(fmt.Sprintf("agent: return from namespace of segment %s: %v", s.name, back))
	}
	return fd, err
}

// remove ends the segment's flows and takes everything of it out of the kernel.
func (s *segment) remove(ctx context.Context) error {
	errs := []error{s.closeSteering()}
	s.agent.cfg.Engine.CloseFlows(func(f *relay.Flow) bool { return f.Listener.Name == s.name }, deception.EndShutdown)
	errs = append(errs, s.closeKernelPath(ctx))
	if s.ns != nil {
		errs = append(errs, s.ns.Close(), netns.Delete(netns.SegmentName(s.name)))
	}
	errs = append(errs, link.Remove(ctx, s.agent.host, s.name))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove segment %s: %w", s.name, err)
	}
	return nil
}

func (s *segment) status(state *deception.State) SegmentStatus {
	st := SegmentStatus{
		Name: s.name, Parent: s.plan.segment.Parent, VLAN: s.plan.segment.VLAN, Ready: s.ready,
		OpenPorts: s.steerStatus.Ports, KernelPath: len(s.plan.kernel),
		Problems: s.problems, Warnings: slices.Concat(s.linkStatus.Warnings, s.warnings),
	}
	if s.linkStatus.Lower != st.Parent {
		st.Lower = s.linkStatus.Lower
	}
	if s.steering != nil {
		st.Steering = string(s.steering.Mode())
	}
	if s.linkStatus.MAC != nil {
		st.MAC = s.linkStatus.MAC.String()
	}
	if s.kernel != nil {
		st.KernelLost = s.kernel.lost()
	}
	for _, d := range state.DecoysOf(s.name) {
		st.Decoys++
		for _, r := range d.Addresses {
			st.Addresses += r.Len()
		}
	}
	return st
}
