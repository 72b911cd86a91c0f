package config

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"decoynet/deception"
)

const reference = "../docs/document.md"

// TestReferenceNamesEveryKey holds docs/document.md against the grammar, both
// ways: every key has its row there, and every row is a key.
func TestReferenceNamesEveryKey(t *testing.T) {
	page := readReference(t)
	rows := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]*`) \\|").FindAllStringSubmatch(page, -1) {
		for _, name := range strings.Split(row[1], ", ") {
			rows[strings.Trim(name, "`")] = true
		}
	}
	known := map[string]bool{}
	for _, s := range shapes {
		for _, k := range s.keys {
			path := strings.TrimPrefix(s.path+"."+k.name, ".")
			known[path] = true
			if !rows[path] {
				t.Errorf("%s says nothing about the key %s", reference, path)
			}
		}
	}
	for path := range rows {
		if !known[path] {
			t.Errorf("%s explains %s, which is no key", reference, path)
		}
	}
}

// TestReferenceExamples reads every example of the page.
func TestReferenceExamples(t *testing.T) {
	examples := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(readReference(t), -1)
	if len(examples) < 5 {
		t.Fatalf("%d examples in %s, want at least 5", len(examples), reference)
	}
	for i, e := range examples {
		if _, err := Parse(fmt.Sprintf("example %d", i+1), []byte(e[1])); err != nil {
			t.Errorf("refused:\n%v\nin\n%s", err, e[1])
		}
	}
}

// TestReferenceLimits finds the numbers of the code in the page.
func TestReferenceLimits(t *testing.T) {
	page := readReference(t)
	for _, want := range []string{
		fmt.Sprintf("| size of the file | %d MiB |", MaxSize>>20),
		"| decoy addresses in a document | " + thousands(MaxDecoyAddresses) + " |",
		"| IPv6 decoy addresses in a segment | " + thousands(MaxIPv6PerSegment) + ",",
		"| addresses and ports in the segment `host` of a machine | " + thousands(MaxHostListeners) + ",",
		"| values that YAML aliases stand for | " + thousands(maxAliased) + " |",
		fmt.Sprintf("| nesting of lists and mappings | %d levels", maxDepth),
		"| duration, 1s to 24h | `" + writeDuration(DefaultIdle) + "` |",
		"| duration, 1m to 3650d | `" + writeDuration(DefaultRetention) + "` |",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("%s lacks %q", reference, want)
		}
	}
}

func thousands(n int) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func readReference(t *testing.T) string {
	t.Helper()
	page, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// TestExamplesOfTheGrammar: the example of each key, which messages show as
// what would be right, must itself be of the key's type.
func TestExamplesOfTheGrammar(t *testing.T) {
	for _, s := range shapes {
		for _, k := range s.keys {
			r := &report{}
			root := buildTree([]byte(k.name+": "+k.example+"\n"), r)
			if root == nil || r.failed() {
				t.Errorf("example of %s.%s is no YAML: %v", s.path, k.name, r.sorted(""))
				continue
			}
			o := &object{r: r, shape: s, fields: map[string]*node{k.name: root.fields[0].value}}
			if o.get(k.name) == nil {
				t.Errorf("example of %s.%s: %v", s.path, k.name, r.sorted(""))
			}
		}
	}
}

// TestReferenceNamesEveryVendor: a vendor that the page does not name is one that
// nobody writes.
func TestReferenceNamesEveryVendor(t *testing.T) {
	_, list, _ := strings.Cut(readReference(t), "\nVendors: ")
	list, _, _ = strings.Cut(list, ". ")
	for _, name := range deception.Vendors() {
		if !strings.Contains(list, "`"+name+"`") {
			t.Errorf("%s lacks the vendor %s", reference, name)
		}
	}
}
