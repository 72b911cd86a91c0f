package enrolled

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"decoynet/internal/doctor"
	"decoynet/internal/outbound"
	"decoynet/internal/pki"
)

// clockTolerance is the difference of clocks from which on the agent complains.
const clockTolerance = 5 * time.Second

// clock returns by how much this machine's clock is ahead of the controllers', as
// the first that told says.
func (f *Facts) clock() (c Controller, known bool) {
	i := slices.IndexFunc(f.Controllers, func(c Controller) bool { return c.OffsetKnown })
	if i < 0 {
		return Controller{}, false
	}
	return f.Controllers[i], true
}

func (f *Facts) clockWrong() bool {
	c, known := f.clock()
	return known && c.Offset.Abs() > clockTolerance+c.Slack
}

func judgeClock(f *Facts) []doctor.Finding {
	c, known := f.clock()
	if !known {
		return nil
	}
	off := c.Offset.Round(time.Second)
	if !f.clockWrong() {
		return []doctor.Finding{{Check: "clock", Severity: doctor.OK, What: fmt.Sprintf("within %v of the controller's", max(off.Abs(), c.Slack.Round(time.Second), time.Second))}}
	}
	word := "ahead of"
	if off < 0 {
		word = "behind"
	}
	return []doctor.Finding{{
		Check: "clock", Severity: doctor.Problem,
		What: fmt.Sprintf("this machine's clock is %v %s that of the controller %s", off.Abs(), word, c.URL),
		Why:  "times in its records are off by as much, and certificates count as expired or not yet valid; where the controller's clock is the wrong one, set that",
		Fix:  setClock(f.System),
	}}
}

func setClock(system string) string {
	switch system {
	case "windows":
		return "w32tm /resync"
	case "darwin":
		return "sudo sntp -sS time.apple.com"
	}
	return "timedatectl set-ntp true"
}

func judgeCertificate(f *Facts) []doctor.Finding {
	if f.Identity.Err != nil {
		return nil
	}
	now := f.Now
	if c, known := f.clock(); known && f.clockWrong() {
		now = now.Add(-c.Offset) // a wrong clock is not the certificate's fault
	}
	d := doctor.Finding{Check: "certificate", Subject: f.Identity.Node, Severity: doctor.Problem}
	over := now.Sub(f.Identity.Expires)
	switch {
	case over > pki.RenewGrace:
		d.What = fmt.Sprintf("the certificate expired at %s, longer ago than it may be renewed", stamp(f.Identity.Expires))
		d.Why = "neither controllers nor gateways let this node in"
		d.Fix, d.On = f.enrolAgain(), onController+"; then paste here what it prints"
	case over > 0:
		d.What = fmt.Sprintf("the certificate expired at %s", stamp(f.Identity.Expires))
		d.Why = "gateways do not let this node in until it is renewed, which the agent does by itself once it reaches a controller"
		if f.Running == nil {
			d.Fix = f.command("up")
		}
	case now.Before(f.Identity.From):
		d.What, d.Why = fmt.Sprintf("the certificate is valid from %s only, and this machine's clock shows %s", stamp(f.Identity.From), stamp(now)), "the clock is behind"
		d.Fix = setClock(f.System)
	case now.After(f.Identity.RenewAt.Add(f.Identity.Expires.Sub(f.Identity.RenewAt) / 2)):
		d.Severity = doctor.Note
		d.What = fmt.Sprintf("the certificate expires at %s and should have been renewed at %s", stamp(f.Identity.Expires), stamp(f.Identity.RenewAt))
		d.Why = "after that no gateway lets this node in"
		if f.Running == nil {
			d.Fix = f.command("up")
		}
	default:
		d.Severity, d.What = doctor.OK, fmt.Sprintf("valid until %s, renewed from %s on", stamp(f.Identity.Expires), stamp(f.Identity.RenewAt))
	}
	return []doctor.Finding{d}
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

// judgeControllers: one that is reached is enough to work, so that the others are
// worth a note.
func judgeControllers(f *Facts) []doctor.Finding {
	reached := slices.ContainsFunc(f.Controllers, func(c Controller) bool { return c.Stage == StageDone && !c.Environment })
	var out []doctor.Finding
	for _, c := range f.Controllers {
		d := f.judgeController(&c)
		if d.Severity == doctor.Problem && reached {
			d.Severity, d.Why = doctor.Note, "another controller is reached; "+cmp.Or(d.Why, "this one does not help")
		}
		out = append(out, d)
	}
	return out
}

func (f *Facts) judgeController(c *Controller) doctor.Finding {
	d := doctor.Finding{Check: "controller", Subject: c.URL, Severity: doctor.Problem, Why: "the agent runs what it was told last, and its records wait on this machine"}
	var late *pki.TimeError
	switch {
	case c.Environment:
		f.proxyNeeded(c, &d)
	case c.Stage == StageDone:
		way := ""
		if f.Proxy != "" {
			way = " through the proxy " + f.Proxy
		}
		d.Severity, d.What, d.Why = doctor.OK, "answers"+way+" and knows this node", ""
	case c.Stage == StageReach:
		f.unreached(c, &d)
	case c.Stranger != "" && c.OtherController:
		d.What = fmt.Sprintf("another controller answers there: its certificate is by another CA (%s) than this node's", c.Stranger)
		d.Fix, d.On = f.enrolAgain(), "that controller, where it is the right one; then paste here what it prints"
	case c.Stranger != "":
		d.What = fmt.Sprintf("something in between reads TLS: instead of the controller's certificate one by %q is shown", c.Stranger)
		d.Fix = "except " + c.Address + " from TLS inspection"
		d.On = "the proxy or firewall that does it"
	case c.Stage == StageDenied:
		d.What, d.Why = "the controller does not let this node in: "+c.Denied, "its decoys lead nowhere, and its records wait"
		d.Fix, d.On = f.enrolAgain(), onController+"; then paste here what it prints"
	case errors.As(c.Err, &late) && f.clockWrong():
		d.What = "no certificate counts by this machine's clock: " + pki.Explain(c.Err)
		d.Fix = setClock(f.System)
	case c.Stage == StageTLS:
		d.What = pki.Explain(c.Err)
		d.Fix, d.On = "decoynet status", onControllersHost
	default:
		d.What = "it took the connection, but " + pki.Explain(c.Err)
		d.Fix, d.On = "decoynet status", onControllersHost
	}
	return d
}

// proxyNeeded: the node's own way failed, that of the environment led there.
func (f *Facts) proxyNeeded(c *Controller, d *doctor.Finding) {
	d.What = fmt.Sprintf("it is not reached directly, but through the proxy %s that HTTPS_PROXY names", f.EnvironmentProxy)
	if f.Proxy != "" {
		d.What = fmt.Sprintf("it is not reached through this node's proxy %s, but through %s, which HTTPS_PROXY names", f.Proxy, f.EnvironmentProxy)
	}
	variable := `"$HTTPS_PROXY"`
	switch {
	case f.System == "windows":
		variable = "%HTTPS_PROXY%"
	case os.Getenv("HTTPS_PROXY") == "": // curl's other spelling
		variable = `"$https_proxy"`
	}
	d.Why = "a service does not see the variables of a shell; start decoynet again after the change"
	d.Fix = f.command("proxy " + variable)
	if c.Stage != StageDone {
		d.Why += "; behind it: " + pki.Explain(c.Err)
	}
}

// unreached says why there is no connection.
func (f *Facts) unreached(c *Controller, d *doctor.Finding) {
	d.What = pki.Explain(c.Err)
	f.way(c.Err, c.Address, d)
	if d.Fix == "" { // it is reached, but for nobody there
		d.Fix, d.On = "systemctl start decoynet", onControllersHost
	}
}

// way fills in what to do about a connection that could not be made; nothing where
// the other side's machine answered.
func (f *Facts) way(err error, address string, d *doctor.Finding) {
	var proxy *outbound.ProxyError
	var dns *net.DNSError
	host, port, _ := net.SplitHostPort(address)
	switch {
	case errors.As(err, &proxy):
		f.proxyFault(proxy, address, d)
	case errors.As(err, &dns):
		d.Fix, d.On = "nslookup "+cmp.Or(dns.Name, host), "this machine's resolver must know the name; or name an address in the document (urls of the controller, addresses of the gateway)"
	case isNoRoute(err):
		d.Fix = routes(f.System)
	case isRefused(err):
	case f.Proxy == "":
		d.Fix = f.command("proxy http://USER:PASSWORD@PROXY:3128")
		d.Why = strings.TrimSuffix("a firewall drops it: open TCP port "+port+" to "+host+", or where only a proxy leads out, name it; "+d.Why, "; ")
	}
}

func routes(system string) string {
	if system == "linux" {
		return "ip route add default via ROUTER"
	}
	return "route add default ROUTER"
}

func (f *Facts) proxyFault(e *outbound.ProxyError, address string, d *doctor.Finding) {
	d.Check, d.Subject = "proxy", e.Proxy
	d.Why = address + " is reached through it only; start decoynet again after a change"
	switch {
	case e.Stage == outbound.StageRefused && (e.Status == 407 || e.Status == 401):
		d.Fix = f.command("proxy http://USER:PASSWORD@" + e.Proxy)
	case e.Stage == outbound.StageRefused && (e.Status == 403 || e.Status == 451):
		d.Fix, d.On = "allow CONNECT to "+address, "the proxy "+e.Proxy
	case e.Stage == outbound.StageRefused:
		d.Fix, d.On = "allow and route connections to "+address, "the proxy "+e.Proxy
	default:
		d.Fix = f.command("proxy http://PROXY:3128")
	}
}

func judgeGateways(f *Facts) []doctor.Finding {
	var out []doctor.Finding
	for _, g := range f.Gateways {
		d := doctor.Finding{Check: "gateway", Subject: g.Name, Severity: doctor.Problem, Why: "no flow of this node leaves by it"}
		switch {
		case g.Connected:
			d.Severity, d.What, d.Why = doctor.OK, "reached at "+g.Address, ""
			if g.RoundTrip > 0 {
				d.What += fmt.Sprintf(", round trip %.1f ms", float64(g.RoundTrip)/1e6)
			}
		case g.Dial != nil:
			d.What = "not reached at " + g.Address + ": " + pki.Explain(g.Dial)
			if f.someController() {
				d.What += " (the controller is reached)"
			}
			f.way(g.Dial, g.Address, &d)
			if d.Fix == "" {
				d.Fix, d.On = "decoynet status", onGatewaysHost+" ("+g.Node+")"
			}
		default:
			d.What = "at " + g.Address + ": " + strings.TrimPrefix(g.Text, g.Address+": ")
			d.Fix, d.On = "decoynet status", onGatewaysHost+" ("+g.Node+")"
			if f.clockWrong() {
				d.Fix, d.On = setClock(f.System), ""
			}
		}
		other := func(o Gateway) bool { return o.Name == g.Name && o.Connected }
		if !g.Connected && slices.ContainsFunc(f.Gateways, other) {
			d.Severity, d.Why = doctor.Note, "it is reached at another address"
		}
		out = append(out, d)
	}
	return out
}

func (f *Facts) someController() bool {
	return slices.ContainsFunc(f.Controllers, func(c Controller) bool { return c.Stage == StageDone })
}
