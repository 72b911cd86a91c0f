//go:build !linux

package agent

import (
	"net/netip"

	"decoynet/deception"
)

// socketOwners knows nothing here: only Linux's /proc tells.
type socketOwners struct{}

func newSocketOwners() *socketOwners { return &socketOwners{} }

func (*socketOwners) find(deception.Transport, netip.AddrPort) string { return "" }
