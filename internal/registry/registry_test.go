package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"decoynet/internal/pgtest"

	"github.com/google/go-cmp/cmp"
)

func TestDocuments(t *testing.T) {
	withRegistry(t, func(t *testing.T, ctx context.Context, r *Registry) {
		if _, err := r.Document(ctx); !errors.Is(err, ErrNoDocument) {
			t.Errorf("without a document: %v", err)
		}
		if rev, err := r.Revision(ctx); rev != "" || err != nil {
			t.Errorf("without a document: revision %q, %v", rev, err)
		}
		if _, err := r.Apply(ctx, Document{Name: "a.yaml", Source: []byte("a: 1\n"), Machine: "hq"}, "7-abc", by); !errors.Is(err, ErrRevision) {
			t.Errorf("applied over no document, expecting one: %v", err)
		}
		first, err := r.Apply(ctx, Document{Name: "a.yaml", Source: []byte("a: 1\n"), Machine: "hq"}, "", by)
		if err != nil {
			t.Fatal(err)
		}
		again, err := r.Apply(ctx, Document{Name: "b.yaml", Source: []byte("a: 1\n"), Machine: "hq"}, first.Revision, by)
		if err != nil || again.Revision != first.Revision || again.Name != "a.yaml" {
			t.Errorf("the same document again: %+v, %v", again, err)
		}
		second, err := r.Apply(ctx, Document{Name: "b.yaml", Source: []byte("a: 2\x00\xff\n"), Machine: "hq"}, first.Revision, by)
		if err != nil || second.Revision == first.Revision {
			t.Fatalf("another document: %+v, %v", second, err)
		}
		if _, err := r.Apply(ctx, Document{Name: "c.yaml", Source: []byte("a: 3\n"), Machine: "hq"}, first.Revision, by); !errors.Is(err, ErrRevision) || !strings.Contains(err.Error(), second.Revision) {
			t.Errorf("over a revision that is past: %v", err)
		}
		back, err := r.Apply(ctx, Document{Name: "a.yaml", Source: []byte("a: 1\n"), Machine: "hq"}, "", by)
		if err != nil || back.Revision == first.Revision {
			t.Errorf("back to the first text: %+v, %v", back, err)
		}
		got, err := r.Document(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(back, got, cmp.Comparer(time.Time.Equal)); diff != "" || got.AppliedBy != "ada" {
			t.Errorf("document (-want +got):\n%s", diff)
		}
		if rev, err := r.Revision(ctx); rev != back.Revision || err != nil {
			t.Errorf("revision %q, %v", rev, err)
		}
		if last, err := r.LastOf(ctx, "ada", "b.yaml"); string(last) != "a: 2\x00\xff\n" || err != nil {
			t.Errorf("last b.yaml: %q, %v", last, err)
		}
		if _, err := r.LastOf(ctx, "eve", "b.yaml"); !errors.Is(err, ErrNoDocument) {
			t.Errorf("last b.yaml of eve: %v", err)
		}
		// What was refused left no entry, what was applied one each.
		entries, err := r.ListAudit(ctx, time.Time{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		var objects []string
		for _, e := range entries {
			objects = append(objects, e.Object+e.Detail)
		}
		want := []string{first.Revision, first.Revision + "no change", second.Revision, back.Revision}
		if diff := cmp.Diff(want, objects); diff != "" {
			t.Errorf("audit (-want +got):\n%s", diff)
		}
	})
}

func TestOldDocumentsAreForgotten(t *testing.T) {
	withRegistry(t, func(t *testing.T, ctx context.Context, r *Registry) {
		for i := range documentsKept + 5 {
			if _, err := r.Apply(ctx, Document{Name: "a", Source: fmt.Append(nil, i), Machine: "hq"}, "", by); err != nil {
				t.Fatal(err)
			}
		}
		var n int
		if err := r.db.QueryRowContext(ctx, "SELECT count(*) FROM controller_document").Scan(&n); err != nil || n != documentsKept {
			t.Errorf("%d documents kept, %v", n, err)
		}
	})
}

func TestUsers(t *testing.T) {
	withRegistry(t, func(t *testing.T, ctx context.Context, r *Registry) {
		admin, viewer := NewSecret(UserSecret), NewSecret(UserSecret)
		for name, u := range map[string]struct {
			secret Secret
			role   string
		}{"ada": {admin, RoleAdmin}, "vera": {viewer, "viewer"}} {
			if err := r.CreateUser(ctx, name, u.role, u.secret, by); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.CreateUser(ctx, "ada", RoleAdmin, NewSecret(UserSecret), by); !errors.Is(err, ErrUserExists) {
			t.Errorf("a second ada: %v", err)
		}
		shown, err := ParseSecret(UserSecret, viewer.Text)
		if err != nil {
			t.Fatal(err)
		}
		u, err := r.UserOf(ctx, shown)
		if err != nil || u.Name != "vera" || u.Role != "viewer" || u.LastUsed.IsZero() {
			t.Errorf("user of a token: %+v, %v", u, err)
		}
		forged := viewer
		forged.Hash = NewSecret(UserSecret).Hash
		for what, s := range map[string]Secret{"a forged": forged, "an unknown": NewSecret(UserSecret)} {
			if u, err := r.UserOf(ctx, s); !errors.Is(err, ErrNoUser) {
				t.Errorf("%s token is %+v's, %v", what, u, err)
			}
		}
		if err := r.DeleteUser(ctx, "ada", by); !errors.Is(err, ErrLastAdmin) {
			t.Errorf("delete the last admin: %v", err)
		}
		if _, err := r.UserOf(ctx, admin); err != nil {
			t.Errorf("the last admin after the refusal: %v", err)
		}
		if err := r.DeleteUser(ctx, "vera", by); err != nil {
			t.Error(err)
		}
		if _, err := r.UserOf(ctx, viewer); !errors.Is(err, ErrNoUser) {
			t.Errorf("a deleted user: %v", err)
		}
		if err := r.DeleteUser(ctx, "vera", by); !errors.Is(err, ErrNoUser) {
			t.Errorf("delete twice: %v", err)
		}
		replaced := NewSecret(UserSecret)
		if err := r.ReplaceUser(ctx, "ada", RoleAdmin, replaced, by); err != nil {
			t.Fatal(err)
		}
		if _, err := r.UserOf(ctx, admin); !errors.Is(err, ErrNoUser) {
			t.Errorf("the replaced token: %v", err)
		}
		if users, err := r.Users(ctx); err != nil || len(users) != 1 || users[0].Name != "ada" || users[0].Created.IsZero() {
			t.Errorf("users %+v, %v", users, err)
		}
	})
}

func TestSecrets(t *testing.T) {
	s := NewSecret(JoinSecret)
	got, err := ParseSecret(JoinSecret, s.Text)
	if err != nil || got != s {
		t.Errorf("%+v read back as %+v, %v", s, got, err)
	}
	for _, text := range []string{
		"", "dcn", "dcn__", strings.Replace(s.Text, "dcn", "dcu", 1), s.Text + "a", s.Text[:len(s.Text)-1],
		s.Text + "_", "dcn_zzzzzzzzzzzz_" + s.Text[17:], s.ID,
	} {
		if _, err := ParseSecret(JoinSecret, text); !errors.Is(err, ErrSecret) {
			t.Errorf("ParseSecret(%q): %v", text, err)
		}
	}
}

func TestAudit(t *testing.T) {
	withRegistry(t, func(t *testing.T, ctx context.Context, r *Registry) {
		now := time.Now()
		for i := range 5 {
			e := by
			e.Time, e.Result, e.Object = now.Add(time.Duration(i-10)*time.Hour), ResultDenied, fmt.Sprint("o", i)
			e.Detail = "NUL \x00, bad \xff and long" + strings.Repeat("x", 2*entryText)
			if err := r.Audit(ctx, e); err != nil {
				t.Fatal(err)
			}
		}
		objects := func(since time.Time, limit int) (out string) {
			entries, err := r.ListAudit(ctx, since, limit)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				out += e.Object
				if len(e.Detail) > entryText+10 || e.Result != ResultDenied || e.Peer != by.Peer {
					t.Errorf("entry %.200v", e)
				}
			}
			return out
		}
		if got := objects(time.Time{}, 2); got != "o3o4" {
			t.Errorf("the newest two: %s", got)
		}
		if got := objects(now.Add(-9*time.Hour), 0); got != "o1o2o3o4" {
			t.Errorf("since: %s", got)
		}
		if err := r.Prune(ctx, now.Add(auditAge-8*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if got := objects(time.Time{}, 0); got != "o2o3o4" {
			t.Errorf("after two years: %s", got)
		}
	})
}

func TestURLs(t *testing.T) {
	withRegistry(t, func(t *testing.T, ctx context.Context, r *Registry) {
		now := time.Now()
		announce := func(at time.Time, urls ...string) (changed bool) {
			t.Helper()
			before, err := r.Change(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Announce(ctx, urls, at); err != nil {
				t.Fatal(err)
			}
			after, err := r.Change(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return before != after
		}
		if !announce(now, "https://b:1", "https://a:1") {
			t.Error("nobody is told of new URLs")
		}
		if announce(now.Add(urlKept), "https://b:1") {
			t.Error("everybody is told that nothing is new")
		}
		if urls, err := r.URLs(ctx); err != nil || fmt.Sprint(urls) != "[https://a:1 https://b:1]" {
			t.Errorf("URLs %v, %v", urls, err)
		}
		if err := r.Prune(ctx, now.Add(urlKept+time.Hour)); err != nil {
			t.Fatal(err)
		}
		if urls, err := r.URLs(ctx); err != nil || fmt.Sprint(urls) != "[https://b:1]" {
			t.Errorf("URLs %v, %v", urls, err)
		}
	})
}

// Controllers that start at once on an empty database have one authority.
func TestOneAuthority(t *testing.T) {
	t.Run("postgres", func(t *testing.T) {
		location := pgtest.Database(t)
		var made atomic.Int32
		keys := make([]string, 4)
		var wg sync.WaitGroup
		for i := range keys {
			r := open(t, location)
			wg.Go(func() {
				_, key, err := r.Authority(within(t), func() ([]byte, []byte, error) {
					return []byte("certificate"), fmt.Append(nil, "key ", made.Add(1)), nil
				})
				if err != nil {
					t.Error(err)
				}
				keys[i] = string(key)
			})
		}
		wg.Wait()
		if diff := cmp.Diff([]string{"key 1", "key 1", "key 1", "key 1"}, keys); diff != "" {
			t.Errorf("keys (-want +got):\n%s", diff)
		}
	})
	withRegistry(t, func(t *testing.T, ctx context.Context, r *Registry) {
		if _, _, err := r.Authority(ctx, func() ([]byte, []byte, error) { return nil, nil, errors.New("no luck") }); err == nil {
			t.Error("an authority that could not be made was kept")
		}
		for _, key := range []string{"k", "other"} {
			c, k, err := r.Authority(ctx, func() ([]byte, []byte, error) { return []byte("c"), []byte(key), nil })
			if string(c) != "c" || string(k) != "k" || err != nil {
				t.Errorf("authority %s %s, %v", c, k, err)
			}
		}
	})
}

// Opening creates the schema once also where several do it at the same time, and
// what is there stays.
func TestOpenAtOnce(t *testing.T) {
	location := pgtest.Database(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			r, err := Open(within(t), location)
			if err != nil {
				t.Error(err)
				return
			}
			r.Close()
		})
	}
	wg.Wait()
	onBoth(t, func(t *testing.T, location string) {
		enrol(t, open(t, location), "crm-1")
		if n := node(t, open(t, location), "crm-1"); n.Generation != 1 {
			t.Errorf("after opening again: %+v", n)
		}
	})
}

func TestSchemaOfTheFuture(t *testing.T) {
	onBoth(t, func(t *testing.T, location string) {
		r := open(t, location)
		if _, err := r.db.Exec("INSERT INTO controller_schema (version_id, is_applied) VALUES (99, true)"); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(within(t), location); !errors.Is(err, ErrSchema) {
			t.Errorf("open a newer schema: %v", err)
		}
	})
}

// Each change of one controller wakes the other in half a second.
func TestWait(t *testing.T) {
	onBoth(t, func(t *testing.T, location string) {
		ctx := within(t)
		here := open(t, location)
		there := here
		if IsURL(location) {
			there = open(t, location)
		}
		seen, err := there.Change(ctx)
		if err != nil {
			t.Fatal(err)
		}
		woken := make(chan error, 1)
		go func() { woken <- there.Wait(ctx, seen) }()
		select {
		case err := <-woken:
			t.Fatalf("woken for nothing: %v", err)
		case <-time.After(2 * pollEvery):
		}
		changed := time.Now()
		enrol(t, here, "crm-1")
		if err := <-woken; err != nil {
			t.Fatal(err)
		}
		t.Logf("woken after %v", time.Since(changed))
		if err := there.Wait(ctx, seen); err != nil {
			t.Errorf("wait for what has passed: %v", err)
		}
		done, cancel := context.WithCancel(ctx)
		cancel()
		now, err := there.Change(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := there.Wait(done, now); !errors.Is(err, context.Canceled) {
			t.Errorf("wait without end: %v", err)
		}
	})
}

// A second witness: the file is its owner's, and holds no secret but the
// authority's key.
func TestWhatIsInTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), FileName)
	r := open(t, path)
	ctx := within(t)
	join, user := NewSecret(JoinSecret), NewSecret(UserSecret)
	if err := r.CreateToken(ctx, "crm-1", time.Now().Add(time.Hour), join, by); err != nil {
		t.Fatal(err)
	}
	if err := r.CreateUser(ctx, "ada", RoleAdmin, user, by); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{path, path + "-wal"} {
		info, err := os.Stat(name)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	out, err := exec.CommandContext(ctx, "sqlite3", "-readonly", path, ".dump").CombinedOutput()
	if err != nil {
		t.Fatalf("sqlite3: %v\n%s", err, out)
	}
	for _, s := range []Secret{join, user} {
		secret := s.Text[strings.LastIndex(s.Text, "_")+1:]
		if strings.Contains(string(out), secret) {
			t.Errorf("the secret of %s is in the file", s.Text)
		}
		if !strings.Contains(strings.ToLower(string(out)), fmt.Sprintf("x'%x'", s.Hash)) {
			t.Errorf("the hash of %s is not in the file:\n%s", s.Text, out)
		}
	}
}

func TestPasswordsAreNotShown(t *testing.T) {
	for _, location := range []string{
		"postgres://user:geheim@127.0.0.1:1/db?connect_timeout=1",
		"postgres://127.0.0.1:1/db?user=u&password=geheim&connect_timeout=1",
	} {
		_, err := Open(within(t), location)
		if err == nil || strings.Contains(err.Error(), "geheim") || !strings.Contains(err.Error(), "127.0.0.1") {
			t.Errorf("error %v", err)
		}
	}
}

// A transaction that fails leaves nothing, its number included.
func TestFailureChangesNothing(t *testing.T) {
	withRegistry(t, func(t *testing.T, ctx context.Context, r *Registry) {
		before, err := r.Change(ctx)
		if err != nil {
			t.Fatal(err)
		}
		refused := errors.New("no")
		if _, err := r.EnrolLocal(ctx, "crm-1", func(uint32) error { return refused }, by); !errors.Is(err, refused) {
			t.Errorf("enrol: %v", err)
		}
		after, err := r.Change(ctx)
		if err != nil || after != before {
			t.Errorf("change %d after %d, %v", after, before, err)
		}
		if nodes, err := r.Nodes(ctx); err != nil || len(nodes) != 0 {
			t.Errorf("nodes %+v, %v", nodes, err)
		}
		enrol(t, r, "crm-1") // no lock is left
	})
}
