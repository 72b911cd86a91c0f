package inspect

import (
	"net/netip"
	"time"

	"decoynet/deception"
	"decoynet/internal/kernel/wire"
)

// The Inspector is the agent's mirror: flows of the kernel path are shown while
// anything is analysed, and cost nothing else.

// Watch has flows of a segment's kernel path shown from now on.
func (i *Inspector) Watch(segment string, ns wire.Namespace, link string, decoys []*deception.Decoy, table *deception.Table) {
	if !i.enabled.Load() {
		i.mirror.Unwatch(segment)
		return
	}
	i.mirror.Watch(segment, ns, link, decoys, table)
}

// Unwatch ends what Watch began.
func (i *Inspector) Unwatch(segment string) { i.mirror.Unwatch(segment) }

// Session returns the identifier of a flow of the kernel path that began at start.
func (i *Inspector) Session(segment string, t deception.Transport, source, destination netip.AddrPort, start time.Time) deception.SessionID {
	if !i.enabled.Load() {
		return deception.NewSessionID(start)
	}
	return i.mirror.Session(segment, t, source, destination, start)
}

// Know tells what is known of a session of the kernel path.
func (i *Inspector) Know(s *deception.Session) {
	if i.enabled.Load() {
		i.mirror.Know(s)
	}
}
