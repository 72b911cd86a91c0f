package registry

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"decoynet/internal/pgtest"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Main(m)) }

var by = Entry{Actor: "ada", Role: "admin", Method: "AdminService/Test", Peer: "192.0.2.1:5"}

// onBoth runs a test over an SQLite file and over a PostgreSQL database.
func onBoth(t *testing.T, test func(t *testing.T, location string)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { test(t, filepath.Join(t.TempDir(), FileName)) })
	t.Run("postgres", func(t *testing.T) { test(t, pgtest.Database(t)) })
}

func withRegistry(t *testing.T, test func(t *testing.T, ctx context.Context, r *Registry)) {
	t.Helper()
	onBoth(t, func(t *testing.T, location string) { test(t, within(t), open(t, location)) })
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func open(t testing.TB, location string) *Registry {
	t.Helper()
	r, err := Open(within(t), location)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func enrol(t testing.TB, r *Registry, node string) uint32 {
	t.Helper()
	generation, err := r.EnrolLocal(within(t), node, func(uint32) error { return nil }, by)
	if err != nil {
		t.Fatal(err)
	}
	return generation
}

// node reads one node back.
func node(t testing.TB, r *Registry, name string) Node {
	t.Helper()
	nodes, err := r.Nodes(within(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		if n.Name == name {
			return n
		}
	}
	t.Fatalf("no node %s in %+v", name, nodes)
	return Node{}
}
