// Package pgtest gives tests a real PostgreSQL server: Debian's package, started
// by the test binary that needs it and gone with it. It listens on a unix socket
// only and is told not to wait for the disk.
package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// startTimeout bounds making and starting a server, on a loaded machine too.
const startTimeout = 90 * time.Second

// TestingM is what of a testing.M is needed, so that it can be wrapped.
type TestingM interface{ Run() int }

// Main returns an m that runs the tests and then stops the server, if a test
// asked for one. It goes into TestMain:
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(pgtest.Main(m)) }
func Main(m TestingM) TestingM { return runner{m} }

type runner struct{ m TestingM }

func (r runner) Run() int {
	code := r.m.Run()
	if err := shared.stop(); err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		code = max(code, 1)
	}
	return code
}

// Database returns the URL of an empty database of the test's own, on a server
// that all tests of the binary share. The database is dropped when the test ends,
// connections to it or not. The test fails where there is no PostgreSQL.
func Database(t testing.TB) string {
	t.Helper()
	if err := shared.start(); err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
	name := "t" + strconv.FormatUint(databases.Add(1), 10)
	if err := shared.execute("CREATE DATABASE " + name); err != nil {
		t.Fatalf("create a database: %v", err)
	}
	t.Cleanup(func() {
		if err := shared.execute("DROP DATABASE " + name + " WITH (FORCE)"); err != nil {
			t.Errorf("drop the database: %v", err)
		}
	})
	return shared.url(name)
}

// Restartable returns the URL of an empty database on a server of the test's own,
// what ends the server as an administrator does, and what starts it again.
func Restartable(t testing.TB) (address string, down, up func()) {
	t.Helper()
	s := &server{}
	if err := s.start(); err != nil {
		t.Fatalf("start PostgreSQL: %v", err)
	}
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	})
	if err := s.execute("CREATE DATABASE restartable"); err != nil {
		t.Fatalf("create a database: %v", err)
	}
	down = func() {
		t.Helper()
		s.kill <- syscall.SIGINT // "fast": connections are cut
		select {
		case <-s.gone:
		case <-time.After(startTimeout):
			t.Fatal("the server does not end")
		}
	}
	up = func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
		defer cancel()
		bin, err := programs()
		if err != nil {
			t.Fatal(err)
		}
		attr, err := s.owner()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.launch(ctx, bin, attr); err != nil {
			t.Fatalf("start PostgreSQL again: %v", err)
		}
	}
	return s.url("restartable"), down, up
}

var (
	shared    server
	databases atomic.Uint64
)

// server is one PostgreSQL server in a folder of its own.
type server struct {
	once sync.Once
	err  error  // of the start
	dir  string // holds data and socket
	log  lockedBuffer
	kill chan syscall.Signal // to the goroutine that owns the process
	gone chan struct{}       // closed when the process has ended
}

func (s *server) start() error {
	s.once.Do(func() { s.err = s.run() })
	return s.err
}

func (s *server) run() error {
	bin, err := programs()
	if err != nil {
		return err
	}
	// The path of a unix socket has 107 bytes at most; $TMPDIR may be long.
	if s.dir, err = os.MkdirTemp("/tmp", "pgtest"); err != nil {
		return err
	}
	attr, err := s.owner()
	if err != nil {
		return errors.Join(err, os.RemoveAll(s.dir))
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	data := filepath.Join(s.dir, "data")
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"),
		"-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync", "--no-instructions")
	initdb.Dir, initdb.SysProcAttr = s.dir, attr
	if out, err := initdb.CombinedOutput(); err != nil {
		return errors.Join(fmt.Errorf("initdb: %w\n%s", err, out), os.RemoveAll(s.dir))
	}
	return s.launch(ctx, bin, attr)
}

// launch starts the server in the folder that initdb made.
func (s *server) launch(ctx context.Context, bin string, attr *syscall.SysProcAttr) error {
	data := filepath.Join(s.dir, "data")
	postgres := exec.Command(filepath.Join(bin, "postgres"), "-D", data, "-k", s.dir,
		"-c", "listen_addresses=", "-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off",
		"-c", "shared_buffers=32MB", "-c", "max_connections=200", "-c", "autovacuum=off")
	postgres.Dir, postgres.SysProcAttr = s.dir, attr
	postgres.Stdout, postgres.Stderr = &s.log, &s.log
	s.kill, s.gone = make(chan syscall.Signal), make(chan struct{})
	started := make(chan error, 1)
	go s.own(postgres, started)
	if err := <-started; err != nil {
		return errors.Join(fmt.Errorf("start postgres: %w", err), os.RemoveAll(s.dir))
	}
	if err := s.wait(ctx); err != nil {
		return errors.Join(err, s.stop())
	}
	return nil
}

// own starts the process and waits for it, on one thread: the kernel ends the
// server with the thread that started it (PR_SET_PDEATHSIG), which is how nothing
// is left behind by a test binary that was killed.
func (s *server) own(cmd *exec.Cmd, started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(s.gone)
	err := cmd.Start()
	started <- err
	if err != nil {
		return
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	for {
		select {
		case sig := <-s.kill:
			_ = cmd.Process.Signal(sig)
		case <-ended:
			return
		}
	}
}

// wait returns when the server takes connections.
func (s *server) wait(ctx context.Context) error {
	for {
		err := s.execute("SELECT 1")
		if err == nil {
			return nil
		}
		select {
		case <-s.gone:
			return fmt.Errorf("the server ended:\n%s", s.log.String())
		case <-ctx.Done():
			return fmt.Errorf("no answer after %v: %w\n%s", startTimeout, err, s.log.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop ends the server, if it was started, and removes its folder.
func (s *server) stop() error {
	if s.kill == nil {
		return nil
	}
	// SIGQUIT is PostgreSQL's immediate shutdown; there is nothing to keep.
	for _, sig := range []syscall.Signal{syscall.SIGQUIT, syscall.SIGKILL} {
		select {
		case s.kill <- sig:
		case <-s.gone:
		}
		select {
		case <-s.gone:
			return os.RemoveAll(s.dir)
		case <-time.After(20 * time.Second):
		}
	}
	return errors.New("the server does not end")
}

func (s *server) url(database string) string {
	q := url.Values{"host": {s.dir}, "user": {"postgres"}}
	return (&url.URL{Scheme: "postgres", Path: "/" + database, RawQuery: q.Encode()}).String()
}

func (s *server) execute(statement string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, s.url("postgres"))
	if err != nil {
		return err
	}
	_, err = c.Exec(ctx, statement)
	return errors.Join(err, c.Close(ctx))
}

// programs returns the folder of the newest PostgreSQL that is installed.
func programs() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil {
		return "", err
	}
	if len(found) == 0 {
		if path, err := exec.LookPath("postgres"); err == nil {
			return filepath.Dir(path), nil
		}
		return "", fmt.Errorf("PostgreSQL is not installed (apt-get install postgresql): %w", fs.ErrNotExist)
	}
	slices.Sort(found)
	return filepath.Dir(found[len(found)-1]), nil
}

// owner returns how the server's processes are started: PostgreSQL refuses to
// run as root, so root starts them as the user that Debian's package makes.
func (s *server) owner() (*syscall.SysProcAttr, error) {
	if os.Geteuid() != 0 {
		return &syscall.SysProcAttr{Pdeathsig: syscall.SIGQUIT}, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, err
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, err
	}
	if err := os.Chown(s.dir, int(uid), int(gid)); err != nil {
		return nil, err
	}
	return &syscall.SysProcAttr{
		Pdeathsig:  syscall.SIGQUIT,
		Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)},
	}, nil
}

// lockedBuffer keeps what the server says.
type lockedBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.buf.Len() > 1<<20 {
		b.buf.Reset()
	}
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
