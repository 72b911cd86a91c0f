package eve

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/deception"

	"pgregory.net/rapid"
)

// world is a file of events with everything that may happen to it, and to its
// reader.
type world struct {
	t       *rapid.T
	f       folder
	s       deception.Session
	sink    *sink
	reader  *Reader
	now     time.Time
	written int    // events
	half    string // the rest of an event that was begun
	rotated int
}

func (w *world) append(name, text string) {
	file, err := os.OpenFile(w.f.path(name), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err == nil {
		_, err = file.WriteString(text)
		_ = file.Close()
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) event() string {
	w.written++
	return record(&w.s, "ssh", w.written, false, "packet", rapid.SampledFrom([]string{"", page}).Draw(w.t, "extra")) + "\n"
}

// write ends what was begun, and writes some events; maybe not all of the last.
func (w *world) write() {
	text := w.half
	for range rapid.IntRange(0, 3).Draw(w.t, "events") {
		text += w.event()
	}
	w.half = ""
	if rapid.Bool().Draw(w.t, "break off") {
		last := w.event()
		at := rapid.IntRange(1, len(last)-1).Draw(w.t, "after")
		text, w.half = text+last[:at], last[at:]
	}
	w.append("eve.json", text)
}

// whole ends what was begun: nobody rotates within a line.
func (w *world) whole() {
	w.append("eve.json", w.half)
	w.half = ""
}

func (w *world) aside() string {
	w.rotated++
	return w.f.path(fmt.Sprintf("eve.json.%d", w.rotated))
}

func (w *world) rename() {
	w.whole()
	if err := os.Rename(w.f.path("eve.json"), w.aside()); err != nil {
		w.t.Fatal(err)
	}
	if rapid.Bool().Draw(w.t, "make the new one") {
		w.append("eve.json", "")
	}
}

// late writes to a file that was renamed, as long as there is no other.
func (w *world) late() {
	info, err := os.Stat(w.f.path("eve.json"))
	name := fmt.Sprintf("eve.json.%d", w.rotated)
	if _, missing := os.Stat(w.f.path(name)); missing == nil && (err != nil || info.Size() == 0) {
		w.append(name, w.event())
	}
}

func (w *world) copyTruncate() {
	w.whole()
	b, err := os.ReadFile(w.f.path("eve.json"))
	if err == nil {
		err = os.WriteFile(w.aside(), b, 0o600)
	}
	if err == nil {
		err = os.Truncate(w.f.path("eve.json"), 0)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// keep makes a copy that nobody asked for.
func (w *world) keep() {
	names, _ := filepath.Glob(w.f.path("eve.json*"))
	if len(names) == 0 {
		return
	}
	of := rapid.SampledFrom(names).Draw(w.t, "of")
	name := fmt.Sprintf("eve.json.kept-%d", w.written)
	if packed(of) {
		name += ".gz"
	}
	b, err := os.ReadFile(of)
	if err == nil {
		err = os.WriteFile(w.f.path(name), b, 0o600)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// compress is what somebody does to a file that was rotated, or to a copy.
func (w *world) compress() {
	names, _ := filepath.Glob(w.f.path("eve.json.*"))
	if names = slices.DeleteFunc(names, packed); len(names) == 0 {
		return
	}
	if out, err := exec.Command("gzip", "--force", rapid.SampledFrom(names).Draw(w.t, "of")).CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
}

func (w *world) start() {
	cfg := w.f.config(roster{}, w.sink)
	cfg.Settle = time.Second
	w.reader = newReader(cfg)
	if err := w.reader.open(w.now); err != nil {
		w.t.Fatal(err)
	}
}

// read does a few steps: where it stops there, it is as if it was killed.
func (w *world) read() {
	for range rapid.IntRange(1, 6).Draw(w.t, "steps") {
		w.now = w.now.Add(time.Duration(rapid.IntRange(0, 700).Draw(w.t, "ms")) * time.Millisecond)
		if r := w.reader; r.follow.tail != nil {
			r.follow.tail.chunk = rapid.SampledFrom([]int{7, 300, readChunk}).Draw(w.t, "chunk")
		}
		if _, err := w.reader.step(w.t.Context(), w.now); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) kill() {
	w.reader.follow.close()
	w.start()
}

// Whatever happens to the file and to its reader, and in which order: each event
// that was written is taken, under one identifier.
func TestModel(t *testing.T) {
	parent := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp(parent, "")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		w := &world{t: t, f: folder{dir}, s: session(1), sink: newSink(), now: time.Now()}
		w.start()
		defer func() { w.reader.follow.close() }()
		var did []string
		for range rapid.IntRange(1, 40).Draw(t, "acts") {
			act := rapid.SampledFrom([]string{
				"write", "write", "write", "read", "read", "read", "kill", "rename", "late", "copy", "keep", "compress", "busy", "free",
			}).Draw(t, "act")
			did = append(did, act)
			switch act {
			case "write":
				w.write()
			case "read":
				w.read()
			case "kill":
				w.kill()
			case "rename":
				w.rename()
			case "late":
				w.late()
			case "copy":
				w.copyTruncate()
			case "keep":
				w.keep()
			case "compress":
				w.compress()
			case "busy", "free":
				w.sink.setBusy(act == "busy")
			}
		}
		w.whole()
		w.sink.setBusy(false)
		for rest := 0; rest < 4; {
			w.now = w.now.Add(2 * time.Second)
			wait, err := w.reader.step(t.Context(), w.now)
			if err != nil {
				t.Fatal(err)
			}
			if rest++; wait == 0 {
				rest = 0
			}
		}
		numbers := map[string]int{}
		for _, x := range w.sink.findings {
			numbers[flowOf(x.Document)]++
		}
		for n := 1; n <= w.written; n++ {
			if numbers[fmt.Sprint(n)] != 1 {
				t.Fatalf("event %d of %d has %d identifiers after %s: %+v", n, w.written, numbers[fmt.Sprint(n)], strings.Join(did, ", "), w.reader.Stats())
			}
		}
		// A copy that somebody made in between may end within a line; and what was read of
		// a first line that is truncated away counts, though the copy has it whole.
		whole := !slices.Contains(did, "keep") && !slices.Contains(did, "copy")
		if st := w.reader.Stats(); st.Broken > 0 || st.Torn > 0 && whole || len(numbers) != w.written {
			t.Fatalf("%d events were taken, %d written: %+v", len(numbers), w.written, st)
		}
	})
}
