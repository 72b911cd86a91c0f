package spool

import (
	"bufio"
	"fmt"
	"strconv"
	"testing"
	"time"
)

// writerProcess puts records until it is killed. It prints the number of those
// of which it knows that they are in the file, and of those that it acknowledged.
func writerProcess(dir string) error {
	s, err := Open(Config{Dir: dir, MaxBytes: 64 << 20})
	if err != nil {
		return err
	}
	for n := 0; ; {
		for range 300 {
			s.Put(record(n, 8+n%400))
			n++
		}
		for s.Stats().Queued > 0 {
			time.Sleep(100 * time.Microsecond)
		}
		fmt.Println(n)
	}
}

// A process that is killed in the midst of writing has lost nothing that it knew
// to be written, and what came after that is there without a gap.
func TestKilledProcess(t *testing.T) {
	for round := range 3 {
		dir := t.TempDir()
		cmd := child(t, "writer", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		flushed, killed := 0, false
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if flushed, err = strconv.Atoi(lines.Text()); err != nil {
				t.Fatal(err)
			}
			if flushed >= 5000*(round+1) && !killed {
				killed = true
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := cmd.Wait(); err == nil || !killed {
			t.Fatalf("the writer ended by itself after %d records", flushed)
		}
		s := open(t, Config{Dir: dir, MaxBytes: 64 << 20})
		got := take(t, s, 1000)
		if len(got) < flushed {
			t.Errorf("%d records, %d were written", len(got), flushed)
		}
		for i, n := range got {
			if n != i {
				t.Fatalf("record %d at place %d", n, i)
			}
		}
		if st := s.Stats(); st.Full+st.Lost != 0 || st.Damaged > 1 {
			t.Errorf("stats %+v", st)
		}
	}
}
