package config

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxAliased bounds how many values aliases may stand for, counted once per
// use: nine lines of YAML can otherwise stand for a billion values.
const maxAliased = 100_000

// kind is the kind of a value as YAML knows it.
type kind uint8

const (
	kindNull kind = iota
	kindText
	kindNumber
	kindBool
	kindList
	kindMap
	kindBroken // a fault was reported already; say no more about it
)

var kindNames = [...]string{"empty", "text", "a number", "true or false", "a list", "a mapping", ""}

func (k kind) String() string { return kindNames[k] }

// node is one value of the document. Aliases are resolved: several fields may
// hold the same node.
type node struct {
	kind   kind
	at     pos
	text   string // scalars, as written (quotes and escapes resolved)
	items  []*node
	fields []field

	partial bool // a mapping some of whose keys were reported and left out
	size    int  // values in and below this one, aliases counted in full
}

type field struct {
	key   string
	at    pos
	value *node
}

// treeBuilder turns the parser's syntax tree into nodes.
type treeBuilder struct {
	r       *report
	lengths []int            // of the lines, in characters
	tabbed  map[int][]rune   // the lines that hold tabs, by number
	anchors map[string]*node // nil while the anchored value is being built
	aliased int
}

// buildTree reads the YAML text; it returns nil, a fault being reported, where
// there is no one mapping to go on with.
func buildTree(src []byte, r *report) (root *node) {
	src = bytes.TrimPrefix(src, []byte("\xef\xbb\xbf"))
	if !checkText(src, r) {
		return nil
	}
	src = untabEmptyLines(src)
	t := &treeBuilder{r: r, anchors: map[string]*node{}}
	t.measure(src)
	file := t.parse(string(src))
	if file == nil {
		return nil
	}
	var body ast.Node
	for _, doc := range file.Docs {
		switch b := doc.Body.(type) {
		case nil, *ast.DirectiveNode, *ast.CommentGroupNode:
		default:
			if body != nil {
				t.r.add(t.begin(b), "a second document begins here; one document per file")
				return nil
			}
			body = b
		}
	}
	if body == nil {
		r.add(pos{1, 1}, "the document is empty; at least one of the keys %s", strings.Join(documentShape.names(), ", "))
		return nil
	}
	root = t.node(body)
	if root.kind == kindText && strings.Contains(root.text, ":") {
		r.add(root.at, `the document is one text, no key has a value; "key: value", with a space behind the colon`)
		return nil
	}
	return root
}

// parse runs the YAML parser. A panic in it is a fault of the document's: it is
// some text that nobody tried before, and says nothing about the other roles of
// this process.
func (t *treeBuilder) parse(src string) (file *ast.File) {
	defer func() {
		if p := recover(); p != nil {
			t.r.add(pos{1, 1}, "cannot be read as YAML (%v); check indentation, quotes and brackets", p)
			file = nil
		}
	}()
	tokens := lexer.Tokenize(src)
	if !checkDepth(tokens, t.r) {
		return nil
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		t.syntaxFault(err)
		return nil
	}
	return file
}

func (t *treeBuilder) node(n ast.Node) *node {
	switch v := n.(type) {
	case *ast.MappingNode:
		return t.mapping(t.begin(v), v.Values)
	case *ast.MappingValueNode:
		return t.mapping(t.begin(v), []*ast.MappingValueNode{v})
	case *ast.SequenceNode:
		out := &node{kind: kindList, at: t.place(v.Start), size: 1}
		for _, item := range v.Values {
			child := t.rejoin(item)
			if child == nil {
				child = t.node(item)
			}
			out.items = append(out.items, child)
			out.size += child.size
		}
		return out
	case *ast.AnchorNode:
		return t.anchor(v)
	case *ast.AliasNode:
		return t.alias(v)
	case *ast.TagNode:
		at := t.place(v.GetToken())
		t.r.add(at, "there is a tag, %s; drop it, the document needs none", v.GetToken().Value)
		return broken(at)
	}
	return t.scalar(n)
}

// begin returns where a value begins: the parser gives the first colon for a
// mapping in block style.
func (t *treeBuilder) begin(n ast.Node) pos {
	switch v := n.(type) {
	case *ast.MappingNode:
		if !v.IsFlowStyle && len(v.Values) > 0 {
			return t.begin(v.Values[0])
		}
		return t.place(v.Start)
	case *ast.MappingValueNode:
		if v.Key != nil {
			return t.place(v.Key.GetToken())
		}
	}
	return t.place(n.GetToken())
}

// rejoin puts plain text together again that the scanner took apart: in a list
// inside a mapping in flow style it reads 2001:db8::1 as a key 2001, though no
// space follows the colon. It returns nil for everything else.
func (t *treeBuilder) rejoin(n ast.Node) *node {
	m, ok := n.(*ast.MappingNode)
	if !ok || m.IsFlowStyle || len(m.Values) != 1 || m.Values[0].Value == nil {
		return nil
	}
	key, colon, value := m.Values[0].Key.GetToken(), m.Values[0].Start, m.Values[0].Value.GetToken()
	if !plain(key) || !plain(value) || colon == nil || colon.Position == nil {
		return nil
	}
	p := *colon.Position
	if value.Position.Line != p.Line || value.Position.Column != p.Column+1 ||
		key.Position.Line != p.Line || key.Position.Column+utf8.RuneCountInString(key.Value) != p.Column {
		return nil
	}
	return &node{kind: kindText, at: t.place(key), text: key.Value + ":" + value.Value, size: 1}
}

func plain(tk *token.Token) bool {
	if tk == nil || tk.Position == nil {
		return false
	}
	switch tk.Type {
	case token.StringType, token.IntegerType, token.FloatType, token.OctetIntegerType, token.HexIntegerType, token.BinaryIntegerType:
		return true
	}
	return false
}

func (t *treeBuilder) scalar(n ast.Node) *node {
	if n == nil {
		return broken(pos{1, 1})
	}
	out := &node{at: t.place(n.GetToken()), size: 1}
	switch v := n.(type) {
	case *ast.NullNode:
		out.kind = kindNull
	case *ast.StringNode:
		out.kind, out.text = kindText, v.Value
	case *ast.LiteralNode:
		out.kind, out.at = kindText, t.place(v.Start)
		if v.Value != nil {
			out.text = v.Value.Value
		}
	case *ast.BoolNode:
		out.kind, out.text = kindBool, v.GetToken().Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		out.kind, out.text = kindNumber, v.GetToken().Value
	default:
		t.r.add(out.at, "YAML of a kind that the document needs nowhere; text, numbers, lists and mappings")
		out.kind = kindBroken
	}
	return out
}

func (t *treeBuilder) mapping(at pos, values []*ast.MappingValueNode) *node {
	out := &node{kind: kindMap, at: at, size: 1}
	for _, v := range values {
		if v == nil || v.Key == nil {
			continue
		}
		keyAt := t.place(v.Key.GetToken())
		if _, merge := v.Key.(*ast.MergeKeyNode); merge {
			t.r.add(keyAt, "merge keys (<<) are not read; repeat the keys, or use an alias for a single value")
			out.partial = true
			continue
		}
		var key string
		switch k := v.Key.(type) {
		case *ast.MappingKeyNode, *ast.AliasNode, *ast.AnchorNode, *ast.TagNode:
			t.r.add(keyAt, "a key must be a plain word; as name: office")
			out.partial = true
			continue
		case *ast.StringNode:
			key = k.Value
		default:
			key = k.GetToken().Value
		}
		value := broken(keyAt)
		if v.Value != nil {
			value = t.node(v.Value)
		}
		if value.kind == kindNull {
			value.at = keyAt // nothing is there to point at
		}
		out.fields = append(out.fields, field{key, keyAt, value})
		out.size += value.size
	}
	return out
}

func (t *treeBuilder) anchor(v *ast.AnchorNode) *node {
	name := v.Name.GetToken().Value
	t.anchors[name] = nil
	out := t.node(v.Value)
	t.anchors[name] = out
	return out
}

func (t *treeBuilder) alias(v *ast.AliasNode) *node {
	name, at := v.Value.GetToken().Value, t.place(v.GetToken())
	target, known := t.anchors[name]
	switch {
	case !known:
		t.r.add(at, "alias *%s stands for nothing; an anchor &%s before it, or quotes around text that begins with *", name, name)
		return broken(at)
	case target == nil:
		t.r.add(at, "alias *%s is part of the value that it stands for; write the value out", name)
		return broken(at)
	}
	t.aliased += target.size
	if t.aliased > maxAliased {
		if t.aliased-target.size <= maxAliased {
			t.r.add(at, "aliases stand for more than %d values; write them out, or use ranges", maxAliased)
		}
		return broken(at)
	}
	return target
}

func broken(at pos) *node { return &node{kind: kindBroken, at: at, size: 1} }

// place returns where a token begins. The scanner takes a token to begin at the
// tab before it, should there be one, and puts what is not there (an empty list
// entry, the end of the text) one or two characters behind the line's end.
func (t *treeBuilder) place(tk *token.Token) pos {
	at := position(tk)
	if at.line > len(t.lengths) {
		at = pos{len(t.lengths), math.MaxInt}
	}
	line := t.tabbed[at.line]
	for at.col < len(line) && line[at.col-1] == '\t' {
		at.col++
	}
	at.col = min(at.col, t.lengths[at.line-1]+1)
	return at
}

// measure keeps the length of every line, and the lines that hold tabs.
func (t *treeBuilder) measure(src []byte) {
	t.tabbed = map[int][]rune{}
	for line := range bytes.SplitSeq(src, []byte("\n")) {
		line = bytes.TrimSuffix(line, []byte("\r"))
		t.lengths = append(t.lengths, utf8.RuneCount(line))
		if bytes.IndexByte(line, '\t') >= 0 {
			t.tabbed[len(t.lengths)] = []rune(string(line))
		}
	}
}

// describe names a value in a message: its kind, and what is written where that
// is short.
func (n *node) describe() string {
	switch n.kind {
	case kindText, kindNumber:
		if len(n.text) <= 40 {
			return fmt.Sprintf("%s %q", n.kind, n.text)
		}
	}
	return n.kind.String()
}
