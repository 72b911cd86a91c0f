package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/survey"
)

// readKernelPaths sends a packet for each service of the kernel path out of the
// segment's namespace and looks how far it and its answer come. The packet is
// put straight onto the veth pair, past the namespace's own connection
// tracking, so that no session is recorded of it.
func (r *reader) readKernelPaths(ctx context.Context) {
	if r.facts.State == nil || r.facts.Running == nil {
		return
	}
	probes := planKernelProbes(r.facts.State)
	if len(probes) == 0 {
		return
	}
	w, err := openWatch(r.host)
	if err != nil {
		r.unread("kernel path", "", err)
		return
	}
	defer w.close()
	r.each(len(probes), func(i int) { probes[i].Sent = r.probeKernelPath(ctx, w, &probes[i]) })
	r.facts.KernelPaths = probes
}

// planKernelProbes takes the first decoy of each segment that leads to a
// service.
func planKernelProbes(state *deception.State) []KernelProbe {
	table := deception.NewTable(state)
	var out []KernelProbe
	for i := range state.Decoys {
		d := &state.Decoys[i]
		if d.Path != deception.PathKernel {
			continue
		}
		for _, r := range d.Addresses {
			for _, b := range d.Bind {
				t, ok := boundPort(table, d, r.From, b.Service)
				if !ok || slices.ContainsFunc(out, func(o KernelProbe) bool {
					return o.Segment == d.Segment && o.Service == b.Service && o.Target.Addr().Is4() == r.From.Is4()
				}) {
					continue
				}
				out = append(out, KernelProbe{
					Segment: d.Segment, Service: b.Service, Zone: t.Service.Zone, Uplink: link.HostName(d.Segment), Target: t.Address,
				})
			}
		}
	}
	return out
}

func (r *reader) probeKernelPath(ctx context.Context, w *watch, p *KernelProbe) error {
	host := r.facts.Link(p.Uplink)
	zone := r.facts.Link(r.facts.State.Zone(p.Zone).Link)
	if host == nil {
		return errors.New("its link " + p.Uplink + " does not exist")
	}
	if zone == nil {
		return nil // said already
	}
	ns, err := netns.Open(netns.SegmentName(p.Segment))
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("its network namespace does not exist")
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	source := netip.AddrPortFrom(stranger(p.Target.Addr()), uint16(20000+rand.IntN(12000)))
	sequence := rand.Uint32()
	send := func(sequence uint32, flags byte) error {
		return inject(ns, host, packetOf(source.Addr(), p.Target.Addr(), protoTCP, segment(source, p.Target, sequence, flags)))
	}
	look := func() {
		for _, s := range w.find(source, p.Target) {
			p.Forwarded = p.Forwarded || s.index == zone.Index && s.kind == unix.PACKET_OUTGOING
		}
		for _, s := range w.find(p.Target, source) {
			p.Answered = p.Answered || s.index == zone.Index && s.kind != unix.PACKET_OUTGOING
			p.Returned = p.Returned || s.index == host.Index && s.kind == unix.PACKET_OUTGOING
		}
	}
	for range 2 { // a frame may get lost
		if err := send(sequence, flagSYN); err != nil {
			return err
		}
		until(ctx, answerWait/2, func() bool { look(); return p.Returned })
		if p.Returned {
			break
		}
	}
	if !p.Forwarded {
		return nil
	}
	return send(sequence+1, flagRST)
}

// inject sends a packet at the segment's end of its veth pair.
func inject(ns *netns.NS, host *survey.Link, packet []byte) error {
	links, err := survey.Links(ns)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(links, func(l survey.Link) bool { return l.Name == link.UplinkName })
	if i < 0 || len(host.MAC) != 6 {
		return errors.New("its link " + link.UplinkName + " does not exist")
	}
	fd, err := ns.Socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{Protocol: swapped(etherIPv4), Ifindex: links[i].Index, Halen: 6}
	if packet[0]>>4 == 6 {
		to.Protocol = swapped(etherIPv6)
	}
	copy(to.Addr[:], host.MAC)
	if err := unix.Sendto(fd, packet, 0, to); err != nil {
		return fmt.Errorf("send at %s: %w", link.UplinkName, err)
	}
	return nil
}
