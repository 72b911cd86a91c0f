package eve

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unicode/utf8"

	"decoynet/deception"
)

// Whatever a line is: members agrees with encoding/json on what is an object (but
// for how deep it may be), and the document of an event is JSON within its limit.
func FuzzLine(f *testing.F) {
	s := session(1)
	for _, kind := range []string{"alert", "http", "flow", "stats"} {
		for _, ether := range []string{"packet", "flow", "none"} {
			f.Add([]byte(record(&s, kind, 1, false, ether, alertMember+page)))
		}
	}
	for _, line := range []string{`{"a":-0.5e+3,"b":[],"c":{},"d":[{}, true ,null,false,1E5,"\u00e4\\"]}`, `{"a":01}`, `{"a":1,}`, `{"a" :"` + "\x01" + `"}`, `{"a":"\x"}`, `{} {}`, `[{}]`} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		if !utf8.Valid(line) {
			line = bytes.ToValidUTF8(line, []byte("\uFFFD"))
		}
		list, err := members(nil, line)
		var want map[string]json.RawMessage
		wantErr := json.Unmarshal(line, &want)
		if deep := nesting(line) > maxDepth; (err == nil) != (wantErr == nil && want != nil) && !deep {
			t.Fatalf("members: %v, encoding/json: %v", err, wantErr)
		}
		if err == nil {
			for i := range list {
				if !json.Valid(list[i].value) {
					t.Fatalf("member %q is %q", list[i].name, list[i].value)
				}
			}
		}
		var e event
		if e.parse(line) != nil || e.kind == kindStats {
			return
		}
		e.application()
		e.alert()
		const limit = 4096
		doc, _ := e.document(limit)
		if !json.Valid(doc) || len(doc) > limit {
			t.Fatalf("document of %d bytes: %q", len(doc), doc)
		}
	})
}

// nesting is how deep the brackets of a line go, at most.
func nesting(line []byte) (most int) {
	depth := 0
	for _, c := range line {
		switch c {
		case '{', '[':
			depth++
			most = max(most, depth)
		case '}', ']':
			depth--
		}
	}
	return most
}

// Whatever is written to the file, in whichever pieces, with rotations and truncations
// between them: an event that stands whole in a line of its own at the end is
// found, and what is found has the same identifier for a reader that reads it in
// one go.
func FuzzReader(f *testing.F) {
	s := session(1)
	line := record(&s, "alert", 7, false, "packet", alertMember) + "\n"
	f.Add([]byte(line+line), uint16(100), byte(0))
	f.Add([]byte(line[:50]+line), uint16(50), byte(1))
	f.Add([]byte("\x00\x00\x00"+line), uint16(2), byte(2))
	f.Add([]byte("\n\n{}\n[]\n\xff\n"), uint16(4), byte(3))
	f.Fuzz(func(t *testing.T, text []byte, cut uint16, act byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, "eve.json")
		got := map[deception.SessionID]string{}
		cfg := Config{
			Path: path, Checkpoint: filepath.Join(dir, "checkpoint"), Sessions: roster{}, Settle: -1, MaxLine: 2000,
			Deliver: func(_ context.Context, list []*deception.Finding) error {
				for _, x := range list {
					if !json.Valid(x.Document) || x.ID.IsZero() {
						t.Fatalf("%+v", x)
					}
					if old, ok := got[x.ID]; ok && old != string(x.Document) && x.Session.IsZero() {
						t.Fatalf("two events of one identifier:\n%s\n%s", old, x.Document)
					}
					got[x.ID] = string(x.Document)
				}
				return nil
			},
		}
		now := time.Now()
		write := func(b []byte) {
			file, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			_, err = file.Write(b)
			_ = file.Close()
			if err != nil {
				t.Fatal(err)
			}
		}
		r := start(t, cfg)
		at := min(int(cut), len(text))
		write(text[:at])
		drive(t, r, now)
		switch act % 4 {
		case 1:
			rename(t, path, path+".1")
		case 2:
			copyTruncate(t, path, path+".1")
		case 3:
			r.follow.close()
			r = start(t, cfg)
		}
		write(text[at:])
		drive(t, r, now)
		write([]byte("\n" + line))
		drive(t, r, now.Add(time.Second))
		drive(t, r, now.Add(2*time.Second))
		found := false
		for _, doc := range got {
			found = found || flowOf([]byte(doc)) == "7"
		}
		if !found {
			t.Fatalf("the last event is not found: %+v", r.Stats())
		}
	})
}
