package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"reflect"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/claim"
	"decoynet/internal/kernel/disguise"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/route"
	"decoynet/internal/kernel/steer"
	"decoynet/internal/kernel/wire"
	"decoynet/internal/relay"
)

// segment is what runs for one segment.
type segment struct {
	agent *Agent
	name  string

	mu   sync.Mutex // guards the rest but watch, which is made before anybody else knows the segment
	plan segmentPlan

	watch   *watcher
	tap     *wire.Tap // at the segment's own link; nil in a VLAN of ours
	tapLink int
	dropped uint64                // frames, by Taps before it
	applied []deception.AddrRange // the addresses that the kernel was told of

	ns       *netns.NS // nil but while something is applied: hundreds of segments would hold hundreds of descriptors
	steering *steer.Steering
	listener *relay.Listener
	kernel   *kernelPath
	looks    disguise.Disguise
	policies []disguise.Policy // what looks was given

	linkStatus  link.Status
	shared      string // this machine's own interface of the VLAN, if lan0 stands or stood on one
	looksStatus disguise.Status
	steerStatus steer.Status
	problems    []string
	warnings    []string
	ready       bool
	settled     bool // all of plan was applied, and nobody doubts that it still is
	removed     bool
}

// stands tells whether the plan is what was applied.
func (s *segment) stands(p *segmentPlan) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.settled && reflect.DeepEqual(*p, s.plan)
}

// doubt has the next apply compare everything with the kernel.
func (s *segment) doubt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled = false
}

// apply brings the segment to its plan: namespace, link, addresses, then ports,
// so that a port is only ever open at an address that is claimed. It may be
// repeated at any time and does nothing where nothing differs.
func (s *segment) apply(ctx context.Context, p segmentPlan) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	forced := s.plan.segment.Steering
	if s.plan.segment.Parent != p.segment.Parent || s.plan.segment.VLAN != p.segment.VLAN {
		s.shared = ""
	}
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
	if err := s.open(); err != nil {
		return err
	}
	defer s.close()
	if p.link.Uplink {
		// Before the namespace forwards, so that it never forwards what it should not.
		if err := s.applyKernelPath(ctx); err != nil {
			return err
		}
	}
	var err error
	links := p.link
	links.Trunk, links.Shared = s.agent.trunk, s.shared
	if s.linkStatus, err = link.Apply(ctx, s.agent.host, s.ns, links); err != nil {
		if errors.Is(err, link.ErrParentDown) || errors.Is(err, link.ErrParentMissing) {
			s.watch.lost()
		}
		return err // without a link there is nothing to put addresses on
	}
	s.shared = ""
	if p.segment.VLAN != 0 && !s.linkStatus.InTrunk {
		s.shared = s.linkStatus.Lower
	}
	errs := []error{s.limit(ctx), s.disguise(ctx)} // before an address is answered for
	if err := s.claim(); err != nil {
		return errors.Join(append(errs, err)...) // an address that cannot be defended is not taken
	}
	s.mirrorKernelPath()
	errs = append(errs, s.applyRoutes(ctx, s.watch.addresses()), s.steer(ctx, steeredBy))
	if !p.link.Uplink {
		errs = append(errs, s.closeKernelPath(ctx))
	}
	return errors.Join(errs...)
}

// open makes or finds the segment's namespace. What a run that was killed left in
// it goes on to be held while it is asked for again.
func (s *segment) open() error {
	ns, created, err := netns.Ensure(netns.SegmentName(s.name))
	if err != nil {
		return fmt.Errorf("make network namespace: %w", err)
	}
	var adopted []deception.AddrRange
	if !created && s.watch == nil {
		if adopted, err = route.Held(ns); err != nil {
			return errors.Join(err, ns.Close())
		}
	}
	s.ns = ns
	if s.watch == nil {
		s.watch = newWatcher(s.agent, s.name, adopted)
	}
	return nil
}

// close lets go of the namespace.
func (s *segment) close() {
	if s.ns != nil {
		_ = s.ns.Close() // a descriptor; nothing is lost
		s.ns = nil
	}
}

// claim says what addresses the segment is to have.
func (s *segment) claim() error {
	at := &sight{
		tap: s.agent.trunkTap, link: s.linkStatus.LowerIndex, mac: claim.MAC(s.linkStatus.MAC), bound: newBoundPorts(&s.plan),
	}
	if s.linkStatus.InTrunk {
		if err := s.closeTap(); err != nil { // of the link that it had before it was moved into a VLAN
			return err
		}
	} else {
		if err := s.openTap(s.linkStatus.Index); err != nil {
			return err
		}
		at.tap, at.link = s.tap, s.linkStatus.Index
	}
	at.look(s.policies)
	for _, sub := range s.plan.segment.Subnets {
		at.subnets = append(at.subnets, sub.Prefix)
		if sub.Gateway.IsValid() {
			at.gateways = append(at.gateways, sub.Gateway)
		}
	}
	s.watch.want(at, s.plan.segment, s.plan.decoys, &s.linkStatus)
	return nil
}

// applyRoutes makes the held addresses, and the routes, the namespace's. Flows to
// addresses that are given up end while those are still there to reset them from.
func (s *segment) applyRoutes(ctx context.Context, held []deception.AddrRange) error {
	if !slices.Equal(deception.SortRanges(slices.Concat(s.applied, held)), held) && s.agent.cfg.CloseFlows != nil {
		s.agent.cfg.CloseFlows(func(session *deception.Session) bool {
			a := session.Destination.Addr()
			return session.Segment == s.name && !slices.ContainsFunc(held, func(r deception.AddrRange) bool { return r.Contains(a) })
		}, deception.EndShutdown)
	}
	status, err := route.Apply(ctx, s.ns, holding(s.plan.routes, held))
	if err == nil {
		s.applied = held
	}
	s.agent.cfg.Log.Debug("addresses applied", "segment", s.name, "added", status.Added, "removed", status.Removed)
	return err
}

// applyHeld tells the kernel of claims that have changed since.
func (s *segment) applyHeld(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	held, changed := s.watch.take()
	if !changed || s.removed || s.linkStatus.Index == 0 {
		return nil
	}
	if err := s.open(); err != nil {
		s.settled = false
		return err
	}
	defer s.close()
	if err := s.applyRoutes(ctx, held); err != nil {
		s.settled = false // and so tried again
		return err
	}
	return nil
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
	listener := &relay.Listener{Name: s.name, Socket: func(domain, typ int) (int, error) { return s.agent.socket(steering, domain, typ) }}
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

// socket makes a socket inside a steered namespace. It runs on a relay loop, whose
// thread is locked, and so may change the thread's namespace for the length of one
// call.
func (a *Agent) socket(in *steer.Steering, domain, typ int) (int, error) {
	ns, err := in.Namespace()
	if err != nil {
		return -1, err
	}
	defer unix.Close(ns)
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		return -1, fmt.Errorf("enter a segment's namespace: %w", err)
	}
	fd, err := unix.Socket(domain, typ, 0)
	if err == nil {
		// Without it steering by iptables drops what the socket is to get.
		if err = unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
			unix.Close(fd)
		}
	}
	if back := unix.Setns(a.host.FD(), unix.CLONE_NEWNET); back != nil {
		// Every socket this thread made from now on would be in the wrong place.
		panic(fmt.Sprintf("agent: return from a segment's namespace: %v", back))
	}
	return fd, err
}

// remove ends the segment's flows and takes everything of it out of the kernel.
func (s *segment) remove(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	errs := []error{s.closeSteering(), s.closeTap()}
	s.agent.cfg.Engine.CloseFlows(func(f *relay.Flow) bool { return f.Listener.Name == s.name }, deception.EndShutdown)
	if s.watch != nil { // else there is no namespace yet
		errs = append(errs, s.open(), s.closeKernelPath(ctx), s.looks.Remove(s.name))
		s.close()
		errs = append(errs, netns.Delete(netns.SegmentName(s.name)))
	}
	s.removed = true
	errs = append(errs, link.Remove(ctx, s.agent.host, s.name))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove segment %s: %w", s.name, err)
	}
	return nil
}

func (s *segment) status(state *deception.State) SegmentStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := SegmentStatus{
		Name: s.name, Parent: s.plan.segment.Parent, VLAN: s.plan.segment.VLAN, Ready: s.ready,
		OpenPorts: s.steerStatus.Ports, KernelPath: len(s.plan.kernel),
		Problems: s.problems, Promiscuous: s.looksStatus.Promiscuous, Warnings: slices.Concat(s.linkStatus.Warnings, s.warnings),
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
	if s.watch != nil {
		st.Sensed, st.SensingDropped = s.sensed()
		claims := s.watch.status()
		st.Claimed, st.Claiming = claims.Held, claims.Wanted-min(claims.Wanted, claims.Held+claims.Withdrawn)
		st.Ready = st.Ready && claims.Ready()
		for _, c := range claims.Conflicts {
			st.Conflicts = append(st.Conflicts, fmt.Sprintf("%s of decoy %s: the machine with MAC %s has it; asked for again at %s",
				c.Address, c.Decoy, net.HardwareAddr(c.MAC[:]), c.Retry.Format(time.TimeOnly)))
		}
	}
	return st
}
