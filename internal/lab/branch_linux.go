package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// The branch office's address plan.
var (
	BranchLAN4, BranchLAN6 = netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:51::/64")

	BranchRouter   = pair("198.51.100.1", "2001:db8:51::1")
	BranchServer   = pair("198.51.100.10", "2001:db8:51::10")
	BranchIntruder = pair("198.51.100.66", "2001:db8:51::66")

	// BranchOutside is the only address of the branch that the office ever sees.
	BranchOutside = netip.MustParseAddr("192.0.2.20")
)

// Branch is a branch office that reaches the office through a router which
// translates addresses, so that nobody at the office sees, or could reach, a
// machine of the branch:
//
//	b-intruder     crm       the branch's business server
//	   | .66        | .10
//	---+-----+------+---     198.51.100.0/24, 2001:db8:51::/64
//	         | .1
//	     b-router            masquerades as 192.0.2.20; no IPv6 to the office
//	         | .20
//	---------+----lan----    the office
type Branch struct {
	LAN      *Switch
	Router   *Machine
	Server   *Machine
	Intruder *Machine
}

// AddBranch hangs a branch office on the office's LAN.
func (t *Topology) AddBranch(ctx context.Context, l *Lab) (Branch, error) {
	b := Branch{LAN: l.Switch("branch"), Router: l.Machine("b-router"), Server: l.Machine("crm"), Intruder: l.Machine("b-intruder")}
	b.Router.Plug(t.LAN, "eth0", netip.PrefixFrom(BranchOutside, OfficeLAN4.Bits()).String())
	b.Router.Plug(b.LAN, "eth1", BranchRouter.in(BranchLAN4, BranchLAN6)...)
	b.Router.Forward()
	for m, at := range map[*Machine]Pair{b.Server: BranchServer, b.Intruder: BranchIntruder} {
		m.Plug(b.LAN, "eth0", at.in(BranchLAN4, BranchLAN6)...)
		m.Route("default", BranchRouter.V4.String())
	}
	if err := l.Err(); err != nil {
		return b, err
	}
	// Only from inside to outside, as such routers are.
	const rules = `table ip branch {
	chain out { type nat hook postrouting priority srcnat
		oifname "eth0" masquerade
	}
	chain through { type filter hook forward priority filter; policy drop
		ct state established,related accept
		iifname "eth1" accept
	}
}
`
	cmd := b.Router.Command(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(rules)
	if out, err := cmd.CombinedOutput(); err != nil {
		return b, errors.Join(fmt.Errorf("set up the branch's router: %w: %s", err, out), l.Err())
	}
	return b, nil
}
