package inspect

import (
	"net/netip"
	"slices"

	"decoynet/deception"
	"decoynet/internal/capture"
)

// link is a captured link as it was asked for.
type link struct {
	want    deception.Capture
	capture *capture.Capture
}

// applyCaptures listens at the links that are wanted, and no others. A link that is
// not there is waited for.
func (i *Inspector) applyCaptures(want []deception.Capture) {
	i.captures = slices.DeleteFunc(i.captures, func(l link) bool {
		keep := slices.ContainsFunc(want, func(w deception.Capture) bool { return sameCapture(&w, &l.want) })
		if !keep {
			l.capture.Close()
		}
		return !keep
	})
	for _, w := range want {
		if slices.ContainsFunc(i.captures, func(l link) bool { return l.want.Interface == w.Interface }) {
			continue
		}
		i.captures = append(i.captures, link{w, capture.New(capture.Config{
			NS: i.cfg.Host, Node: i.cfg.Node, Interface: w.Interface, Ports: w.Ports,
			Feed: i.feed, Recorder: i.cfg.Recorder, Service: i.serviceAt, Fed: i.fed, Log: i.cfg.Log,
		})})
	}
}

func sameCapture(a, b *deception.Capture) bool {
	return a.Interface == b.Interface && slices.Equal(a.Ports, b.Ports)
}

// fed tells whether a session of our own gateways is shown already.
func (i *Inspector) fed(k deception.SessionKey) bool {
	_, _, known := i.feed.Find(k)
	return known
}

// serviceAt names the service at an address and port; "" where there is none.
func (i *Inspector) serviceAt(t deception.Transport, at netip.AddrPort) string {
	services := i.services.Load()
	if services == nil {
		return ""
	}
	for n := range *services {
		s := &(*services)[n]
		if s.Addr(at.Addr()) == at.Addr() && slices.ContainsFunc(s.Ports, func(r deception.PortRange) bool { return r.Contains(t, at.Port()) }) {
			return s.Name
		}
	}
	return ""
}
