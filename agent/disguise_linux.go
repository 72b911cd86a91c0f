package agent

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"decoynet/internal/kernel/disguise"
	"decoynet/internal/kernel/link"
)

// disguise gives the decoys the looks that they are to have. It comes before
// steering: listening sockets take the namespace's buffers when they are opened.
func (s *segment) disguise(ctx context.Context) error {
	machine, err := link.MachineID()
	if err != nil {
		return err
	}
	machine = cmp.Or(machine, s.linkStatus.MAC.String())
	seed := disguise.Seed(machine, s.plan.link.Node, s.name)
	s.policies = slices.Clone(s.plan.looks)
	for i := range s.policies {
		s.policies[i].Seed = seed
	}
	lower := s.agent.host
	if s.linkStatus.InTrunk {
		lower = s.agent.trunk
	}
	s.looksStatus, err = s.looks.Apply(ctx, disguise.Desired{
		Segment: s.name, NS: s.ns, Link: s.linkStatus.Index, MAC: s.linkStatus.MAC,
		LowerNS: lower, Lower: s.linkStatus.LowerIndex, Policies: s.policies,
	})
	if err != nil {
		return fmt.Errorf("disguise decoys: %w", err)
	}
	return nil
}
