package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"decoynet/deception"
	"decoynet/internal/claim"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/wire"
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
	a.trunkTap, err = wire.Open(wire.Config{NS: ns, Handle: a.seenOnTrunk, RingBytes: trunkRing})
	if err != nil {
		return errors.Join(fmt.Errorf("watch the VLANs: %w", err), ns.Close())
	}
	a.trunk = ns
	return nil
}

// seenOnTrunk hands the frames of VLANs to the segments that are in them.
func (a *Agent) seenOnTrunk(frames []wire.Frame) {
	byLink := *a.onTrunk.Load()
	for len(frames) > 0 {
		n := 1
		for n < len(frames) && frames[n].Link == frames[0].Link {
			n++
		}
		for _, w := range byLink[frames[0].Link] {
			w.seen(frames[:n])
		}
		frames = frames[n:]
	}
}

// publish makes known to the goroutines that watch which segments there are. It
// must be called with mu held.
func (a *Agent) publish() {
	watched := make([]*segment, 0, len(a.segments))
	macs := map[claim.MAC]struct{}{}
	onTrunk := map[int][]*watcher{}
	for _, s := range a.segments {
		if s.watch == nil {
			continue
		}
		watched = append(watched, s)
		if sight := s.watch.sight.Load(); sight != nil {
			macs[sight.mac] = struct{}{}
			if sight.tap == a.trunkTap {
				onTrunk[sight.link] = append(onTrunk[sight.link], s.watch)
			}
		}
	}
	a.watched.Store(&watched)
	a.macs.Store(&macs)
	a.onTrunk.Store(&onTrunk)
	a.wake()
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
	err := errors.Join(a.trunkTap.Close(), link.KeepVLANs(ctx, a.trunk, nil), a.trunk.Close(), netns.Delete(netns.Trunk))
	a.trunk, a.trunkTap = nil, nil
	return err
}

// cleanTrunk removes the VLAN devices that a run which was killed left. With their
// namespace the kernel would remove them too, but leave a parent NIC promiscuous
// where one of them was.
func cleanTrunk(ctx context.Context) error {
	ns, err := netns.Open(netns.Trunk)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open the namespace of VLAN devices: %w", err)
	}
	return errors.Join(link.KeepVLANs(ctx, ns, nil), ns.Close())
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
