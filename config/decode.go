package config

import (
	"fmt"
	"slices"
	"strings"
)

// located is a value with its place in the document.
type located[T any] struct {
	v    T
	text string // as written
	at   pos
	ok   bool // the key is there and its value could be read
}

// object is a mapping of the document, read against its shape.
type object struct {
	r      *report
	shape  *shape
	at     pos
	fields map[string]*node
	keyAt  map[string]pos // where each key of fields stands

	partial bool // keys of it were not read, none counts as missing
}

// object checks the keys of a mapping. It returns nil, the fault being
// reported, where the value is no mapping.
func (r *report) object(n *node, s *shape) *object {
	if n.kind == kindBroken {
		return nil
	}
	if n.kind != kindMap {
		r.add(n.at, "this %s is %s; a mapping with the keys %s", s.what, n.describe(), strings.Join(s.names(), ", "))
		return nil
	}
	o := &object{r: r, shape: s, at: n.at, fields: make(map[string]*node, len(n.fields))}
	o.keyAt = make(map[string]pos, len(n.fields))
	o.partial = n.partial
	var meant []field
	for _, f := range n.fields {
		if at, twice := o.keyAt[f.key]; twice {
			r.add(f.at, "key %q a second time, first in line %d; keep one", f.key, at.line)
			continue
		}
		o.keyAt[f.key] = f.at
		if s.key(f.key) == nil {
			switch instead, foreign := s.foreign[f.key]; {
			case s.open:
			case foreign:
				r.add(f.at, "unknown key %q in %s; %s", f.key, s.inside(), instead)
			default:
				r.add(f.at, "unknown key %q in %s; %s", f.key, s.inside(), suggest(f.key, "keys", s.names()))
				meant = append(meant, f)
			}
			continue
		}
		o.fields[f.key] = f.value
	}
	for _, f := range meant {
		// A key that is just misspelt is not also reported as missing.
		if k := nearest(f.key, s.names()); k != "" && o.fields[k] == nil {
			o.fields[k], o.keyAt[k] = broken(f.at), f.at
		}
	}
	return o
}

// label names the object in messages, by its name where it can be read.
func (o *object) label() string {
	if n := o.fields["name"]; n != nil && n.kind == kindText {
		return fmt.Sprintf("%s %q", o.shape.what, n.text)
	}
	return o.shape.what
}

// has tells whether the key is there, whatever its value.
func (o *object) has(name string) bool { return o.fields[name] != nil }

// get returns the value of a key if it is there and of the right kind; it
// reports what is missing or of another kind and returns nil.
func (o *object) get(name string) *node {
	k := o.shape.key(name)
	n := o.fields[name]
	switch {
	case n == nil:
		if k.required && !o.partial {
			o.r.add(o.at, "%s has no %s; add %s: %s", o.label(), name, name, k.example)
		}
		return nil
	case n.kind == kindBroken:
		return nil
	case n.kind == kindNull && o.shape == documentShape && k.want == wantList:
		return nil // all entries commented out
	case n.kind == kindNull, k.required && n.kind == kindList && len(n.items) == 0:
		o.r.add(n.at, "%s is empty; as %s: %s%s", name, name, k.example, k.orDrop())
		return nil
	}
	switch {
	case k.want == wantTextOrList && n.kind == kindText:
		return &node{kind: kindList, at: n.at, items: []*node{n}}
	case k.want.accepts(n.kind):
		return n
	case k.want == wantText && (n.kind == kindNumber || n.kind == kindBool) && nameKeys[name]:
		o.r.add(n.at, "%s is %s, not text; in quotes, as %s: %q", name, n.kind, name, n.text)
	case k.want == wantList && n.kind == kindMap && len(n.fields) > 0 && strings.HasPrefix(n.fields[0].key, "-"):
		o.r.add(n.at, "%q is taken for a key; an entry of %s begins with a dash and a space, as - %s", n.fields[0].key, name, strings.TrimLeft(n.fields[0].key, "-"))
	default:
		o.r.add(n.at, "%s is %s, not %s; as %s: %s", name, n.kind, k.want, name, k.example)
	}
	return nil
}

// nameKeys are the keys whose value may look like a number and yet be meant.
var nameKeys = map[string]bool{
	"name": true, "node": true, "parent": true, "link": true, "segment": true, "zone": true, "service": true, "netns": true,
}

func (w want) accepts(k kind) bool {
	switch w {
	case wantText:
		return k == kindText
	case wantNumber:
		return k == kindNumber
	case wantBool:
		return k == kindBool
	case wantList, wantTextOrList:
		return k == kindList
	}
	return k == kindMap
}

func (k *key) orDrop() string {
	if k.required {
		return ""
	}
	return ", or drop the key"
}

// text returns the text of a key.
func (o *object) text(name string) located[string] {
	return readOne(o, name, func(s string) (string, error) { return s, nil })
}

// oneOf returns the text of a key that has a fixed set of values.
func (o *object) oneOf(name string, values ...string) located[string] {
	return readOne(o, name, func(s string) (string, error) {
		if !slices.Contains(values, s) {
			return "", fmt.Errorf("unknown %s %q; %s", name, s, suggest(s, "values", values))
		}
		return s, nil
	})
}

// objects returns the entries of a list of mappings; those that are none are
// reported and left out.
func (o *object) objects(name string, s *shape) []*object {
	list := o.get(name)
	if list == nil {
		return nil
	}
	out := make([]*object, 0, len(list.items))
	for _, item := range list.items {
		if e := o.r.object(item, s); e != nil {
			out = append(out, e)
		}
	}
	return out
}

// readOne reads the scalar of a key with parse, whose errors become faults.
func readOne[T any](o *object, name string, parse func(string) (T, error)) located[T] {
	n := o.get(name)
	if n == nil {
		return located[T]{at: o.at}
	}
	v, err := parse(n.text)
	if err != nil {
		o.r.add(n.at, "%s", err)
	}
	return located[T]{v: v, text: n.text, at: n.at, ok: err == nil}
}

// readList reads the texts (and numbers, where they may stand) of a list with
// parse. sound is false where an entry is missing from the result.
func readList[T any](o *object, name string, parse func(string) (T, error)) (out []located[T], sound bool) {
	n := o.get(name)
	if n == nil {
		return nil, !o.has(name)
	}
	sound = true
	for _, item := range n.items {
		switch item.kind {
		case kindText, kindNumber:
			v, err := parse(item.text)
			if err == nil {
				out = append(out, located[T]{v, item.text, item.at, true})
				continue
			}
			o.r.add(item.at, "%s", err)
		case kindBroken:
		case kindNull:
			o.r.add(item.at, "an empty entry in %s; as %s: %s", name, name, o.shape.key(name).example)
		default:
			o.r.add(item.at, "an entry of %s is %s; as %s: %s", name, item.kind, name, o.shape.key(name).example)
		}
		sound = false
	}
	return out, sound
}
