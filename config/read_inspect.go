package config

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"decoynet/deception"
)

// Defaults of the mapping inspect.
const (
	DefaultTap         = "vtap0"
	DefaultDepth       = 16_000_000    // bytes; Suricata's own default is 1 MiB
	DefaultPCAPSize    = 1_000_000_000 // bytes
	DefaultPCAPAge     = 7 * 24 * time.Hour
	DefaultPCAPSession = 16_000_000 // bytes
)

// The feeds that inspect.feeds may name.
const (
	feedFIFO = "fifo"
	feedTap  = "tap"
)

// off is how the document writes that there is none of something.
const off = "off"

// inspectDraft is how intruders' flows are analysed.
type inspectDraft struct {
	suricata    located[string]
	eve         located[string]
	feeds       []located[string]
	hasFeeds    bool
	tap         located[string]
	depth       located[uint64]
	rules       []located[string]
	systemRules located[string]
	capture     []captureDraft
	size        located[uint64]
	age         located[time.Duration]
	session     located[uint64]
	nodes       []located[string]
}

type captureDraft struct {
	link  located[string]
	ports []located[deception.PortRange]
}

func readInspect(o *object) *inspectDraft {
	i := &inspectDraft{}
	if o == nil {
		return i
	}
	i.hasFeeds = o.has("feeds")
	if o.has("suricata") {
		i.suricata = o.oneOf("suricata", string(deception.SuricataManaged), string(deception.SuricataExternal), off)
	}
	if o.has("eve") {
		i.eve = readOne(o, "eve", absolute("eve", "/var/log/suricata/eve.json"))
	}
	i.feeds, _ = readList(o, "feeds", parseFeed)
	if o.has("tap") {
		i.tap = readOne(o, "tap", parseInterface)
	}
	if o.has("depth") {
		i.depth = readOne(o, "depth", orOff(sizeIn("depth", 64_000, math.MaxInt64, "16MB")))
	}
	i.rules, _ = readList(o, "rules", absolute("rules", "/etc/decoynet/rules"))
	if n := o.get("system-rules"); n != nil {
		i.systemRules = located[string]{n.text, n.text, n.at, true}
	}
	for _, e := range o.objects("capture", captureShape) {
		c := captureDraft{link: readOne(e, "interface", parseInterface)}
		c.ports, _ = readList(e, "ports", parsePorts)
		checkPortsOnce(e.r, "this capture entry", c.ports)
		i.capture = append(i.capture, c)
	}
	i.nodes, _ = readList(o, "nodes", parseNode)
	if n := o.get("pcap"); n != nil {
		i.readPCAP(o.r.object(n, pcapShape))
	}
	return i
}

func (i *inspectDraft) readPCAP(o *object) {
	if o == nil {
		return
	}
	if o.has("size") {
		i.size = readOne(o, "size", orOff(sizeIn("size", 1_000_000, math.MaxInt64, "1GB")))
	}
	if o.has("age") {
		i.age = readOne(o, "age", durationIn("age", time.Minute, 3650*24*time.Hour, "7d"))
	}
	if o.has("session") {
		i.session = readOne(o, "session", sizeIn("session", 10_000, math.MaxInt64, "16MB"))
	}
}

func parseFeed(s string) (string, error) {
	if s != feedFIFO && s != feedTap {
		return "", fmt.Errorf("unknown feed %q; fifo or tap, or both as [fifo, tap]", s)
	}
	return s, nil
}

// absolute returns a reader of paths from the root.
func absolute(what, example string) func(string) (string, error) {
	return func(s string) (string, error) {
		if !strings.HasPrefix(s, "/") {
			return "", fmt.Errorf("%s %q is not absolute; a path from the root, as %s", what, s, example)
		}
		return s, nil
	}
}

var sizeForm = regexp.MustCompile(`^([0-9]{1,15})(kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)$`)

var sizeUnits = map[string]uint64{
	"kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
}

// sizeIn returns a reader of sizes in bytes within bounds.
func sizeIn(what string, low, high uint64, example string) func(string) (uint64, error) {
	return func(s string) (uint64, error) {
		m := sizeForm.FindStringSubmatch(s)
		if m == nil {
			return 0, fmt.Errorf("bad %s %q; a number with its unit (kB, MB, GB, KiB, MiB, GiB), as %s", what, s, example)
		}
		n, _ := strconv.ParseUint(m[1], 10, 64) // at most 15 digits
		unit := sizeUnits[m[2]]
		if n > high/unit || n*unit < low {
			return 0, fmt.Errorf("%s %s is out of bounds; at least %d bytes, as %s", what, s, low, example)
		}
		return n * unit, nil
	}
}

// orOff has a reader of sizes take off for 0.
func orOff(read func(string) (uint64, error)) func(string) (uint64, error) {
	return func(s string) (uint64, error) {
		if s == off {
			return 0, nil
		}
		n, err := read(s)
		if err != nil {
			err = fmt.Errorf("%w, or %s", err, off)
		}
		return n, err
	}
}

// checkInspect sees to it that what analyses is fed, and that what is named is
// there.
func (c *checker) checkInspect() {
	i := c.d.inspect
	if i == nil {
		return
	}
	for _, n := range i.nodes {
		c.nodeNamed(n)
	}
	mode := i.mode()
	if i.eve.ok && mode != deception.SuricataExternal {
		c.add(i.eve.at, "eve is the event file of a Suricata that others run; suricata: external with it, or drop eve")
	}
	if i.hasFeeds && i.tap.ok && !i.named(feedTap) {
		c.add(i.tap.at, "tap %q, but feeds leaves tap out; feeds: [fifo, tap], or drop tap", i.tap.v)
	}
	if len(i.feeds) > 0 && !i.named(feedFIFO) && mode == deception.SuricataManaged {
		c.add(i.feeds[0].at, "the Suricata that decoynet runs is fed by fifo; feeds: [fifo, tap], or suricata: external for one that others run at the tap")
	}
	first := map[string]pos{}
	for _, e := range i.capture {
		if !e.link.ok {
			continue
		}
		if at, twice := first[e.link.v]; twice {
			c.add(e.link.at, "interface %q a second time, first in line %d; one capture entry each", e.link.v, at.line)
			continue
		}
		first[e.link.v] = e.link.at
	}
	if i.tap.ok && first[i.tap.v] != (pos{}) {
		c.add(i.tap.at, "tap %q is captured from as well; the feed would come round again, so another name", i.tap.v)
	}
}

func (i *inspectDraft) mode() deception.SuricataMode {
	switch {
	case !i.suricata.ok:
		return deception.SuricataManaged
	case i.suricata.v == off:
		return deception.SuricataOff
	}
	return deception.SuricataMode(i.suricata.v)
}

// named tells whether feeds names the feed.
func (i *inspectDraft) named(feed string) bool {
	return slices.ContainsFunc(i.feeds, func(f located[string]) bool { return f.v == feed })
}

func (i *inspectDraft) resolve() *deception.Inspect {
	out := &deception.Inspect{
		Suricata: i.mode(), EVE: i.eve.v, Tap: i.tap.v, Depth: DefaultDepth, SystemRules: i.systemRules.v != "false",
		PCAP: deception.PCAPLimits{MaxBytes: DefaultPCAPSize, MaxAge: DefaultPCAPAge, SessionBytes: DefaultPCAPSession},
	}
	tap := i.named(feedTap)
	out.FIFO = i.named(feedFIFO)
	if !i.hasFeeds {
		out.FIFO = out.Suricata == deception.SuricataManaged
		tap = i.tap.ok || out.Suricata == deception.SuricataExternal
	}
	if tap && out.Tap == "" {
		out.Tap = DefaultTap
	}
	if len(i.rules) > 0 {
		out.Rules = values(i.rules)
	}
	if len(i.nodes) > 0 {
		out.Nodes = values(i.nodes)
	}
	for _, c := range i.capture {
		one := deception.Capture{Interface: c.link.v}
		if len(c.ports) > 0 {
			one.Ports = values(c.ports)
		}
		out.Capture = append(out.Capture, one)
	}
	if i.depth.ok {
		out.Depth = i.depth.v
	}
	if i.size.ok {
		out.PCAP.MaxBytes = i.size.v
	}
	if i.age.ok {
		out.PCAP.MaxAge = i.age.v
	}
	if i.session.ok {
		out.PCAP.SessionBytes = i.session.v
	}
	return out
}
