package deception

import (
	"strings"
	"testing"
)

func TestSessionIDs(t *testing.T) {
	const text = "01234567-89ab-7def-8123-456789abcdef"
	id, err := ParseSessionID(text)
	if err != nil {
		t.Fatal(err)
	}
	want := SessionID{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0x7d, 0xef, 0x81, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef}
	if id != want || id.String() != text {
		t.Errorf("%q is %x, written %q", text, id[:], id.String())
	}
	if upper, err := ParseSessionID(strings.ToUpper(text)); err != nil || upper != id {
		t.Errorf("in upper case: %v, %v", upper, err)
	}
	for _, bad := range []string{
		"", "01234567", text[:35], text + "0", text + "-", strings.ReplaceAll(text, "-", ""),
		strings.Replace(text, "0", "g", 1), strings.Replace(text, "-", "0", 1), "{" + text + "}",
		"012345678-9ab-7def-8123-456789abcdef", " " + text,
	} {
		id, err := ParseSessionID(bad)
		if err == nil || !id.IsZero() || !strings.Contains(err.Error(), "hexadecimal") {
			t.Errorf("%q: %v, %v", bad, id, err)
		}
	}
}

func TestSessionPrefixes(t *testing.T) {
	const text = "01234567-89ab-7def-8123-456789abcdef"
	for n := minPrefix; n <= len(text); n++ {
		first, last, err := ParseSessionPrefix(strings.ToUpper(text[:n]))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(first.String(), text[:n]) || strings.Trim(first.String()[n:], "0-") != "" ||
			!strings.HasPrefix(last.String(), text[:n]) || strings.Trim(last.String()[n:], "f-") != "" {
			t.Errorf("%q: from %v to %v", text[:n], first, last)
		}
	}
	for _, bad := range []string{
		"", "0123456", "012345678", "01234567-89ab7", "01234567--", "0123456g", "01234567-89ab-7def-8123-456789abcdeg", text + "0", text + "-", " 01234567",
	} {
		if first, last, err := ParseSessionPrefix(bad); err == nil || !first.IsZero() || !last.IsZero() || !strings.Contains(err.Error(), "hexadecimal") {
			t.Errorf("%q: %v, %v, %v", bad, first, last, err)
		}
	}
}
