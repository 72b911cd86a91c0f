// Package sense makes probes of contacts: what one source does in one segment,
// taken together while it lasts.
//
// Whoever can send frames can forge sources, as many as a link carries. So
// everything here is bounded, memory and the number of probes alike, and what
// cannot be told apart is counted together, under the source zero: of a contact
// nothing but its source may get lost.
package sense

import (
	"cmp"
	"hash/maphash"
	"net/netip"
	"slices"
	"sync"
	"time"

	"decoynet/deception"
)

// Contact is somebody's touch of an address.
type Contact struct {
	Segment   string
	At        int64 // in nanoseconds since 1970
	Source    netip.Addr
	SourceMAC [6]byte
	Kind      deception.ContactKind
	Target    netip.Addr
	Port      uint16 // of SYN and datagram
}

// Config says how contacts become probes. Zero values stand for the defaults.
type Config struct {
	Node string
	// Emit is given every probe. It must not block, nor call the Aggregator.
	Emit func(*deception.Probe)
	// Scanner names the known scanner that the source is, for a contact to that
	// port; empty if it is none. For ARP and pings transport and port are 0. May
	// be nil.
	Scanner func(source netip.Addr, t deception.Transport, port uint16, at time.Time) string
	// MaxSources is how many sources are told apart at a time, in all segments.
	MaxSources int
	// NewSources is how many new ones become probes of their own in a second, in
	// the long run; ten times as many at once.
	NewSources int
	// Quiet is the silence that ends a probe.
	Quiet time.Duration
	// Every is how often a probe that grows is told again.
	Every time.Duration
}

// The defaults of Config.
const (
	DefaultMaxSources = 16384
	DefaultNewSources = 100
	DefaultQuiet      = 30 * time.Second
	DefaultEvery      = 10 * time.Second
)

const (
	// settle is how long a new probe waits before it is first told, so that it is
	// told as what it is: a scan makes its first ten contacts within that time.
	settle = 500 * time.Millisecond
	// change is how soon a probe may be told again when it turns out to be another
	// kind of scan.
	change = time.Second
)

// Aggregator takes contacts together. Observe may be called from several
// goroutines; Tick and Flush from one.
type Aggregator struct {
	config Config
	seed   maphash.Seed

	mu       sync.Mutex // guards the rest
	sources  map[key]*source
	list     []*source // the same, in no order
	segments map[string]*segment
	found    *source  // who was found last
	where    *segment // where that was
	tables   budget   // of all counters
	crowd    crowd    // those that are not told apart
	tokens   float64  // how many new sources may be told now
	refilled int64    // when tokens was last counted up
	pending  []*deception.Probe
}

// key is what tells sources apart: the address, and for those who have none yet
// (ARP probes, duplicate address detection) the MAC address.
type key struct {
	segment *segment
	address netip.Addr
	sender  [6]byte // zero where there is an address
}

// segment is a segment that has contacts.
type segment struct {
	name     string
	sources  int     // how many are told apart
	overflow *source // those that are not, nil if there are none
}

// New returns an Aggregator without contacts.
func New(c Config) *Aggregator {
	c.MaxSources = cmp.Or(c.MaxSources, DefaultMaxSources)
	c.NewSources = cmp.Or(c.NewSources, DefaultNewSources)
	c.Quiet = cmp.Or(c.Quiet, DefaultQuiet)
	c.Every = cmp.Or(c.Every, DefaultEvery)
	return &Aggregator{
		config: c, seed: maphash.MakeSeed(), sources: map[key]*source{}, segments: map[string]*segment{},
		tokens: float64(10 * c.NewSources),
	}
}

// Observe counts contacts. Those of a source that is known cost no allocation.
func (a *Aggregator) Observe(contacts []Contact) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range contacts {
		c := &contacts[i]
		if int(c.Kind) >= deception.ContactKinds {
			continue
		}
		s := a.found
		if s == nil || s.address != c.Source || s.segment.name != c.Segment || s.mac != c.SourceMAC {
			s = a.find(c)
		}
		a.add(s, c)
	}
}

// find returns the source of the contact, or the one that stands for all for
// which there is no room.
func (a *Aggregator) find(c *Contact) *source {
	seg := a.where
	if seg == nil || seg.name != c.Segment {
		seg = a.segments[c.Segment]
		if seg == nil {
			seg = &segment{name: c.Segment}
			a.segments[c.Segment] = seg
		}
		a.where = seg
	}
	k := key{segment: seg, address: c.Source}
	if c.Source.IsUnspecified() {
		k.sender = c.SourceMAC
	}
	s := a.sources[k]
	if s == nil {
		if !c.Source.IsValid() || len(a.list) >= a.config.MaxSources && !a.displace(k, c.At) {
			return a.among(seg, k, c)
		}
		s = newSource(k, c)
		s.index = len(a.list)
		a.list = append(a.list, s)
		a.sources[k] = s
		seg.sources++
	}
	a.found = s
	return s
}

// among counts the contact's source among those that are not told apart.
func (a *Aggregator) among(seg *segment, k key, c *Contact) *source {
	if seg.overflow == nil {
		seg.overflow = newSource(key{segment: seg}, c)
		seg.overflow.origins = &distinct{}
	}
	seg.overflow.origins.add(a.hash(k.address)^mix(uint32(k.sender[4])<<8|uint32(k.sender[5])), &a.tables)
	return seg.overflow
}

// remove forgets a source.
func (a *Aggregator) remove(s *source) {
	last := a.list[len(a.list)-1]
	a.list[s.index], last.index = last, s.index
	a.list[len(a.list)-1] = nil
	a.list = a.list[:len(a.list)-1]
	delete(a.sources, s.key)
	s.segment.sources--
	s.free(&a.tables)
	if a.found == s {
		a.found = nil
	}
}

// Tick emits what is due: new probes half a second after their first contact,
// those that have grown, those that are over. Call it a few times a second.
func (a *Aggregator) Tick(now time.Time) {
	a.tick(now.UnixNano(), false)
}

// Flush ends all probes and emits them.
func (a *Aggregator) Flush(now time.Time) {
	a.tick(now.UnixNano(), true)
}

func (a *Aggregator) tick(now int64, flush bool) {
	a.mu.Lock()
	a.refill(now)
	a.review(now, flush)
	for name, seg := range a.segments {
		a.reviewOverflow(seg, now, flush)
		if seg.sources == 0 && seg.overflow == nil {
			delete(a.segments, name)
			if a.where == seg {
				a.where = nil
			}
		}
	}
	a.crowd.forget(now, a.config.Quiet)
	pending := a.pending
	a.pending = nil
	a.mu.Unlock()
	for _, p := range pending {
		a.config.Emit(p)
	}
}

// refill lets more new sources be told, as many as the time since allows.
func (a *Aggregator) refill(now int64) {
	since := min(max(now-a.refilled, 0), int64(10*time.Second))
	a.refilled = now
	rate := float64(a.config.NewSources)
	a.tokens = min(a.tokens+time.Duration(since).Seconds()*rate, 10*rate)
}

// review emits what is due of the sources that are told apart.
func (a *Aggregator) review(now int64, flush bool) {
	var untold []*source
	for i := len(a.list) - 1; i >= 0; i-- { // removing moves the last one forward
		s := a.list[i]
		over := flush || s.silent(now, a.config.Quiet)
		switch {
		case !s.told:
			if over || s.settled(now) {
				untold = append(untold, s)
			}
		case over:
			a.finish(s, now)
		default:
			a.recheck(s, now)
			if s.grown(now, a.config.Every) {
				a.tell(s, now, false)
			}
		}
	}
	// Where there are more than may be told, those come first that did most:
	// forged sources seldom come twice.
	slices.SortFunc(untold, func(x, y *source) int { return cmp.Compare(y.count(), x.count()) })
	for _, s := range untold {
		over := flush || s.silent(now, a.config.Quiet)
		if a.tokens >= 1 {
			a.tokens--
			a.tell(s, now, over)
			if over {
				a.remove(s)
			}
		} else if over {
			a.finish(s, now)
		}
	}
}

// reviewOverflow emits what is due of those that are not told apart.
func (a *Aggregator) reviewOverflow(seg *segment, now int64, flush bool) {
	s := seg.overflow
	switch {
	case s == nil:
	case flush || s.silent(now, a.config.Quiet):
		a.tell(s, now, true)
		s.free(&a.tables)
		seg.overflow = nil
	case !s.told && s.settled(now) || s.told && s.grown(now, a.config.Every):
		a.tell(s, now, false)
	}
}

// finish ends a source. One that was never told and did little joins those that
// are not told apart.
func (a *Aggregator) finish(s *source, now int64) {
	if s.told || !s.addresses.exact() || !s.ports.exact() {
		a.tell(s, now, true)
	} else {
		a.fold(s, now)
	}
	a.remove(s)
}

// fold counts a source's contacts as those of the overflow.
func (a *Aggregator) fold(s *source, now int64) {
	o := a.among(s.segment, s.key, &Contact{At: s.start, SourceMAC: s.mac, Target: s.first.Addr(), Port: s.first.Port()})
	o.folded = now
	o.start = min(o.start, s.start)
	if s.last >= o.last {
		o.last, o.latest = s.last, s.latest
	}
	o.mixed = o.mixed || s.mixed || o.mac != s.mac
	for kind, n := range s.contacts {
		o.contacts[kind] += n
	}
	s.addresses.each(func(h uint32) { o.addresses.add(h, &a.tables) })
	s.ports.each(func(h uint32) { o.ports.add(h, &a.tables) })
	s.asked.each(o.asked.add)
	s.tried.each(o.tried.add)
}

// tell puts the probe on its way.
func (a *Aggregator) tell(s *source, now int64, over bool) {
	p := s.probe(a.config.Node)
	if over {
		p.End = p.Last
	}
	s.told, s.toldAt, s.toldCount, s.toldKind = true, now, s.count(), p.Kind
	a.pending = append(a.pending, p)
}
