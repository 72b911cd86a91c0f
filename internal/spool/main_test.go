package spool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The test binary becomes a process of another kind: a writer to be killed, a
// test in a mount namespace of its own.
const (
	roleVar = "DECOYNET_SPOOL_TEST_ROLE"
	dirVar  = "DECOYNET_SPOOL_TEST_DIR"
)

// roles are the other kinds of process.
var roles = map[string]func(dir string) error{"writer": writerProcess}

func TestMain(m *testing.M) {
	name := os.Getenv(roleVar)
	if name == "" {
		goleak.VerifyTestMain(m)
	}
	role, ok := roles[name]
	if !ok {
		fmt.Fprintln(os.Stderr, "unknown role", name)
		os.Exit(2)
	}
	if err := role(os.Getenv(dirVar)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// child starts the test binary as a process of another kind.
func child(t testing.TB, role, dir string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVar+"="+role, dirVar+"="+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

func open(t testing.TB, cfg Config) *Spool {
	t.Helper()
	s, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shut(t, s) })
	return s
}

func shut(t testing.TB, s *Spool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
}

// record makes the n-th record: its number and a filling that depends on it.
func record(n, size int) []byte {
	b := make([]byte, max(8, size))
	binary.BigEndian.PutUint64(b, uint64(n))
	for i := 8; i < len(b); i++ {
		b[i] = byte(n + i)
	}
	return b
}

// number returns which record it is, and an error where it is damaged.
func number(b []byte) (int, error) {
	if len(b) < 8 {
		return 0, fmt.Errorf("record of %d bytes", len(b))
	}
	n := int(binary.BigEndian.Uint64(b))
	if string(record(n, len(b))) != string(b) {
		return 0, fmt.Errorf("record %d is not as it was", n)
	}
	return n, nil
}

// kindOf is the kind of a record: one of four by its number, none known of every
// tenth.
func kindOf(b []byte) int {
	n, err := number(b)
	if err != nil || n%10 == 9 {
		return Kinds // none that there is
	}
	return 1 + n%4
}

// tally counts the kinds of the records from first up to end.
func tally(first, end int) (t Tally) {
	for n := first; n < end; n++ {
		if n%10 == 9 {
			t[0]++
		} else {
			t[1+n%4]++
		}
	}
	return t
}

// numbers returns which records they are.
func numbers(t testing.TB, records [][]byte) []int {
	t.Helper()
	var out []int
	for _, b := range records {
		n, err := number(b)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, n)
	}
	return out
}

// take reads and acknowledges what is there, at most so many records at a time.
func take(t testing.TB, s *Spool, batch int) []int {
	t.Helper()
	var out []int
	for s.Stats().Waiting > 0 {
		b := next(t, s, batch, 1<<20)
		out = append(out, numbers(t, b.Records)...)
		if err := s.Ack(b); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// next waits for a batch.
func next(t testing.TB, s *Spool, maxRecords, maxBytes int) Batch {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	b, err := s.Next(ctx, maxRecords, maxBytes)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// run returns the numbers from first to last.
func run(first, last int) []int {
	var out []int
	for n := first; n <= last; n++ {
		out = append(out, n)
	}
	return out
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if err := poll(what, ok); err != nil {
		t.Fatal(err)
	}
}

func poll(what string, ok func() bool) error {
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			return errors.New("after 20 s still not: " + what)
		}
	}
	return nil
}

func settled(t testing.TB, s *Spool) {
	t.Helper()
	eventually(t, "everything written", func() bool { return s.Stats().Queued == 0 })
}
