// Package controller is the role that says what every node is to be. It keeps the
// document, gives each node its part of it as whole snapshots, makes machines nodes
// and cuts nodes off, commits what they record, and answers people and scripts, all
// on one TLS port.
//
// What it knows is in the registry (internal/registry) and the store; the process
// itself holds nothing that would be missed. So any number of controllers run on one
// PostgreSQL database, and a node may call any of them.
//
// The pieces, in the order in which a call meets them: serve.go (port and HTTP),
// access.go (who calls, and may they), enrol.go, node.go and admin.go (the three
// services of internal/rpc/decoynet.proto), plan.go (document and nodes -> snapshots,
// pure), hub.go (the present plan and who waits for the next one), presence.go (who
// is heard of). local.go is the way of the node that runs in the same process.
package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net/url"
	"slices"
	"sync"
	"time"

	"decoynet/config"
	"decoynet/deception"
	"decoynet/internal/pki"
	"decoynet/internal/registry"
	"decoynet/internal/rpc"
	"decoynet/internal/store"
)

// Store is where records are kept; *store.Recorder is one.
type Store interface {
	// Commit returns when the batch is on disk. The same records again are no error.
	// It returns store.ErrRecord where trying again is of no use.
	Commit(ctx context.Context, b store.Batch) error
	// Event records an event. It never waits.
	Event(e *deception.Event)
	// Lost ends the sessions that the node delivered (Batch.Node) as running, and
	// that began before the time.
	Lost(ctx context.Context, node string, before time.Time) error
}

// Reader is where records are read; *store.Reader is one.
type Reader interface {
	Sessions(ctx context.Context, f store.Filter) iter.Seq2[deception.Session, error]
	Watch(ctx context.Context, f store.Filter) iter.Seq2[deception.Session, error]
	Events(ctx context.Context, f store.EventFilter) iter.Seq2[deception.Event, error]
	WatchEvents(ctx context.Context, f store.EventFilter) iter.Seq2[deception.Event, error]
	Probes(ctx context.Context, f store.ProbeFilter) iter.Seq2[deception.Probe, error]
	WatchProbes(ctx context.Context, f store.ProbeFilter) iter.Seq2[deception.Probe, error]
	Findings(ctx context.Context, f store.FindingFilter) iter.Seq2[deception.Finding, error]
	WatchFindings(ctx context.Context, f store.FindingFilter) iter.Seq2[deception.Finding, error]
}

// Config is what a controller works with. Registry, Store and URLs are required.
type Config struct {
	Registry *registry.Registry
	Store    Store
	Reader   Reader // nil: sessions, events, probes and findings cannot be listed
	// Packets gives the packets of sessions that this machine keeps; nil where it keeps
	// none.
	Packets rpc.Packets
	// Data is the data directory, where the first API user's token is written for
	// the commands on this machine; empty where that is not wanted.
	Data    string
	Version string // of this program
	// URLs are where nodes and people reach this controller, best first, as
	// https://hq.example.com:7443.
	URLs []string
	// CertificateTTL is what node certificates last; 0 for pki.NodeLifetime.
	CertificateTTL time.Duration
	Log            *slog.Logger // nil: slog.Default
}

// timing holds the intervals that tests shorten.
type timing struct {
	heartbeat time.Duration // of Watch
	lostAfter time.Duration // without a sign of life a node counts as lost
	grace     time.Duration // after the start, in which nobody is declared lost
	flush     time.Duration // arrivals and changed reports go to the registry
	seenFlush time.Duration // signs of life do
	sweep     time.Duration // silent nodes are looked for
	recheck   time.Duration // a stream's user is looked up again
	announce  time.Duration // URLs are announced again, old entries pruned
	settle    time.Duration // changes are gathered before a plan is made
	packets   time.Duration // a node that was asked for packets has to say something
	// A peer that is gone without a word is noticed after the two together.
	ping, pong time.Duration
}

var usualTiming = timing{
	heartbeat: 5 * time.Second,
	lostAfter: 15 * time.Second,
	grace:     20 * time.Second,
	flush:     200 * time.Millisecond,
	seenFlush: 3 * time.Second,
	sweep:     time.Second,
	recheck:   5 * time.Second,
	announce:  time.Hour,
	settle:    10 * time.Millisecond,
	packets:   20 * time.Second,
	ping:      10 * time.Second,
	pong:      5 * time.Second,
}

// Controller is a running controller. Its methods may be called from any goroutine.
type Controller struct {
	cfg      Config
	log      *slog.Logger
	ca       *pki.CA
	timing   timing
	hub      *hub
	presence *presence
	refusals *limiter
	wishes   wishes

	// ctx is done when the controller closes; streams end with it.
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu    sync.Mutex // guards local
	local map[string]*pki.Identity
}

// New starts a controller: it makes the certificate authority where the registry has
// none and the first API user where there is none, and begins to look after nodes
// (in this process, too, before Serve is called). Close ends it.
func New(cfg Config) (*Controller, error) { return start(cfg, usualTiming) }

func start(cfg Config, t timing) (*Controller, error) {
	if err := checkURLs(cfg.URLs); err != nil {
		return nil, err
	}
	c := &Controller{
		cfg: cfg, log: cmp.Or(cfg.Log, slog.Default()), timing: t,
		refusals: newLimiter(refusalBurst, refusalEvery),
		local:    make(map[string]*pki.Identity),
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.hub = newHub(cfg.Registry, cfg.Version, c.log)
	c.presence = newPresence()
	ctx, cancel := context.WithTimeout(c.ctx, databaseTimeout)
	defer cancel()
	if err := c.prepare(ctx); err != nil {
		c.cancel()
		return nil, fmt.Errorf("start the controller: %w", err)
	}
	c.work.Go(func() { c.hub.follow(c.ctx, t.settle) })
	c.work.Go(c.flushLoop)
	c.work.Go(c.sweepLoop)
	c.work.Go(c.housekeeping)
	return c, nil
}

// databaseTimeout bounds one errand to the registry or the store.
const databaseTimeout = 20 * time.Second

func (c *Controller) prepare(ctx context.Context) error {
	cert, key, err := c.cfg.Registry.Authority(ctx, func() (cert, key []byte, err error) {
		ca, err := pki.NewCA()
		if err != nil {
			return nil, nil, err
		}
		return ca.PEM()
	})
	if err != nil {
		return err
	}
	if c.ca, err = pki.LoadCA(cert, key); err != nil {
		return err
	}
	if err := c.cfg.Registry.Announce(ctx, c.cfg.URLs, time.Now()); err != nil {
		return err
	}
	if err := c.firstUser(ctx); err != nil {
		return err
	}
	return c.hub.refresh(ctx)
}

func checkURLs(urls []string) error {
	if len(urls) == 0 {
		return errors.New("start the controller: no URL is given under which nodes reach it; as https://hq.example.com:7443")
	}
	for _, s := range urls {
		u, err := url.Parse(s)
		if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Path != "" || u.RawQuery != "" || u.User != nil {
			return fmt.Errorf("start the controller: bad URL %q; as https://hq.example.com:7443", s)
		}
	}
	return nil
}

// Close ends every stream and what goes on in the background. The registry and the
// store stay open.
func (c *Controller) Close() error {
	c.cancel()
	c.work.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
	defer cancel()
	return c.flush(ctx, time.Now(), true)
}

// Pin returns the fingerprint of the certificate authority, as machines that join
// have to know it.
func (c *Controller) Pin() string { return c.ca.Pin() }

// housekeeping repeats what has to be said now and then.
func (c *Controller) housekeeping() {
	tick := time.NewTicker(c.timing.announce)
	defer tick.Stop()
	for {
		c.attempt("renew the local node's certificate", c.renewLocal)
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
		}
		c.attempt("announce the controller's URLs", func(ctx context.Context) error {
			return c.cfg.Registry.Announce(ctx, c.cfg.URLs, time.Now())
		})
		c.attempt("prune the registry", func(ctx context.Context) error {
			return c.cfg.Registry.Prune(ctx, time.Now())
		})
		c.refusals.forget(time.Now())
	}
}

// attempt does something that is tried again later where it fails.
func (c *Controller) attempt(what string, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(c.ctx, databaseTimeout)
	defer cancel()
	if err := do(ctx); err != nil && c.ctx.Err() == nil {
		c.log.Warn(what, "err", err)
	}
}

// event records something that happened to the deception network.
func (c *Controller) event(e deception.Event) {
	e.Time = time.Now()
	e.ID = deception.NewSessionID(e.Time)
	c.cfg.Store.Event(&e)
}

// urls returns every controller's URLs, this one's own first.
func (c *Controller) urls() []string {
	out := slices.Clone(c.cfg.URLs)
	for _, u := range c.hub.present().urls {
		if !slices.Contains(out, u) {
			out = append(out, u)
		}
	}
	return out
}

// parse reads a document as if it were a file of that name.
func parse(name string, source []byte) (*config.Document, error) {
	return config.Parse(cmp.Or(name, "document"), source)
}
