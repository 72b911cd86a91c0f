package eve

import (
	"fmt"
	"os"
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
		"other files of that name": {[]step{write("eve.json", 1), nil, write("eve.json.1.gz", 99), text(""), move("eve.json", "eve.json.1"), write("eve.json", 2), nil}, 2},
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
