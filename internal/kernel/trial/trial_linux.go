package trial

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/kernel/conntrack"
	"decoynet/internal/kernel/firewall"
	"decoynet/internal/kernel/link"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/route"
	"decoynet/internal/kernel/steer"
)

// Names and addresses inside the throw-away namespaces, where nothing else is.
const (
	nic     = "trial0"
	peer    = "trial1"
	segment = "trial"
)

var (
	trialDecoy   = netip.MustParseAddrPort("192.0.2.1:80")
	trialService = netip.MustParseAddrPort("198.51.100.1:80")
)

// Namespace makes a network namespace without a name. It ends with Close, or
// with the process.
func Namespace() (*netns.NS, error) {
	type made struct {
		ns  *netns.NS
		err error
	}
	done := make(chan made)
	go func() {
		// Never unlocked: the thread, in its new namespace, ends with the
		// goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{err: fmt.Errorf("make a network namespace: %w", os.NewSyscallError("unshare", err))}
			return
		}
		ns, err := netns.Open("/proc/thread-self/ns/net")
		done <- made{ns, err}
	}()
	m := <-done
	return m.ns, m.err
}

// Run tries every feature. What cannot be tried because another is missing
// reports that one's error.
func Run(ctx context.Context) []Result {
	var out []Result
	add := func(f Feature, err error) { out = append(out, Result{f, err}) }
	host, err := Namespace()
	if err == nil {
		defer host.Close()
	}
	var seg *netns.NS
	if err == nil {
		if seg, err = Namespace(); err == nil {
			defer seg.Close()
		}
	}
	add(Namespaces, err)
	if err != nil {
		return out
	}
	err = pair(host)
	add(Veth, err)
	if err == nil {
		err = macvlan(ctx, host, seg)
	}
	add(Macvlan, err)
	add(VLAN, vlan(host))
	add(Containment, containment(ctx, host))
	add(KernelPath, kernelPath(ctx, host, seg))
	add(Events, events(ctx, seg))
	add(Rules, rules(ctx, host))
	add(Transparent, transparent(host))
	support := steer.Probe()
	add(SKLookup, support.SKLookup)
	add(TPROXY, support.TPROXY)
	add(IPTables, support.IPTables)
	return out
}

func pair(ns *netns.NS) error {
	h, err := ns.Handle()
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nic
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}); err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	l, err := h.LinkByName(nic)
	if err != nil {
		return fmt.Errorf("look for %s: %w", nic, err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", nic, err)
	}
	return nil
}

// macvlan makes a segment's links, the veth pair of the kernel path included.
func macvlan(ctx context.Context, host, seg *netns.NS) error {
	_, err := link.Apply(ctx, host, seg, link.Desired{Segment: segment, Parent: nic, Uplink: true})
	return err
}

// vlan makes a VLAN device, which loads the kernel's module for them where that is
// one.
func vlan(host *netns.NS) error {
	h, err := host.Handle()
	if err != nil {
		return err
	}
	lower, err := h.LinkByName(nic)
	if err != nil {
		return fmt.Errorf("look for %s: %w", nic, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = "trial2", lower.Attrs().Index
	if err := h.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: 2, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}); err != nil {
		return fmt.Errorf("make a VLAN device: %w", err)
	}
	return nil
}

func containment(ctx context.Context, host *netns.NS) error {
	_, err := firewall.ApplyZones(ctx, host, []firewall.ZoneRules{{Zone: "trial", Link: nic}})
	return err
}

func kernelPath(ctx context.Context, host, seg *netns.NS) error {
	_, err := firewall.ApplyKernelPath(ctx, host, seg, firewall.KernelPath{
		Index: 1, HostLink: link.HostName(segment),
		Redirects: []firewall.Redirect{{Transport: deception.TCP, Decoy: trialDecoy, Service: trialService}},
	})
	return err
}

func events(ctx context.Context, seg *netns.NS) error {
	ctx, stop := context.WithCancel(ctx)
	l, err := conntrack.Listen(ctx, seg, func(conntrack.Event) {})
	if err != nil {
		stop()
		return err
	}
	_, err = conntrack.Dump(seg)
	stop()
	return errors.Join(err, l.Wait())
}

func rules(ctx context.Context, host *netns.NS) error {
	h, err := host.Handle()
	if err != nil {
		return err
	}
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("look for lo: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	_, err = route.Apply(ctx, host, route.Desired{
		Routes: []route.Route{{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Dev: "lo", Table: route.TableZone, Type: route.Local}},
		Rules:  []route.Rule{{Family: route.IPv4, Priority: route.PriorityMax, IIF: nic, Table: route.TableZone}},
	})
	return err
}

func transparent(host *netns.NS) error {
	fd, err := host.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1); err != nil {
		return fmt.Errorf("set IP_TRANSPARENT: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: trialDecoy.Addr().As4()}); err != nil {
		return fmt.Errorf("bind to an address of others: %w", err)
	}
	return nil
}
