package eve

import (
	"encoding/json"
	"errors"
)

// maxDepth bounds how deep the objects of a line may be nested.
const maxDepth = 64

var errJSON = errors.New("it is no JSON object")

// member is a name of an object and its value, both as they are written; the
// name without its quotes.
type member struct{ name, value []byte }

// members appends the members of the object that b is. All of b is looked at, also
// what is nested, so that whatever is cut out of it is JSON again. encoding/json
// takes three times as long.
func members(into []member, b []byte) ([]member, error) {
	i := space(b, 0)
	if i == len(b) || b[i] != '{' {
		return into, errJSON
	}
	end := object(b, i, 0, &into)
	if end < 0 || space(b, end) != len(b) {
		return into, errJSON
	}
	return into, nil
}

// find returns the value of a member, nil where there is none.
func find(list []member, name string) []byte {
	for i := range list {
		if string(list[i].name) == name {
			return list[i].value
		}
	}
	return nil
}

func space(b []byte, i int) int {
	for i < len(b) && (b[i] == ' ' || b[i] == '\t' || b[i] == '\r' || b[i] == '\n') {
		i++
	}
	return i
}

// value returns where the value at b[i] ends, -1 where it is none. So do the
// functions below.
func value(b []byte, i, depth int) int {
	if i >= len(b) {
		return -1
	}
	switch b[i] {
	case '"':
		return quoted(b, i)
	case '{':
		return object(b, i, depth+1, nil)
	case '[':
		return array(b, i, depth+1)
	case 't':
		return literal(b, i, "true")
	case 'f':
		return literal(b, i, "false")
	case 'n':
		return literal(b, i, "null")
	}
	return number(b, i)
}

func object(b []byte, i, depth int, into *[]member) int {
	if depth > maxDepth {
		return -1
	}
	i = space(b, i+1)
	if i < len(b) && b[i] == '}' {
		return i + 1
	}
	for i < len(b) && b[i] == '"' {
		nameEnd := quoted(b, i)
		if nameEnd < 0 {
			return -1
		}
		name := b[i+1 : nameEnd-1]
		if i = space(b, nameEnd); i == len(b) || b[i] != ':' {
			return -1
		}
		start := space(b, i+1)
		if i = value(b, start, depth); i < 0 {
			return -1
		}
		if into != nil {
			*into = append(*into, member{name, b[start:i:i]})
		}
		if i = space(b, i); i == len(b) {
			return -1
		}
		if b[i] == '}' {
			return i + 1
		}
		if b[i] != ',' {
			return -1
		}
		i = space(b, i+1)
	}
	return -1
}

func array(b []byte, i, depth int) int {
	if depth > maxDepth {
		return -1
	}
	i = space(b, i+1)
	if i < len(b) && b[i] == ']' {
		return i + 1
	}
	for {
		if i = value(b, i, depth); i < 0 {
			return -1
		}
		if i = space(b, i); i == len(b) {
			return -1
		}
		if b[i] == ']' {
			return i + 1
		}
		if b[i] != ',' {
			return -1
		}
		i = space(b, i+1)
	}
}

func quoted(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			return i + 1
		case c < ' ':
			return -1
		case c != '\\':
		case i+1 < len(b) && b[i+1] == 'u':
			if i+5 >= len(b) || !hexDigit(b[i+2]) || !hexDigit(b[i+3]) || !hexDigit(b[i+4]) || !hexDigit(b[i+5]) {
				return -1
			}
			i += 5
		default:
			if i++; i == len(b) || !escape(b[i]) {
				return -1
			}
		}
	}
	return -1
}

func hexDigit(c byte) bool { return digit(c) || 'a' <= c|0x20 && c|0x20 <= 'f' }

func digit(c byte) bool { return '0' <= c && c <= '9' }

func escape(c byte) bool {
	switch c {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return true
	}
	return false
}

func literal(b []byte, i int, word string) int {
	if len(b)-i < len(word) || string(b[i:i+len(word)]) != word {
		return -1
	}
	return i + len(word)
}

func number(b []byte, i int) int {
	if b[i] == '-' {
		i++
	}
	start := i
	i = digits(b, i)
	if i == start || b[start] == '0' && i > start+1 {
		return -1
	}
	if i < len(b) && b[i] == '.' {
		start = i + 1
		if i = digits(b, start); i == start {
			return -1
		}
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		if i++; i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		start = i
		if i = digits(b, start); i == start {
			return -1
		}
	}
	return i
}

func digits(b []byte, i int) int {
	for i < len(b) && digit(b[i]) {
		i++
	}
	return i
}

// text returns the string that a value is; "" where it is none. It is cut after
// limit bytes.
func text(v []byte, limit int) string {
	if len(v) < 2 || v[0] != '"' {
		return ""
	}
	for _, c := range v {
		if c == '\\' {
			var s string
			_ = json.Unmarshal(v, &s) // members has seen that it is a string
			return cut(s, limit)
		}
	}
	return cut(string(v[1:len(v)-1]), limit)
}

// cut shortens a text, but not within a character.
func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && s[limit]&0xc0 == 0x80 {
		limit--
	}
	return s[:limit]
}

// count returns the whole number that a value is; false where it is none or does
// not fit.
func count(v []byte) (n uint64, ok bool) {
	if len(v) == 0 || len(v) > 19 {
		return 0, false
	}
	for _, c := range v {
		if !digit(c) {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return n, true
}
