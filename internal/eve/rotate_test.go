package eve

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
)

// flows returns the numbers of the events that were taken, in order.
func flows(list []deception.Finding) (out []string) {
	for i := range list {
		out = append(out, flowOf(list[i].Document))
	}
	return out
}

// Each of these leaves every event in some file. All are read, once, and in order.
func TestRotation(t *testing.T) {
	s := session(1)
	line := func(n int) string { return record(&s, "ssh", n, false, "packet", "") + "\n" }
	type step func(t *testing.T, f folder)
	write := func(name string, numbers ...int) step {
		return func(t *testing.T, f folder) {
			for _, n := range numbers {
				f.write(t, name, line(n))
			}
		}
	}
	text := func(s string) step { return func(t *testing.T, f folder) { f.write(t, "eve.json", s) } }
	move := func(from, to string) step {
		return func(t *testing.T, f folder) { rename(t, f.path(from), f.path(to)) }
	}
	cutOff := func(to string) step {
		return func(t *testing.T, f folder) { copyTruncate(t, f.path("eve.json"), f.path(to)) }
	}
	remove := func(name string) step {
		return func(t *testing.T, f folder) {
			if err := os.Remove(f.path(name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	compress := func(names ...string) step {
		return func(t *testing.T, f folder) {
			for _, name := range names {
				run(t, "gzip", f.path(name))
			}
		}
	}
	pause := step(func(*testing.T, folder) { time.Sleep(20 * time.Millisecond) }) // files get different times
	for name, test := range map[string]struct {
		steps []step // nil: the reader reads
		want  int    // 1, 2, 3 ... in this order
	}{
		"renamed, and written to under the new name": {[]step{
			write("eve.json", 1), nil, move("eve.json", "eve.json.1"), nil,
			write("eve.json.1", 2), nil, write("eve.json.1", 3), write("eve.json", 4), nil,
		}, 4},
		"renamed with an empty file made at once": {[]step{
			write("eve.json", 1), nil, move("eve.json", "eve.json.1"), write("eve.json"), text(""), nil,
			write("eve.json.1", 2), nil, write("eve.json", 3), nil,
		}, 3},
		"renamed three times unseen": {[]step{
			write("eve.json", 1), nil, write("eve.json", 2), move("eve.json", "eve.json.1"), pause, write("eve.json", 3),
			move("eve.json.1", "eve.json.2"), move("eve.json", "eve.json.1"), pause, write("eve.json", 4),
			move("eve.json.2", "eve.json.3"), move("eve.json.1", "eve.json.2"), move("eve.json", "eve.json.1"), pause, write("eve.json", 5), nil,
		}, 5},
		"copied and truncated":        {[]step{write("eve.json", 1, 2), nil, cutOff("eve.json.1"), nil, write("eve.json", 3), nil}, 3},
		"copied and truncated unread": {[]step{write("eve.json", 1, 2), nil, write("eve.json", 3), cutOff("eve.json.1"), write("eve.json", 4), nil}, 4},
		"copied, truncated, longer than before": {[]step{
			write("eve.json", 1), nil, write("eve.json", 2), cutOff("eve.json.1"),
			write("eve.json", 3, 4, 5, 6), nil,
		}, 6},
		"half a line, then copied and truncated": {[]step{text(line(1) + line(2)[:40]), nil, text(line(2)[40:]), cutOff("eve.json-20260304"), write("eve.json", 3), nil}, 3},
		"truncated in the midst of a line":       {[]step{text(line(1) + line(2)[:40]), nil, cutOff("copy"), write("eve.json", 2), nil}, 2},
		"removed, and written to nevertheless":   {[]step{write("eve.json", 1), nil, remove("eve.json"), nil, write("eve.json", 2), nil, nil}, 2},
		"not there yet":                          {[]step{nil, write("eve.json", 1), nil}, 1},
		"a whole line without its end":           {[]step{text(line(1)), text(line(2)[:len(line(2))-1]), nil, move("eve.json", "eve.json.1"), write("eve.json", 3), nil, nil}, 3},
		"a hole where a writer did not append": {[]step{
			write("eve.json", 1), nil, cutOff("copy"), text(string(make([]byte, 700))), text(line(2)), nil,
			write("eve.json", 3), nil,
		}, 3},
		"other files of that name": {[]step{write("eve.json", 1), nil, write("eve.json.1.xz", 99), write("eve.json.0.gz", 99), text(""), move("eve.json", "eve.json.1"), write("eve.json", 2), nil}, 2},
		"compressed with a rest unread": {[]step{
			write("eve.json", 1), nil, write("eve.json", 2), move("eve.json", "eve.json.1"), write("eve.json", 3), compress("eve.json.1"), nil,
			write("eve.json", 4), nil,
		}, 4},
		"compressed twice unread": {[]step{
			write("eve.json", 1), nil, write("eve.json", 2), move("eve.json", "eve.json-1"), compress("eve.json-1"), pause,
			write("eve.json", 3), move("eve.json", "eve.json-2"), compress("eve.json-2"), pause, write("eve.json", 4), nil,
		}, 4},
		"compressed when it was read": {[]step{
			write("eve.json", 1, 2), nil, move("eve.json", "eve.json.1"), text(""), nil, compress("eve.json.1"), nil, write("eve.json", 3), nil, nil,
		}, 3},
		"copied, truncated and compressed": {[]step{write("eve.json", 1), nil, write("eve.json", 2), cutOff("eve.json.1"), compress("eve.json.1"), write("eve.json", 3), nil}, 3},
		"half a line, then compressed":     {[]step{text(line(1) + line(2)[:40]), nil, text(line(2)[40:]), move("eve.json", "eve.json.1"), compress("eve.json.1"), write("eve.json", 3), nil}, 3},
		"being compressed": {[]step{
			write("eve.json", 1), nil, write("eve.json", 2), move("eve.json", "eve.json.1"), write("eve.json", 3), text(""),
			func(t *testing.T, f folder) {
				run(t, "gzip", "--keep", f.path("eve.json.1"))
				halve(t, f.path("eve.json.1.gz"))
			}, nil, write("eve.json", 4), nil,
		}, 4},
		"compressed in two parts": {[]step{
			write("eve.json", 1), nil, write("eve.json", 2, 3), move("eve.json", "eve.json.1"),
			func(t *testing.T, f folder) {
				text := read(t, f.path("eve.json.1"))
				for name, part := range map[string]string{"first": text[:700], "second": text[700:]} {
					f.write(t, name, part)
					run(t, "gzip", f.path(name))
				}
				f.write(t, "eve.json.1.gz", read(t, f.path("first.gz"))+read(t, f.path("second.gz")))
				remove("eve.json.1")(t, f)
			}, nil, nil, write("eve.json", 4), nil, nil,
		}, 4},
	} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, restart %v", name, restart), func(t *testing.T) {
				f, k := newFolder(t), newSink()
				r := start(t, f.config(roster{}, k))
				for _, step := range test.steps {
					if step != nil {
						step(t, f)
						continue
					}
					if restart {
						r.follow.close()
						r = start(t, f.config(roster{}, k))
					}
					drive(t, r, time.Now())
				}
				var want []string
				for n := 1; n <= test.want; n++ {
					want = append(want, fmt.Sprint(n))
				}
				if diff := cmp.Diff(want, flows(k.all())); diff != "" {
					t.Errorf("(-want +got):\n%s%+v", diff, r.Stats())
				}
			})
		}
	}
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

// halve takes the second half of a file away.
func halve(t *testing.T, path string) {
	t.Helper()
	if err := os.Truncate(path, int64(len(read(t, path))/2)); err != nil {
		t.Fatal(err)
	}
}

// logrotate compresses at once where it is not told to wait, with nobody reading meanwhile: in each
// way that it can be told to rotate, the next reader finds all there is.
func TestLogrotate(t *testing.T) {
	const turns, each = 3, 2000 // more than is decompressed at a time
	s := session(1)
	for name, how := range map[string]string{
		"renamed": "create", "copied and truncated": "copytruncate", "with dates": "create\ndateext\ndateformat -%Y%m%d-%s",
	} {
		t.Run(name, func(t *testing.T) {
			f, k := newFolder(t), newSink()
			f.write(t, "logrotate.conf", f.path("eve.json")+" {\nrotate 9\ncompress\n"+how+"\n}\n")
			written := 0
			write := func() {
				var b strings.Builder
				for range each {
					written++
					b.WriteString(record(&s, "ssh", written, false, "packet", "") + "\n")
				}
				f.write(t, "eve.json", b.String())
			}
			for turn := range turns {
				r := start(t, f.config(roster{}, k))
				write()
				if turn%2 == 0 {
					drive(t, r, time.Now())
				}
				r.follow.close()
				write()
				run(t, "logrotate", "--force", "--state", f.path("state"), f.path("logrotate.conf"))
				if strings.Contains(how, "dateext") {
					time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // a date has whole seconds
				}
			}
			write()
			r := start(t, f.config(roster{}, k))
			drive(t, r, time.Now())
			var want []string
			for n := 1; n <= written; n++ {
				want = append(want, fmt.Sprint(n))
			}
			if diff := cmp.Diff(want, flows(k.all())); diff != "" || r.Stats().Missed > 0 {
				t.Errorf("(-want +got):\n%.2000s%+v", diff, r.Stats())
			}
			if packed, err := filepath.Glob(f.path("eve.json*.gz")); len(packed) != turns {
				t.Errorf("%q, %v: logrotate compressed something else", packed, err)
			}
		})
	}
}

// A rotated file may be removed when the checkpoint is behind it, not before.
func TestDone(t *testing.T) {
	s := session(1)
	line := func(n int) string { return record(&s, "ssh", n, false, "packet", "") + "\n" }
	f, k := newFolder(t), newSink()
	r := start(t, f.config(roster{}, k))
	f.write(t, "eve.json", line(1))
	drive(t, r, time.Now())
	rename(t, f.path("eve.json"), f.path("eve.json.1"))
	drive(t, r, time.Now())
	if r.Done(f.path("eve.json.1")) || r.Done(f.path("eve.json")) {
		t.Error("done while nobody writes to the next one")
	}
	f.write(t, "eve.json", line(2))
	drive(t, r, time.Now())
	if !r.Done(f.path("eve.json.1")) || r.Done(f.path("eve.json")) {
		t.Error("not done, or the wrong one")
	}
	r.follow.close()
	r = start(t, f.config(roster{}, k))
	drive(t, r, time.Now())
	if !r.Done(f.path("eve.json.1")) || r.Done(f.path("eve.json")) {
		t.Error("not done after a restart, or the wrong one")
	}
}
