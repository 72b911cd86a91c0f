package agent

import (
	"context"
	"errors"
	"fmt"

	"decoynet/deception"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
)

// openTrunk opens the namespace of VLAN devices where a segment of the state
// needs one. It must be called with mu held.
func (a *Agent) openTrunk() error {
	if a.trunk != nil || len(vlansOf(a.state)) == 0 {
		return nil
	}
	ns, _, err := netns.Ensure(netns.Trunk)
	if err != nil {
		return fmt.Errorf("make the namespace of VLAN devices: %w", err)
	}
	if err := link.PrepareTrunk(ns); err != nil {
		return errors.Join(err, ns.Close())
	}
	a.trunk = ns
	return nil
}

// pruneTrunk removes the devices of VLANs that no segment has any more, and
// with the last of them the namespace. It must be called with mu held.
func (a *Agent) pruneTrunk(ctx context.Context) error {
	if a.trunk == nil {
		return nil
	}
	if vlans := vlansOf(a.state); len(vlans) > 0 {
		return link.KeepVLANs(ctx, a.trunk, vlans)
	}
	return a.closeTrunk(ctx)
}

// closeTrunk must be called with mu held.
func (a *Agent) closeTrunk(ctx context.Context) error {
	if a.trunk == nil {
		return nil
	}
	// The kernel destroys a namespace's devices some time after its name is gone;
	// a parent's VLAN must be free for the next run at once.
	err := errors.Join(link.KeepVLANs(ctx, a.trunk, nil), a.trunk.Close(), netns.Delete(netns.Trunk))
	a.trunk = nil
	return err
}

// vlansOf lists the VLANs that the state's segments are in.
func vlansOf(state *deception.State) []link.VLAN {
	var out []link.VLAN
	for _, s := range state.Segments {
		if s.VLAN != 0 {
			out = append(out, link.VLAN{Parent: s.Parent, ID: s.VLAN})
		}
	}
	return out
}
