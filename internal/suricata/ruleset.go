package suricata

import (
	"bufio"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"decoynet/deception"
)

//go:embed rules/*.rules
var ownRules embed.FS

// systemDirs are where distributions and suricata-update put rules; the first one
// that has a rule wins.
var systemDirs = []string{"/var/lib/suricata/rules", "/etc/suricata/rules"}

// maxRuleBytes bounds one file of rules; the largest public set has 40 MB.
const maxRuleBytes = 128 << 20

// origin says whose a rule is, and thus what happens if it is wrong.
type origin int

const (
	fromUser   origin = iota // of the document: refused with its whole set
	fromUs                   // decoynet's own
	fromSystem               // left out alone
)

// Place is a line of a file.
type Place struct {
	File string `json:"file"`
	Line int    `json:"line"`
}

func (p Place) String() string {
	if p.Line == 0 {
		return p.File
	}
	return p.File + ":" + strconv.Itoa(p.Line)
}

// RuleProblem is what is wrong with one rule.
type RuleProblem struct {
	Place
	SID     uint32 `json:"sid,omitempty"`
	Message string `json:"message"`
	// Ignored: the rule was left out or taken with a reservation, the others go live.
	Ignored bool `json:"ignored,omitempty"`
}

func (p RuleProblem) String() string { return p.Place.String() + ": " + p.Message }

// rule is one rule of a set.
type rule struct {
	text   string // on one line
	place  Place
	origin origin
	sid    uint64 // generator and signature; 0 where it has none
}

// ruleset is what is to be loaded, in the order in which it is written.
type ruleset struct {
	rules   []rule
	files   int
	classes string
	widened int // rules whose negated groups stand for any address
	problems
	attached map[string]string // names of copies that its rules name, and what they are of
	trial    trial             // of it by Suricata
}

// problems are those of a set that are kept, and how many more there were.
type problems struct {
	list           []RuleProblem
	ignored, fatal int // in list
	more           int
}

// keptProblems bounds those that are kept of either kind: the report of a set that is
// for another version altogether must not be as large as the set.
const keptProblems = 500

func (p *problems) note(one RuleProblem) {
	n := &p.fatal
	if one.Ignored {
		n = &p.ignored
	}
	if *n >= keptProblems {
		p.more++
		return
	}
	*n++
	p.list = append(p.list, one)
}

// gather reads all rules that are wanted: those of the document, decoynet's own,
// and the system's. One of a file that cannot be read is an error.
func gather(want *deception.Inspect) (*ruleset, error) {
	set := &ruleset{classes: ownClasses}
	seen := make(map[uint64]Place)
	var errs []error
	for _, path := range want.Rules {
		errs = append(errs, set.path(path, fromUser, seen))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	if err := set.own(seen); err != nil {
		return nil, err
	}
	if want.SystemRules {
		for _, dir := range systemDirs {
			if err := set.path(dir, fromSystem, seen); err != nil && !errors.Is(err, fs.ErrNotExist) {
				set.note(RuleProblem{Place: Place{File: dir}, Message: err.Error(), Ignored: true})
			}
		}
		set.systemClasses()
	}
	return set, nil
}

// own adds the rules in the binary.
func (s *ruleset) own(seen map[uint64]Place) error {
	names, err := fs.Glob(ownRules, "rules/*.rules")
	if err != nil {
		return fmt.Errorf("list decoynet's rules: %w", err)
	}
	for _, name := range names {
		text, err := ownRules.ReadFile(name)
		if err != nil {
			return fmt.Errorf("read decoynet's rules: %w", err)
		}
		s.add("decoynet:"+strings.TrimPrefix(name, "rules/"), string(text), fromUs, seen)
	}
	return nil
}

// path adds a file, or the *.rules files of a directory.
func (s *ruleset) path(path string, from origin, seen map[uint64]Place) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return s.file(path, from, seen)
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".rules") && !strings.HasPrefix(e.Name(), ".") {
			errs = append(errs, s.file(filepath.Join(path, e.Name()), from, seen))
		}
	}
	return errors.Join(errs...)
}

func (s *ruleset) file(path string, from origin, seen map[uint64]Place) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", path)
	}
	if info.Size() > maxRuleBytes {
		return fmt.Errorf("%s has %d MB; at most %d are read", path, info.Size()>>20, maxRuleBytes>>20)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var text strings.Builder // the rules are parts of its string: a large file is in memory once
	text.Grow(int(info.Size()))
	if _, err := io.Copy(&text, io.LimitReader(f, maxRuleBytes)); err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	s.add(path, text.String(), from, seen)
	return nil
}

// add takes the rules of a file. A rule may go over lines that end in a backslash.
// Of two with one number the first stays.
func (s *ruleset) add(file, text string, from origin, seen map[uint64]Place) {
	s.files++
	var parts []string
	start, n := 0, 0
	for line := range strings.Lines(text) {
		n++
		part := strings.TrimSpace(strings.TrimPrefix(line, "\ufeff"))
		if len(parts) == 0 {
			if part == "" || part[0] == '#' {
				continue
			}
			start = n
		}
		more := strings.HasSuffix(part, `\`)
		parts = append(parts, strings.TrimSuffix(part, `\`))
		if more {
			continue
		}
		s.rule(strings.Join(parts, " "), Place{file, start}, from, seen)
		parts = nil
	}
	if len(parts) > 0 {
		s.rule(strings.Join(parts, " "), Place{file, start}, from, seen)
	}
}

func (s *ruleset) rule(text string, at Place, from origin, seen map[uint64]Place) {
	text, widened := widen(strings.ReplaceAll(text, "\x00", ""))
	var err error
	r := rule{text: text, place: at, origin: from, sid: signature(text)}
	if r.sid != 0 {
		if first, ok := seen[r.sid]; ok {
			// Two of the system's directories hold much the same.
			if from != fromSystem {
				s.note(RuleProblem{
					Place: at, SID: uint32(r.sid), Ignored: true,
					Message: fmt.Sprintf("sid %d is taken by %s; this rule is left out, give it another number", uint32(r.sid), first),
				})
			}
			return
		}
		seen[r.sid] = at
	}
	if r.text, err = s.attach(r.text, filepath.Dir(at.File)); err != nil {
		s.note(RuleProblem{Place: at, SID: uint32(r.sid), Message: err.Error(), Ignored: from == fromSystem})
		return
	}
	if widened {
		s.widened++
	}
	s.rules = append(s.rules, r)
}

// signature returns a rule's gid in the high and its sid in the low half, 0 where it
// has no sid. Options are looked for outside of quotes only.
func signature(text string) uint64 {
	var sid, gid uint64 = 0, 1
	for option := range options(text) {
		name, value, _ := strings.Cut(option, ":")
		n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 32)
		if err != nil {
			continue
		}
		switch strings.TrimSpace(name) {
		case "sid":
			sid = n
		case "gid":
			gid = n
		}
	}
	if sid == 0 {
		return 0
	}
	return gid<<32 | sid
}

// options yields what stands between a rule's semicolons. A quote or a semicolon
// is taken literally after a backslash.
func options(text string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		open := strings.IndexByte(text, '(')
		if open < 0 {
			return
		}
		text = strings.TrimSuffix(strings.TrimSpace(text[open+1:]), ")")
		start, quoted := 0, false
		for i := 0; i < len(text); i++ {
			switch text[i] {
			case '\\':
				i++
			case '"':
				quoted = !quoted
			case ';':
				if quoted {
					continue
				}
				if !yield(text[start:i]) {
					return
				}
				start = i + 1
			}
		}
	}
}

// systemClasses adds class types that the system's rules may use.
func (s *ruleset) systemClasses() {
	known := make(map[string]bool)
	for line := range strings.Lines(s.classes) {
		known[className(line)] = true
	}
	paths := []string{"/etc/suricata/classification.config"}
	for _, dir := range systemDirs {
		paths = append(paths, filepath.Join(dir, "classification.config"))
	}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // there need be none
		}
		for line := range strings.Lines(string(text)) {
			if name := className(line); name != "" && !known[name] {
				known[name] = true
				s.classes += strings.TrimSpace(line) + "\n"
			}
		}
	}
}

func className(line string) string {
	rest, ok := strings.CutPrefix(strings.TrimSpace(line), "config classification:")
	if !ok {
		return ""
	}
	name, _, _ := strings.Cut(rest, ",")
	return strings.TrimSpace(name)
}

// WriteTo writes the set as one file, a rule a line.
func (s *ruleset) WriteTo(w io.Writer) (int64, error) {
	out := bufio.NewWriterSize(w, 256<<10)
	total := int64(0)
	for i := range s.rules {
		n, _ := out.WriteString(s.rules[i].text) // Flush tells of its errors
		_ = out.WriteByte('\n')
		total += int64(n) + 1
	}
	return total, out.Flush()
}

// without drops the rules on these lines of text, counted from 0.
func (s *ruleset) without(lines map[int]bool) {
	i := -1
	s.rules = slices.DeleteFunc(s.rules, func(rule) bool { i++; return lines[i] })
}

// sum tells whether two sets are the same to one Suricata, before rules of the
// system are left out of them.
func (s *ruleset) sum(version string) string {
	h := sha256.New()
	_, _ = s.WriteTo(h) // a hash takes everything
	for _, text := range []string{s.classes, configText, version} {
		_, _ = io.WriteString(h, text)
	}
	return hex.EncodeToString(h.Sum(nil))
}
