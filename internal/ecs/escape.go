package ecs

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// Printable writes bytes that an intruder chose so that a terminal takes them
// for text only: printable ASCII as it is, everything else escaped as in a Go
// string. Nothing above ASCII passes, because C1 control characters, characters
// that turn the direction of writing and look-alikes are there. At most limit
// columns are written; "..." ends what was cut.
func Printable(b []byte, limit int) string {
	var out strings.Builder
	cut := 0 // where "..." still fits
	for _, c := range b {
		out.WriteString(escapeByte(c))
		if out.Len() > limit {
			return out.String()[:cut] + "..."
		}
		if out.Len() <= limit-len("...") {
			cut = out.Len()
		}
	}
	return out.String()
}

func escapeByte(c byte) string {
	switch {
	case c == '\n':
		return `\n`
	case c == '\r':
		return `\r`
	case c == '\t':
		return `\t`
	case c == '\\':
		return `\\`
	case c >= ' ' && c <= '~':
		return string(rune(c))
	}
	return string([]byte{'\\', 'x', hexDigits[c>>4], hexDigits[c&15]})
}

// name makes a name safe for a cell. Names come from the document, so letters
// of all scripts pass; what is not printable does not.
func name(s string) string {
	if !strings.ContainsFunc(s, unprintable) {
		return s
	}
	var out strings.Builder
	for i, r := range s {
		if !unprintable(r) {
			out.WriteRune(r)
			continue
		}
		_, n := utf8.DecodeRuneInString(s[i:])
		for _, c := range []byte(s[i : i+n]) {
			out.WriteString(escapeByte(c))
		}
	}
	return out.String()
}

// unprintable is true for controls, format characters (those that turn the
// direction of writing among them), bytes that are not UTF-8, and the backslash,
// which would make an escaped name ambiguous.
func unprintable(r rune) bool {
	return r == utf8.RuneError || r == '\\' || !unicode.IsPrint(r)
}

// asciiJSON writes what is not printable in a JSON text as \\u escapes, which
// mean the same: encoding/json escapes the ASCII controls only. Outside of
// strings JSON has nothing of the kind.
func asciiJSON(text []byte) []byte {
	if !slices.ContainsFunc(text, func(c byte) bool { return c > '~' }) {
		return text
	}
	out := make([]byte, 0, len(text)+64)
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		switch {
		case r < 0x7f || unicode.IsPrint(r):
			out = append(out, text[:n]...)
		case r > 0xffff:
			for _, half := range utf16.AppendRune(nil, r) {
				out = fmt.Appendf(out, `\u%04x`, half)
			}
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
		text = text[n:]
	}
	return out
}
