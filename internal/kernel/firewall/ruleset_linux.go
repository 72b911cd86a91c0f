package firewall

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// A ruleset is one scope of our table: what is desired, or what the kernel
// holds. Everything in it is identified by name.
type ruleset struct {
	chains   map[string]*chain
	sets     map[string]*set
	counters map[string]bool
}

func newRuleset() *ruleset {
	return &ruleset{chains: map[string]*chain{}, sets: map[string]*set{}, counters: map[string]bool{}}
}

// hook makes a chain a base chain.
type hook struct {
	kind     nftables.ChainType
	hook     nftables.ChainHook
	priority nftables.ChainPriority
	drop     bool // policy
}

type chain struct {
	name  string
	hook  *hook // nil for a chain that is only jumped to
	rules []rule
}

// A rule's comment is what it is compared by: words for whoever reads `nft list
// ruleset`, and a fingerprint of the expressions. A rule edited by hand has lost
// its comment, one that was deleted is missed, and either is put right.
type rule struct {
	comment string
	exprs   []expr.Any
}

// set is a set, a map, or a verdict map. Its elements are keyed by their
// identity, so that two sets are compared without order.
type set struct {
	name     string
	key      nftables.SetDatatype
	data     nftables.SetDatatype // Name is empty for a plain set
	interval bool
	concat   bool
	elements map[string]element
}

// element is one key (or interval of keys, last included) and what it maps to.
type element struct {
	key, last string // last is empty but in interval sets
	val       string
	jump      string // the chain a verdict map goes to
}

func (e element) id() string { return e.key + "\x00" + e.last + "\x00" + e.val + "\x00" + e.jump }

func newSet(name string, key, data nftables.SetDatatype) *set {
	return &set{name: name, key: key, data: data, elements: map[string]element{}}
}

func (s *set) isVerdictMap() bool { return s.data.Name == nftables.TypeVerdict.Name }

func (s *set) add(e element) { s.elements[e.id()] = e }

// sameSpec tells whether elements can be moved between the two; where not,
// the set has to be made anew.
func (s *set) sameSpec(o *set) bool {
	if s.isVerdictMap() && o.isVerdictMap() {
		return true // the library loses the key type of one that it reads
	}
	return s.key.Bytes == o.key.Bytes && s.key.GetNFTMagic() == o.key.GetNFTMagic() &&
		s.interval == o.interval && (s.data.Name == "") == (o.data.Name == "")
}

func (r *ruleset) chain(name string, h *hook) *chain {
	c := &chain{name: name, hook: h}
	r.chains[name] = c
	return c
}

func (r *ruleset) set(s *set) *set {
	r.sets[s.name] = s
	return s
}

func (c *chain) add(comment string, exprs ...[]expr.Any) {
	all := slices.Concat(exprs...)
	c.rules = append(c.rules, rule{comment: comment + " #" + fingerprint(all), exprs: all})
}

// fingerprint is a short hash of the expressions as the kernel is sent them.
func fingerprint(exprs []expr.Any) string {
	h := sha256.New()
	for _, e := range exprs {
		b, err := expr.Marshal(byte(unix.NFPROTO_INET), e)
		if err != nil {
			// Reported again, and properly, when the rule is sent.
			b = fmt.Appendf(nil, "%T %v", e, err)
		}
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(b))))
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil)[:4])
}

func encodeComment(s string) []byte {
	return userdata.AppendString(nil, userdata.TypeComment, s)
}

func decodeComment(b []byte) string {
	s, _ := userdata.GetString(b, userdata.TypeComment)
	return s
}

// scope says which objects of the table belong to one Apply.
type scope struct {
	word string // first word of the names
	// family is that of the table, inet where it is zero. A word is used in one
	// family only.
	family nftables.TableFamily
	// element, where set, says whether an element of a shared set is ours.
	element func(s *set, e element) bool
	// object, where set, says whether an object of the scope is ours; others
	// are neither changed nor deleted.
	object func(name string) bool
}

// table is the table of ours that the scope is in.
func (s scope) table() *nftables.Table {
	return &nftables.Table{Name: TableName, Family: cmp.Or(s.family, nftables.TableFamilyINet)}
}

func (s scope) owns(name string) bool {
	if name != s.word && !strings.HasPrefix(name, s.word+"-") {
		return false
	}
	return s.object == nil || s.object(name)
}

// A plan is the difference between two rulesets, in the order in which one
// transaction has to hold it.
type plan struct {
	newCounters []string
	newSets     []*set
	newChains   []*chain
	flush       []string // chains whose rules go
	drop        []string // chains deleted and made again in this plan
	delElements []elementChange
	addElements []elementChange
	fill        []*chain // chains whose rules are added
	delChains   []string
	delSets     []string
	delCounters []string
	remake      []string // sets deleted and made again in this plan
}

type elementChange struct {
	set      *set
	elements []element
}

func (p *plan) empty() bool {
	return len(p.newCounters)+len(p.newSets)+len(p.newChains)+len(p.flush)+len(p.delElements)+len(p.addElements)+
		len(p.fill)+len(p.delChains)+len(p.delSets)+len(p.delCounters) == 0
}

func (p *plan) status() Status {
	s := Status{
		Changed: !p.empty(),
		Added:   len(p.newCounters) + len(p.newSets) + len(p.newChains),
		Deleted: len(p.delChains) + len(p.delSets) + len(p.delCounters),
	}
	for _, c := range p.fill {
		s.Added += len(c.rules)
	}
	for _, e := range p.addElements {
		s.Added += len(e.elements)
	}
	for _, e := range p.delElements {
		s.Deleted += len(e.elements)
	}
	return s
}

// diff plans the way from have to want within a scope. With keep, nothing of
// have is taken away: the first half of a change in two namespaces.
func diff(have, want *ruleset, sc scope, keep bool) *plan {
	p := &plan{}
	for _, name := range sortedKeys(want.counters) {
		if !have.counters[name] {
			p.newCounters = append(p.newCounters, name)
		}
	}
	rebuild := diffSets(p, have, want, sc, keep)
	keep = keep && !rebuild
	for _, name := range sortedKeys(want.chains) {
		w, h := want.chains[name], have.chains[name]
		switch {
		case h == nil:
			p.newChains = append(p.newChains, w)
			p.fill = append(p.fill, w)
		case !sameHook(h.hook, w.hook):
			p.flush = append(p.flush, name)
			p.drop = append(p.drop, name)
			p.newChains = append(p.newChains, w)
			p.fill = append(p.fill, w)
		case rebuild || !sameRules(h.rules, w.rules):
			p.flush = append(p.flush, name)
			p.fill = append(p.fill, w)
		}
	}
	if keep {
		return p
	}
	for _, name := range sortedKeys(have.chains) {
		if want.chains[name] == nil && sc.owns(name) {
			p.flush = append(p.flush, name)
			p.delChains = append(p.delChains, name)
		}
	}
	for _, name := range sortedKeys(have.sets) {
		if want.sets[name] == nil && sc.owns(name) {
			p.delSets = append(p.delSets, name)
		}
	}
	for _, name := range sortedKeys(have.counters) {
		if !want.counters[name] && sc.owns(name) {
			p.delCounters = append(p.delCounters, name)
		}
	}
	return p
}

// diffSets plans the sets and their elements. It returns true where a set has to
// be made anew, for which every rule that may refer to it must go first.
func diffSets(p *plan, have, want *ruleset, sc scope, keep bool) (rebuild bool) {
	for _, name := range sortedKeys(want.sets) {
		w, h := want.sets[name], have.sets[name]
		if h != nil && !h.sameSpec(w) {
			p.remake = append(p.remake, name)
			rebuild, h = true, nil
		}
		if h == nil {
			p.newSets = append(p.newSets, w)
			h = &set{}
		}
		var add, del []element
		for _, id := range sortedKeys(w.elements) {
			if _, ok := h.elements[id]; !ok {
				add = append(add, w.elements[id])
			}
		}
		for _, id := range sortedKeys(h.elements) {
			e := h.elements[id]
			_, wanted := w.elements[id]
			// An element whose key maps to something else now has to
			// go first, whatever keep says: a map holds a key once.
			if wanted || (sc.element != nil && !sc.element(w, e)) || (keep && !w.clashes(e)) {
				continue
			}
			del = append(del, e)
		}
		if len(add) > 0 {
			p.addElements = append(p.addElements, elementChange{w, add})
		}
		if len(del) > 0 {
			p.delElements = append(p.delElements, elementChange{w, del})
		}
	}
	return rebuild
}

// clashes tells whether the element cannot stay beside those of s: the same key
// with another value, or an interval that overlaps one.
func (s *set) clashes(e element) bool {
	for _, o := range s.elements {
		if s.interval {
			if e.key <= o.last && o.key <= e.last {
				return true
			}
		} else if o.key == e.key {
			return true
		}
	}
	return false
}

func sameHook(a, b *hook) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func sameRules(a, b []rule) bool {
	return slices.EqualFunc(a, b, func(x, y rule) bool { return x.comment == y.comment })
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
