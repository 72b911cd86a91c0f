package eve

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
)

// readerProcess reads until it is killed. It writes down what it hands over: the
// identifier and the number of the event.
func readerProcess(dir string) error {
	f := folder{dir}
	out, err := os.OpenFile(f.path("taken"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	cfg := f.config(roster{}, nil)
	cfg.Settle = 3 * time.Millisecond
	cfg.Deliver = func(_ context.Context, list []*deception.Finding) error {
		var b strings.Builder
		b.WriteByte('\n') // a process that is killed may leave half a line
		for _, x := range list {
			fmt.Fprintf(&b, "%s %s.\n", x.ID, flowOf(x.Document))
		}
		_, err := out.WriteString(b.String())
		return err
	}
	New(cfg)
	fmt.Println("reading")
	select {}
}

// flowOf returns the number of the flow in a document, as it is written.
func flowOf(doc []byte) string {
	_, rest, _ := strings.Cut(string(doc), `"flow_id":`)
	number, _, _ := strings.Cut(rest, ",")
	return number
}

// A reader that is killed again and again while the file grows, is rotated, and is
// copied and truncated, hands every event over, each under one identifier.
func TestKilledReader(t *testing.T) {
	f := newFolder(t)
	s := session(1)
	written, rotated := 0, 0
	random := rand.New(rand.NewPCG(1, 2))
	for range 12 {
		cmd := child(t, "reader", f.dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if !bufio.NewScanner(out).Scan() {
			t.Fatal("the reader does not start")
		}
		for range 1 + random.IntN(6) {
			var b strings.Builder
			for range 1 + random.IntN(400) {
				written++
				b.WriteString(record(&s, "ssh", written, false, "packet", "") + "\n")
			}
			// A write of half a line, and later the other half.
			text := b.String()
			at := random.IntN(len(text))
			f.write(t, "eve.json", text[:at])
			time.Sleep(time.Duration(random.IntN(15)) * time.Millisecond)
			f.write(t, "eve.json", text[at:])
			switch random.IntN(4) {
			case 0:
				rotated++
				rename(t, f.path("eve.json"), f.path(fmt.Sprintf("eve.json.%d", rotated)))
			case 1:
				rotated++
				copyTruncate(t, f.path("eve.json"), f.path(fmt.Sprintf("eve.json.%d", rotated)))
			}
			time.Sleep(time.Duration(random.IntN(40)) * time.Millisecond)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
	}
	k := newSink()
	r := New(f.config(roster{}, k))
	defer r.Close()
	last := fmt.Sprint(written)
	eventually(t, "the last event taken", func() bool {
		for _, x := range k.all() {
			if flowOf(x.Document) == last {
				return true
			}
		}
		return strings.Contains(read(t, f.path("taken")), " "+last+".\n")
	})
	taken := map[string]string{} // identifier to number
	for line := range strings.Lines(read(t, f.path("taken"))) {
		id, number, _ := strings.Cut(line, " ")
		number, whole := strings.CutSuffix(number, ".\n")
		if !whole {
			continue
		}
		if taken[id] != "" && taken[id] != number {
			t.Fatalf("%q, had %q", line, taken[id])
		}
		taken[id] = number
	}
	for _, x := range k.all() {
		taken[x.ID.String()] = flowOf(x.Document)
	}
	numbers := map[string][]string{}
	for id, number := range taken {
		numbers[number] = append(numbers[number], id)
	}
	for n := 1; n <= written; n++ {
		if ids := numbers[fmt.Sprint(n)]; len(ids) != 1 {
			t.Errorf("event %d has identifiers %s", n, ids)
		}
	}
	if len(numbers) != written {
		t.Errorf("%d events, %d were written", len(numbers), written)
	}
	t.Logf("%d events, %d rotations; the last reader: %+v", written, rotated, r.Stats())
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func rename(t testing.TB, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

// copyTruncate does what logrotate does where it is told to.
func copyTruncate(t testing.TB, from, to string) {
	t.Helper()
	if err := os.WriteFile(to, []byte(read(t, from)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(from, 0); err != nil {
		t.Fatal(err)
	}
}
