package carrier

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"decoynet/bench/load"
	"decoynet/bench/subject"
	"decoynet/internal/pki"
)

// Load is what a client does.
type Load string

// The loads.
const (
	Open  Load = "open"  // open, request, answer, end; over and over
	Stall Load = "stall" // the same beside a flow whose data nobody reads
	Down  Load = "down"  // the server sends
	Up    Load = "up"    // the client sends
	Idle  Load = "idle"  // flows that nobody speaks on
)

// Spec describes one load. It travels to the process that makes it as JSON.
type Spec struct {
	Carrier  string
	Address  string // of the server, host:port
	Identity string // folder
	Server   int    // process, for what it uses
	Load     Load
	Parallel int
	// Skip is not measured: connections find their pace in it, counted from when
	// every one of the Parallel has done its first flow. The Duration is.
	Skip, Duration time.Duration
}

// Result is what a load measured. What is used counts both ends.
type Result struct {
	Elapsed  time.Duration
	Flows    uint64 // done
	P50, P99 time.Duration
	Bytes    uint64 // that arrived
	CPU      time.Duration
	RSS      int64 // bytes that idle flows added
}

// PerSecond returns the flows per second.
func (r *Result) PerSecond() float64 { return float64(r.Flows) / r.Elapsed.Seconds() }

// GbitPerSecond returns the payload's rate.
func (r *Result) GbitPerSecond() float64 { return float64(r.Bytes) * 8 / 1e9 / r.Elapsed.Seconds() }

// stallFor is how long the unread flow gets to fill what it can fill.
const stallFor = 300 * time.Millisecond

// ErrStalled is returned by Run if a flow that nobody read for a while was lost.
var ErrStalled = errors.New("the stalled flow did not survive")

// runner is one load in progress.
type runner struct {
	Spec
	client Client
	work   sync.WaitGroup
	stop   atomic.Bool

	mu   sync.Mutex // guards hist and err
	hist load.Histogram
	err  error

	held         []Flow
	flows, bytes atomic.Uint64
	going        atomic.Int64 // workers that have done a flow
	timing       atomic.Bool  // durations count
}

// Run makes the load.
func Run(ctx context.Context, spec Spec) (Result, error) {
	kind, err := Find(spec.Carrier)
	if err != nil {
		return Result{}, err
	}
	id, err := pki.LoadIdentity(spec.Identity)
	if err != nil {
		return Result{}, err
	}
	client, err := kind.Dial(spec.Address, id)
	if err != nil {
		return Result{}, fmt.Errorf("connect by %s: %w", spec.Carrier, err)
	}
	defer client.Close()
	r := &runner{Spec: spec, client: client}
	switch spec.Load {
	case Open:
		return r.window(ctx, r.exchanges)
	case Stall:
		return r.stalled(ctx)
	case Down:
		return r.window(ctx, r.receive)
	case Up:
		return r.window(ctx, r.send)
	case Idle:
		return r.idle()
	}
	return Result{}, fmt.Errorf("unknown load %q", spec.Load)
}

func header(job byte) []byte {
	h := make([]byte, HeaderSize)
	h[0] = job
	return h
}

// window starts the workers and measures what they do while it is open.
func (r *runner) window(ctx context.Context, worker func() error) (Result, error) {
	for range r.Parallel {
		r.work.Go(func() {
			if err := worker(); err != nil && !r.stop.Load() {
				r.fail(err)
			}
		})
	}
	r.awaitAll(ctx)
	wait(ctx, r.Skip)
	used, err := r.cpu()
	if err != nil {
		return Result{}, err
	}
	r.timing.Store(true)
	start, flows, bytes := time.Now(), r.flows.Load(), r.bytes.Load()
	wait(ctx, r.Duration)
	out := Result{Elapsed: time.Since(start), Flows: r.flows.Load() - flows, Bytes: r.bytes.Load() - bytes}
	r.timing.Store(false)
	after, err := r.cpu()
	r.stop.Store(true)
	if r.Load == Open || r.Load == Stall {
		r.work.Wait() // what streams ends with the client
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	out.CPU = after - used
	out.P50, out.P99 = r.hist.Quantile(0.5), r.hist.Quantile(0.99)
	return out, errors.Join(err, r.err, ctx.Err())
}

// awaitAll waits, within bounds, until every worker has done a flow; those of
// streams do none.
func (r *runner) awaitAll(ctx context.Context) {
	if r.Load == Down || r.Load == Up {
		return
	}
	for deadline := time.Now().Add(openWithin); r.going.Load() < int64(r.Parallel) && time.Now().Before(deadline); {
		wait(ctx, time.Millisecond)
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (r *runner) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = fmt.Errorf("%s: %w", r.Load, err)
	}
}

// cpu is what both ends have used.
func (r *runner) cpu() (sum time.Duration, err error) {
	for _, pid := range []int{os.Getpid(), r.Server} {
		u, err := subject.UsageOf(pid)
		if err != nil {
			return 0, err
		}
		sum += u.User + u.System
	}
	return sum, nil
}

// exchanges is the worker of Open.
func (r *runner) exchanges() error {
	for first := true; !r.stop.Load(); first = false {
		start := time.Now()
		took, err := r.once(start)
		if err != nil {
			return err
		}
		r.flows.Add(1)
		if first {
			r.going.Add(1)
		}
		if r.timing.Load() {
			r.mu.Lock()
			r.hist.Record(took)
			r.mu.Unlock()
		}
	}
	return nil
}

func (r *runner) once(start time.Time) (answered time.Duration, err error) {
	f, err := r.client.Open(header(jobAnswer))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [exchange]byte
	if _, err := f.Write(b[:]); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(f, b[:]); err != nil {
		return 0, err
	}
	answered = time.Since(start)
	if err := f.CloseWrite(); err != nil {
		return 0, err
	}
	if n, err := f.Read(b[:]); err != io.EOF {
		return 0, fmt.Errorf("the answer did not end: %d bytes more, %w", n, err)
	}
	return answered, nil
}

// stalled is Open beside a flow that the server fills and nobody reads.
func (r *runner) stalled(ctx context.Context) (Result, error) {
	f, err := r.client.Open(header(jobSource))
	if err != nil {
		return Result{}, err
	}
	wait(ctx, stallFor)
	out, err := r.window(ctx, r.exchanges)
	if err != nil {
		return out, err
	}
	for range 16 {
		if _, err := io.ReadFull(f, make([]byte, chunk)); err != nil {
			return out, fmt.Errorf("%w: %w", ErrStalled, err)
		}
	}
	return out, nil
}

// receive is the worker of Down.
func (r *runner) receive() error {
	f, err := r.client.Open(header(jobSource))
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, chunk)
	for !r.stop.Load() {
		n, err := f.Read(b)
		r.bytes.Add(uint64(n))
		if err != nil {
			return err
		}
	}
	return nil
}

// send is the worker of Up. What the server says it has got counts.
func (r *runner) send() error {
	f, err := r.client.Open(header(jobSink))
	if err != nil {
		return err
	}
	defer f.Close()
	r.work.Go(func() {
		var b [1]byte
		for {
			if _, err := io.ReadFull(f, b[:]); err != nil {
				return // the writer says why
			}
			r.bytes.Add(receipt)
		}
	})
	for !r.stop.Load() {
		if _, err := f.Write(zeros[:]); err != nil {
			return err
		}
	}
	return nil
}

// idle opens flows, and says what they add to the memory of both ends.
func (r *runner) idle() (Result, error) {
	if err := r.hold(1); err != nil { // what any flow costs once
		return Result{}, err
	}
	before, err := r.rss()
	if err != nil {
		return Result{}, err
	}
	start := time.Now()
	if err := r.hold(r.Parallel); err != nil {
		return Result{}, err
	}
	elapsed := time.Since(start)
	after, err := r.rss()
	return Result{Elapsed: elapsed, Flows: uint64(r.Parallel), RSS: after - before}, err
}

// hold opens flows that stay, and returns when the server has all of them.
func (r *runner) hold(count int) error {
	for range count {
		f, err := r.client.Open(header(jobHold))
		if err != nil {
			return err
		}
		var b [1]byte
		if _, err := io.ReadFull(f, b[:]); err != nil {
			return err
		}
		r.held = append(r.held, f)
	}
	return nil
}

// rss is what both ends hold, after they gave back what they could.
func (r *runner) rss() (sum int64, err error) {
	f, err := r.client.Open(header(jobSettle))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [1]byte
	if _, err := io.ReadFull(f, b[:]); err != nil {
		return 0, err
	}
	debug.FreeOSMemory()
	for _, pid := range []int{os.Getpid(), r.Server} {
		u, err := subject.UsageOf(pid)
		if err != nil {
			return 0, err
		}
		sum += int64(u.RSS)
	}
	return sum, nil
}
