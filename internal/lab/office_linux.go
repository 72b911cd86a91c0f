package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Pair is a host's address in either family.
type Pair struct{ V4, V6 netip.Addr }

// The office's address plan. Everything else of OfficeLAN4 and OfficeLAN6 is
// free for decoys; OfficeAlias4 and OfficeAlias6 are free for aliases of the
// services, and are routed nowhere.
var (
	OfficeLAN4, OfficeLAN6     = netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:2::/64")
	OfficeZone4, OfficeZone6   = netip.MustParsePrefix("10.1.0.0/24"), netip.MustParsePrefix("fd00:1::/64")
	OfficeAlias4, OfficeAlias6 = netip.MustParsePrefix("10.1.128.0/17"), netip.MustParsePrefix("fd00:1:0:8000::/64")

	OfficeGateway    = pair("192.0.2.5", "2001:db8:2::5")
	OfficeProduction = pair("192.0.2.10", "2001:db8:2::10")
	OfficeIntruder   = pair("192.0.2.66", "2001:db8:2::66")

	OfficeZoneGateway = pair("10.1.0.1", "fd00:1::1")
	OfficeWeb         = pair("10.1.0.2", "fd00:1::2")
	OfficeRedis       = pair("10.1.0.3", "fd00:1::3")
	OfficeSSH         = pair("10.1.0.4", "fd00:1::4")
	OfficeUDP         = pair("10.1.0.5", "fd00:1::5")
)

func pair(v4, v6 string) Pair {
	return Pair{V4: netip.MustParseAddr(v4), V6: netip.MustParseAddr(v6)}
}

// Topology is the office network, in which the demo plays:
//
//	intruder     production
//	   |             |
//	---+------lan----+-----+---   192.0.2.0/24, 2001:db8:2::/64
//	                       |
//	                  eth0 | .5
//	                      gw        the decoy host
//	              br-linux | 10.1.0.1
//	                       |
//	                     linux      the zone: nginx .2  redis .3  sshd .4  udp .5
type Topology struct {
	LAN  *Switch // the office's network
	Zone *Switch // br-linux in gw

	Intruder   *Machine
	Production *Machine // a host that nobody may disturb
	Gateway    *Machine // gw
	Linux      *Machine // the services' machine

	ProductionWeb *Server // nginx, on 80 and 443
	Web           *Server // nginx, on 80 and 443
	Redis         *Server // on 6379
	SSH           *SSHServer
	UDP           *Server // UDPEcho on 161
}

// Office builds the office network under the name (as New does) and starts its
// servers, telling progress what is being done. The services listen on all
// addresses of their machine, so that any of them answers at an alias too.
func Office(ctx context.Context, name string, progress func(string)) (*Lab, Topology, error) {
	var t Topology
	if progress == nil {
		progress = func(string) {}
	}
	l, err := New(name)
	if err != nil {
		return nil, t, err
	}
	began := time.Now()
	t.wire(l)
	progress(fmt.Sprintf("network up: intruder, production, gw and linux in %d ms", time.Since(began).Milliseconds()))
	if err := errors.Join(l.Err(), t.serve(ctx, progress)); err != nil {
		return nil, Topology{}, errors.Join(err, l.Close())
	}
	return l, t, nil
}

// wire makes the machines and plugs them together.
func (t *Topology) wire(l *Lab) {
	lan := func(m *Machine, at Pair) {
		m.Plug(t.LAN, "eth0", at.in(OfficeLAN4, OfficeLAN6)...)
	}
	t.LAN = l.Switch("lan")
	t.Intruder, t.Production = l.Machine("intruder"), l.Machine("production")
	t.Gateway, t.Linux = l.Machine("gw"), l.Machine("linux")
	lan(t.Intruder, OfficeIntruder)
	lan(t.Production, OfficeProduction)
	lan(t.Gateway, OfficeGateway)

	t.Gateway.Forward()
	t.Zone = t.Gateway.Bridge("br-linux", OfficeZoneGateway.in(OfficeZone4, OfficeZone6)...)
	var addrs []string
	for _, p := range []Pair{OfficeWeb, OfficeRedis, OfficeSSH, OfficeUDP} {
		addrs = append(addrs, p.in(OfficeZone4, OfficeZone6)...)
	}
	t.Linux.Plug(t.Zone, "eth0", addrs...)
	t.Linux.Route("default", OfficeZoneGateway.V4.String())
	t.Linux.Route("default", OfficeZoneGateway.V6.String())
}

// in returns the addresses with the lengths of their prefixes.
func (p Pair) in(v4, v6 netip.Prefix) []string {
	return []string{
		netip.PrefixFrom(p.V4, v4.Bits()).String(),
		netip.PrefixFrom(p.V6, v6.Bits()).String(),
	}
}

// serve starts the servers, all at once.
func (t *Topology) serve(ctx context.Context, progress func(string)) error {
	var (
		group errgroup.Group
		mu    sync.Mutex // progress is called by one goroutine at a time
	)
	start := func(what string, fn func() error) {
		group.Go(func() error {
			err := fn()
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				progress("started " + what)
			}
			return err
		})
	}
	start("production web server at "+OfficeProduction.V4.String(), func() (err error) {
		t.ProductionWeb, err = Nginx(ctx, t.Production, Listen{})
		return err
	})
	start("nginx at "+OfficeWeb.V4.String(), func() (err error) {
		t.Web, err = Nginx(ctx, t.Linux, Listen{})
		return err
	})
	start("redis at "+OfficeRedis.V4.String(), func() (err error) {
		t.Redis, err = Redis(ctx, t.Linux, Listen{})
		return err
	})
	start("sshd at "+OfficeSSH.V4.String(), func() (err error) {
		t.SSH, err = SSHD(ctx, t.Linux, Listen{})
		return err
	})
	start("udp responder at "+OfficeUDP.V4.String(), func() (err error) {
		t.UDP, err = UDPEcho(ctx, t.Linux, Listen{})
		return err
	})
	return group.Wait()
}
