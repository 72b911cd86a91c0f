package eve

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
)

// Whatever a line is, the next one is read.
func TestBadLines(t *testing.T) {
	sessions := roster{}
	s := sessions.add(session(1))
	good := record(&s, "ssh", 1, false, "packet", "")
	whole := record(&s, "alert", 2, false, "packet", alertMember)
	for name, test := range map[string]struct {
		line string
		want Stats
		also string // a kind that is found nevertheless
	}{
		"empty":                         {line: ""},
		"no JSON":                       {line: "Segmentation fault", want: Stats{Broken: 1}},
		"a list":                        {line: "[" + good + "]", want: Stats{Broken: 1}},
		"two objects":                   {line: "{}" + "{}", want: Stats{Broken: 1}},
		"half a line":                   {line: good[:70], want: Stats{Broken: 1}},
		"half a line and a whole one":   {line: good[:70] + whole, want: Stats{Broken: 1, Repaired: 1}, also: "alert"},
		"NUL bytes within":              {line: good[:70] + "\x00\x00" + good[72:], want: Stats{Broken: 1}},
		"NUL bytes between":             {line: good[:70] + "\x00\x00" + whole, want: Stats{Broken: 1, Repaired: 1}, also: "alert"},
		"no UTF-8":                      {line: strings.Replace(whole, "root", "\xff\xfe", 1), want: Stats{Repaired: 1}, also: "alert"},
		"no type":                       {line: strings.Replace(good, "event_type", "type", 1), want: Stats{Broken: 1}},
		"a type that is no word":        {line: strings.Replace(good, `"ssh"`, `"s\u001bh"`, 1), want: Stats{Broken: 1}},
		"no time":                       {line: strings.Replace(good, "2026-", "yesterday-", 1), want: Stats{Broken: 1}},
		"nested deeply":                 {line: good[:len(good)-1] + `,"x":` + strings.Repeat("[", 100000) + strings.Repeat("]", 100000) + "}", want: Stats{Broken: 1}},
		"too long":                      {line: good[:len(good)-1] + `,"x":"` + strings.Repeat("y", 3<<20) + `"}`, want: Stats{Oversized: 1}},
		"no MAC addresses":              {line: record(&s, "http", 1, false, "", `,"pkt_src":"wire/pcap"`), want: Stats{Addressless: 1, Dropped: 1}},
		"no MAC addresses, an alert":    {line: record(&s, "alert", 1, false, "", `,"pkt_src":"wire/pcap"`), want: Stats{Addressless: 1}, also: "alert"},
		"MAC addresses of a real card":  {line: strings.Replace(good, `"src_mac":"0`, `"src_mac":"1`, 1), want: Stats{Unknown: 1, Dropped: 1}},
		"MAC addresses of none, alert":  {line: strings.Replace(whole, `"src_mac":"0`, `"src_mac":"1`, 1), want: Stats{Unknown: 1}, also: "alert"},
		"MAC addresses that are text":   {line: strings.Replace(good, `"src_mac":"0`, `"src_mac":"z`, 1), want: Stats{Addressless: 1, Dropped: 1}},
		"a session of another century":  {line: strings.Replace(good, "2026-", "2126-", 1), want: Stats{Mismatched: 0}, also: "ssh"},
		"another flow's addresses":      {line: strings.Replace(good, "10.9.0.1", "10.9.0.2", 1), want: Stats{Mismatched: 1}, also: "ssh"},
		"another transport":             {line: strings.Replace(good, "TCP", "UDP", 1), want: Stats{Mismatched: 1}, also: "ssh"},
		"numbers that do not fit":       {line: strings.Replace(whole, `"rev":7`, `"rev":-99999999999999999999999`, 1), also: "alert"},
		"an alert without what matched": {line: record(&s, "alert", 1, false, "packet", ""), also: "alert"},
	} {
		t.Run(name, func(t *testing.T) {
			f, k := newFolder(t), newSink()
			cfg := f.config(sessions, k)
			cfg.MaxLine = 2 << 20
			r := start(t, cfg)
			f.write(t, "eve.json", test.line+"\n"+good+"\n")
			drive(t, r, time.Now())
			got := r.Stats()
			kept := Stats{
				Broken: got.Broken, Repaired: got.Repaired, Oversized: got.Oversized, Addressless: got.Addressless, Unknown: got.Unknown,
				Mismatched: got.Mismatched, Dropped: got.Dropped,
			}
			if diff := cmp.Diff(test.want, kept); diff != "" {
				t.Errorf("stats (-want +got):\n%s", diff)
			}
			var kinds []string
			for _, x := range k.all() {
				kinds = append(kinds, x.Kind)
				decode(t, x.Document)
				strange := test.want.Mismatched+test.want.Unknown+test.want.Addressless > 0 && len(kinds) == 1 && test.also != ""
				if joined := !x.Session.IsZero(); joined == strange {
					t.Errorf("%s joined: %v", x.Kind, joined)
				}
				if x.Kind == "alert" && (x.Alert == nil || x.Alert.Severity == 0) {
					t.Errorf("alert %+v", x.Alert)
				}
			}
			if want := strings.TrimSpace(test.also + " ssh"); strings.Join(kinds, " ") != want {
				t.Errorf("kinds %v, want %s", kinds, want)
			}
		})
	}
}

// A session that nobody here knows is joined by the time in its key, as long as
// that makes sense.
func TestUnlistedSession(t *testing.T) {
	s := session(1)
	for year, want := range map[string]Stats{"2026-": {Unlisted: 2}, "2126-": {Unknown: 2, Dropped: 2}, "2025-": {Unknown: 2, Dropped: 2}} {
		f, k := newFolder(t), newSink()
		r := start(t, f.config(roster{}, k))
		f.write(t, "eve.json", strings.ReplaceAll(record(&s, "ssh", 1, false, "packet", "")+"\n"+record(&s, "ssh", 1, true, "packet", "")+"\n", "2026-", year))
		drive(t, r, time.Now())
		got := r.Stats()
		if diff := cmp.Diff(want, Stats{Unlisted: got.Unlisted, Unknown: got.Unknown, Dropped: got.Dropped}); diff != "" {
			t.Errorf("%s (-want +got):\n%s", year, diff)
		}
		for _, x := range k.all() {
			if x.Session != s.ID || x.Source != s.Source || x.Destination != s.Destination {
				t.Errorf("%+v", x)
			}
		}
	}
}

// A document that is too large loses its fattest members, and what it lost is in
// it.
func TestTrimmedDocuments(t *testing.T) {
	sessions := roster{}
	s := sessions.add(session(1))
	fat := func(n int) string { return `"` + strings.Repeat("ab", n/2) + `"` }
	many := func(value string, n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"m%d":%s`, i, value)
		}
		return b.String()
	}
	list := "[" + strings.Repeat(`{"name":"a","value":"b"},`, 20000) + "1]"
	for name, test := range map[string]struct {
		kind, extra string
		trimmed     []any
		has         []string
	}{
		"payload": {
			"alert", alertMember + `,"payload":` + fat(60<<10) + `,"payload_printable":` + fat(30<<10),
			[]any{"payload"},
			[]string{"alert", "payload_printable"},
		},
		"headers": {"http", `,"http":{"url":"/x","request_headers":` + list + `}`, []any{"http.request_headers"}, []string{"http"}},
		"bodies": {
			"http", `,"http":{"url":"/x","http_request_body":` + fat(1<<20) + `,"http_request_body_printable":` + fat(1<<20) + `}`,
			[]any{"http.http_request_body", "http.http_request_body_printable"},
			[]string{"http"},
		},
		"a list":                     {"dns", `,"dns":` + list, []any{"dns"}, nil},
		"a million":                  {"smb", `,"smb":` + fat(1<<20), []any{"smb"}, nil},
		"forty of some size":         {"smb", many(fat(4<<10), 40), []any{}, []string{"m39"}},
		"very many":                  {"smb", many("1", 50000), []any{"..."}, nil},
		"an alert that is too large": {"alert", `,"alert":{"signature":` + fat(70<<10) + `}`, []any{"..."}, nil},
		"names that are too long":    {"smb", `,"smb":{"` + strings.Repeat("n", 200) + `":{"b":` + fat(70<<10) + `}}`, []any{"smb..."}, []string{"smb"}},
	} {
		t.Run(name, func(t *testing.T) {
			f, k := newFolder(t), newSink()
			r := start(t, f.config(sessions, k))
			f.write(t, "eve.json", record(&s, test.kind, 1, false, "packet", test.extra)+"\n")
			drive(t, r, time.Now())
			all := k.all()
			if len(all) != 1 || len(all[0].Document) > deception.FindingBytes || r.Stats().Trimmed != 1 {
				t.Fatalf("%d findings; %+v", len(all), r.Stats())
			}
			doc := decode(t, all[0].Document)
			got, _ := doc["trimmed"].([]any)
			if len(test.trimmed) > 0 {
				if diff := cmp.Diff(test.trimmed, got); diff != "" {
					t.Errorf("trimmed (-want +got):\n%s", diff)
				}
			} else if len(got) < 20 || len(got) > 30 {
				t.Errorf("trimmed %v", got)
			}
			for _, member := range append(test.has, "src_ip", "dest_port", "event_type") {
				if doc[member] == nil {
					t.Errorf("%s is gone", member)
				}
			}
		})
	}
}

// A compressed file that is damaged is read up to there, and one that cannot be read
// is missed; the next one is read in any case.
func TestDamagedFiles(t *testing.T) {
	s := session(1)
	line := func(n int) string {
		return record(&s, "ssh", n, false, "packet", fmt.Sprintf(`,"x":"%x"`, sha256.Sum256([]byte{byte(n)}))) + "\n"
	}
	for name, test := range map[string]struct {
		harm   func(t *testing.T, path string)
		missed uint64
		least  int // events of the damaged one that are read
	}{
		"whole":    {func(*testing.T, string) {}, 0, 99},
		"cut off":  {halve, 1, 30},
		"no gzip":  {func(t *testing.T, path string) { overwrite(t, path, 0, "text") }, 1, 0},
		"another":  {func(t *testing.T, path string) { rename(t, path, path+".xz") }, 1, 0},
		"removed":  {func(t *testing.T, path string) { rename(t, path, filepath.Join(filepath.Dir(path), "else")) }, 1, 0},
		"checksum": {func(t *testing.T, path string) { overwrite(t, path, len(read(t, path))-8, "sums") }, 1, 99},
	} {
		t.Run(name, func(t *testing.T) {
			f, k := newFolder(t), newSink()
			f.write(t, "eve.json", line(1))
			r := start(t, f.config(roster{}, k))
			drive(t, r, time.Now())
			r.follow.close()
			for n := 2; n <= 100; n++ {
				f.write(t, "eve.json", line(n))
			}
			rename(t, f.path("eve.json"), f.path("eve.json.1"))
			run(t, "gzip", f.path("eve.json.1"))
			test.harm(t, f.path("eve.json.1.gz"))
			f.write(t, "eve.json", line(101)+line(102))
			var told []error
			cfg := f.config(roster{}, k)
			cfg.Missed = func(why error) { told = append(told, why) }
			r = start(t, cfg)
			drive(t, r, time.Now())
			drive(t, r, time.Now().Add(2*lookEvery)) // it looks around again
			drive(t, r, time.Now().Add(4*lookEvery))
			got := flows(k.all())
			if st := r.Stats(); st.Missed != test.missed || len(told) != int(test.missed) {
				t.Errorf("missed %d, told %v", st.Missed, told)
			}
			if n := len(got); n < test.least+3 || got[n-2] != "101" || got[n-1] != "102" {
				t.Errorf("%q was taken", got)
			}
			for i, n := range got[:len(got)-2] {
				if n != fmt.Sprint(i+1) {
					t.Errorf("%q was taken", got)
				}
			}
		})
	}
}

// overwrite changes some bytes of a file.
func overwrite(t *testing.T, path string, at int, text string) {
	t.Helper()
	b := []byte(read(t, path))
	copy(b[at:], text)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
