package config

import (
	"bytes"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/token"
)

// maxDepth is how deep lists and mappings may nest. The grammar needs eight
// levels; the YAML parser recurses, so that a file of opening brackets alone
// would otherwise exhaust the stack, from which a Go program cannot recover.
const maxDepth = 64

// checkText refuses what is no YAML text at all, before the YAML parser sees
// it: the parser is lenient with some of it and vague about the rest.
func checkText(src []byte, r *report) bool {
	if len(src) > MaxSize {
		r.add(pos{1, 1}, "the document is larger than %d MiB; write runs of addresses as ranges, or split it", MaxSize>>20)
		return false
	}
	if bytes.HasPrefix(src, []byte{0xff, 0xfe}) || bytes.HasPrefix(src, []byte{0xfe, 0xff}) {
		r.add(pos{1, 1}, "the file is UTF-16; save it as UTF-8")
		return false
	}
	at := pos{1, 1}
	for i := 0; i < len(src); {
		c, size := utf8.DecodeRune(src[i:])
		switch {
		case c == utf8.RuneError && size == 1:
			r.add(at, "byte 0x%02x is not UTF-8; save the file as UTF-8", src[i])
			return false
		case c == '\r' && (i+1 == len(src) || src[i+1] != '\n'):
			r.add(at, "a carriage return stands alone; end lines with LF or CRLF")
			return false
		case c < ' ' && c != '\t' && c != '\n' && c != '\r', c == 0x7f, c == 0xfeff:
			r.add(at, "control character U+%04X; plain text only", c)
			return false
		}
		at.col++
		if c == '\n' {
			at = pos{at.line + 1, 1}
		}
		i += size
	}
	return checkTabs(src, r)
}

// checkTabs finds lines indented with tabs, which YAML forbids and people most
// often get wrong without seeing it.
func checkTabs(src []byte, r *report) bool {
	var first pos
	lines := 0
	number := 0
	for line := range bytes.Lines(src) {
		number++
		indent := line[:len(line)-len(bytes.TrimLeft(line, " \t"))]
		tab := bytes.IndexByte(indent, '\t')
		if rest := bytes.TrimSpace(line); tab < 0 || len(rest) == 0 || rest[0] == '#' {
			continue
		}
		if lines == 0 {
			first = pos{number, tab + 1}
		}
		lines++
	}
	switch lines {
	case 0:
		return true
	case 1:
		r.add(first, "a tab in the indentation; indent with spaces")
	default:
		r.add(first, "a tab in the indentation, here and in other lines (%d in all); indent with spaces", lines)
	}
	return false
}

// untabEmptyLines puts spaces for the tabs of lines that hold nothing or just a
// comment: YAML allows them, the parser does not. Positions stay the same.
func untabEmptyLines(src []byte) []byte {
	if !bytes.ContainsRune(src, '\t') {
		return src
	}
	out := make([]byte, 0, len(src))
	for line := range bytes.Lines(src) {
		indent := len(line) - len(bytes.TrimLeft(line, " \t"))
		if rest := bytes.TrimSpace(line); len(rest) == 0 || rest[0] == '#' {
			out = append(out, bytes.Repeat([]byte{' '}, indent)...)
			line = line[indent:]
		}
		out = append(out, line...)
	}
	return out
}

// checkDepth bounds the recursion of the YAML parser by what its tokens say.
func checkDepth(tokens token.Tokens, r *report) bool {
	flow, chain, props, line := 0, 0, 0, 0
	for _, tk := range tokens {
		if tk.Position != nil && tk.Position.Line != line {
			line, chain = tk.Position.Line, 0
		}
		switch tk.Type {
		case token.SequenceStartType, token.MappingStartType:
			flow++
			chain, props = 0, 0
		case token.SequenceEndType, token.MappingEndType:
			flow--
			chain, props = 0, 0
		case token.CollectEntryType:
			chain, props = 0, 0
		case token.SequenceEntryType, token.MappingKeyType, token.MappingValueType:
			chain++ // "- - - a" nests on one line
		case token.TagType, token.AnchorType:
			props++
		default:
			props = 0
		}
		if flow > maxDepth || chain > maxDepth || props > maxDepth {
			r.add(position(tk), "lists and mappings nest more than %d deep; the document needs no more than 8 levels", maxDepth)
			return false
		}
	}
	return true
}

// position returns where a token begins in the scanner's eyes; columns begin at
// 0 there in a few cases.
func position(tk *token.Token) pos {
	if tk == nil || tk.Position == nil {
		return pos{1, 1}
	}
	return pos{max(tk.Position.Line, 1), max(tk.Position.Column, 1)}
}

// syntaxFault puts what the YAML parser refused into this package's words.
func (t *treeBuilder) syntaxFault(err error) {
	var se *yaml.SyntaxError
	if !errors.As(err, &se) {
		t.r.add(pos{1, 1}, "cannot be read as YAML (%v); check indentation, quotes and brackets", err)
		return
	}
	at := t.place(se.Token)
	for _, h := range syntaxHints {
		if strings.HasPrefix(se.Message, h.parser) {
			t.r.add(at, "%s", h.person)
			return
		}
	}
	t.r.add(at, "%s; check the indentation, quotes and brackets around this place", strings.ReplaceAll(se.Message, ". ", ", "))
}

// syntaxHints says what the YAML parser's messages mean for a person. The first
// whose beginning fits is taken.
var syntaxHints = []struct{ parser, person string }{
	{"mapping value is not allowed in this context", `a "key: value" cannot stand here; check the indentation of this line and the next, and put text that holds ": " in quotes`},
	{"value is not allowed in this context. map key-value is pre-defined", "text behind a complete value; put the whole value in quotes, or check the indentation of this line"},
	{"value is not allowed in this context", "a value cannot stand here; check the indentation of this line, and the brackets before it"},
	{"non-map value is specified", `a line without a key among keys; "key: value" or "- item", with a space behind the colon or dash`},
	{"block sequence entries are not allowed", `a "- item" cannot stand on the line of its key; on a line of its own below, or as [item, item]`},
	{"',' or ']' must be specified", "the list is not closed before this; a comma between items, ] behind the last"},
	{"',' or '}' must be specified", "the mapping is not closed before this; a comma between keys, } behind the last"},
	{"sequence end token ']' not found", "the list that begins here is never closed; ] behind its last item"},
	{"could not find flow mapping end token '}'", "the mapping that begins here is never closed; } behind its last key"},
	{"could not find '[' character", "a ] without a [ before it; drop it, or put the text in quotes"},
	{"could not find '{' character", "a } without a { before it; drop it, or put the text in quotes"},
	{"expected sequence element, but found ','", "two commas without an item between; drop one"},
	{"could not find end character of double-quoted text", `the quoted text that begins here is never closed; " behind it`},
	{"could not find end character of single-quoted text", `the quoted text that begins here is never closed; ' behind it`},
	{"found unknown escape character", `an unknown escape in quoted text; a backslash itself is written \\\\ in double quotes`},
	{"found unexpected document separator", "a --- within a value; close the quotes or brackets before it"},
	{"found an invalid key for this map", "a key must be a plain word; as name: office"},
	{"unexpected key name", `a key must stand on one line, directly before its colon; as name: office`},
	{"map key definition includes an implicit line break", `a key must stand on one line, directly before its colon; as name: office`},
	{"undefined alias name", "a * without a name; put text that begins with * in quotes"},
	{"undefined anchor name", "an & without a name; put text that begins with & in quotes"},
	{"unexpected directive value. document not started", "a % cannot begin a value; put text that begins with % in quotes"},
	{"'@' is a reserved character", "text cannot begin with @; put it in quotes"},
	{"'`' is a reserved character", "text cannot begin with `; put it in quotes"},
	{"value cannot be placed after document separator", "a value on the line of ---; begin it on the next line"},
	{"invalid header option", "text blocks (| and >) are not needed in the document; put the text on the line of its key"},
	{"invalid number of indent", "text blocks (| and >) are not needed in the document; put the text on the line of its key"},
	{"found a tab character", "a tab in the indentation; indent with spaces"},
	{"found character '\t'", "a tab in the indentation; indent with spaces"},
	{"tab character cannot be used for indentation", "a tab in the indentation; indent with spaces"},
}
