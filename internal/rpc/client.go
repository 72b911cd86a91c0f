package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"decoynet/internal/outbound"
	"decoynet/internal/pki"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/spool"

	"google.golang.org/protobuf/proto"
)

// ClientConfig is what a Client needs. All but Packets and Log must be given.
type ClientConfig struct {
	Identity *pki.Identity
	Spool    *spool.Spool
	Dir      string // data directory, where the last snapshot is kept
	Version  string // of this program
	Boot     string // identifies this run of the process
	// Held returns the revision that the node holds, empty for none.
	Held func() string
	// Apply makes a snapshot, which was checked and saved, the node's state. It is
	// called from one goroutine at a time; ctx is done when the client ends. While
	// it runs, newer snapshots replace each other: only the last is applied next.
	Apply func(ctx context.Context, s *decoynetv1.Snapshot)
	// Report says how the node is. The client fills in what it knows by itself:
	// version, platform, boot, time, spool, and the revision where it is empty.
	Report func() *decoynetv1.ReportRequest
	// Packets gives controllers the packets of sessions; nil where none are kept.
	Packets Packets
	Log     *slog.Logger
}

// Client is a node's side of the conversation with its controllers. It stays
// connected to one of them, applies what that sends, reports how the node is,
// delivers what is in the spool and renews the node's certificate. Nothing of it is
// waited for by what the node does for intruders.
type Client struct {
	cfg    ClientConfig
	log    *slog.Logger
	pace   pace
	dialer *outbound.Dialer

	dropped uint64 // records that the spool had given up before

	soon    chan struct{} // a token when a report is due
	updated chan struct{} // a token when wanted holds a snapshot
	met     chan struct{} // a token when a controller began to be heard from
	asked   chan asked    // packets that controllers want

	watching  links // of Watch, Report and Renew
	uploading links // of Upload, so that one that hangs holds up nothing
	sending   links // of SendPackets, likewise

	mu      sync.Mutex // guards everything below
	status  Status
	renewed chan struct{} // closed when the certificate is a new one, and replaced
	urls    []string
	wanted  *decoynetv1.Snapshot // not yet applied
	applied *decoynetv1.Snapshot // the last one that was
	refused error                // why the last snapshot was not applied
	noted   map[string]string    // what was logged last, by what it is about
}

// pace is how fast things go; tests change it.
type pace struct {
	silence     time.Duration // a controller that says nothing for so long is dead
	first, last time.Duration // the ceiling of the first and of later pauses
	steady      time.Duration // a connection that held so long was a good one
	denied      time.Duration // between attempts where the controller says no
	report      time.Duration // between reports
	gap         time.Duration // at least, between reports
	call        time.Duration // one answer
	upload      time.Duration // one batch
	gather      time.Duration // how long a record may wait for others
	renew       time.Duration // the ceiling of the pause between attempts to renew
}

var usualPace = pace{
	silence: 12 * time.Second,
	first:   200 * time.Millisecond, last: 15 * time.Second,
	steady: 5 * time.Second,
	denied: time.Minute,
	report: 5 * time.Second, gap: 250 * time.Millisecond,
	call: 12 * time.Second, upload: time.Minute,
	gather: 200 * time.Millisecond,
	renew:  5 * time.Minute,
}

// Status is how a client stands with its controllers.
type Status struct {
	URL       string    // of the controller that it is connected to, or tried last
	Connected bool      // it is being heard from
	Since     time.Time // since when it is so
	// Denied: a controller answers and lets this node in no more (it was revoked,
	// or its certificate expired); Err says which.
	Denied bool
	Err    string // why it is not connected, for the person at the console; empty while it is

	ClockKnown  bool
	ClockOffset time.Duration // by how much this machine's clock is ahead of the controller's
	ClockErr    string        // what to do about it; empty while it is small
	RoundTrip   time.Duration // of the last report

	CertificateExpires time.Time
	RenewErr           string // why the certificate could not be renewed
	SnapshotErr        string // why the last snapshot is not in effect

	Uploaded   uint64    // records delivered since the start
	LastUpload time.Time // zero for never
	UploadErr  string    // why nothing is delivered now
	Refused    uint64    // records that the controller could not read, given up
}

// Problems lists what is not as it should be beside the connection itself, for the
// person at the console.
func (s Status) Problems() []string {
	var out []string
	if s.SnapshotErr != "" {
		out = append(out, "what the controller asks for is not in effect: "+s.SnapshotErr)
	}
	if s.RenewErr != "" {
		out = append(out, fmt.Sprintf("the certificate, valid until %s, is not renewed: %s", s.CertificateExpires.UTC().Format(time.RFC3339), s.RenewErr))
	}
	if s.UploadErr != "" && s.Connected {
		out = append(out, "records are not delivered: "+s.UploadErr)
	}
	if s.ClockErr != "" {
		out = append(out, s.ClockErr)
	}
	if s.Refused > 0 {
		out = append(out, fmt.Sprintf("%d records could not be read by the controller and were given up", s.Refused))
	}
	return out
}

// NewClient returns a client; Run starts it. It returns an error where the
// identity's proxy is no URL of a proxy.
func NewClient(cfg ClientConfig) (*Client, error) {
	dialer, err := outbound.New(cfg.Identity.Proxy())
	if err != nil {
		return nil, err
	}
	c := &Client{
		cfg: cfg, log: cfg.Log, pace: usualPace, dialer: dialer,
		soon:    make(chan struct{}, 1),
		renewed: make(chan struct{}),
		updated: make(chan struct{}, 1),
		met:     make(chan struct{}, 1),
		asked:   make(chan asked, maxAsked),
		urls:    cfg.Identity.Controllers(),
		dropped: cfg.Spool.Stats().Dropped,
		noted:   map[string]string{},
	}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.status = Status{Since: time.Now()}
	// What runs already need not be applied again when the controller repeats it.
	if s, err := LoadSnapshot(cfg.Dir); err == nil && s.GetRevision() == cfg.Held() {
		c.applied = s
	}
	return c, nil
}

// Run works until ctx is done. It returns when nothing of it runs any more.
func (c *Client) Run(ctx context.Context) {
	c.watching.client, c.uploading.client, c.sending.client = c, c, c
	var wg sync.WaitGroup
	for _, loop := range []func(context.Context){c.watchLoop, c.applyLoop, c.reportLoop, c.uploadLoop, c.renewLoop, c.packetsLoop} {
		wg.Go(func() { loop(ctx) })
	}
	wg.Wait()
	c.watching.close()
	c.uploading.close()
	c.sending.close()
}

// ReportSoon makes the next report come at once (a quarter of a second after the
// last one, at the earliest). It never waits.
func (c *Client) ReportSoon() { signal(c.soon) }

func signal(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// Status returns how the client stands.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	_, s.CertificateExpires = c.cfg.Identity.Certificate()
	if c.refused != nil {
		s.SnapshotErr = c.refused.Error()
	}
	return s
}

// note logs what a thing is like when that has changed; empty text means all is well.
func (c *Client) note(about, text string) {
	c.mu.Lock()
	before := c.noted[about]
	c.noted[about] = text
	c.mu.Unlock()
	switch {
	case text == before:
	case text != "":
		c.log.Warn(about, "error", text)
	default:
		c.log.Info(about+": works again", "before", before)
	}
}

// Kinds of things that are noted.
const (
	aboutController = "controller"
	aboutUpload     = "delivery of records"
	aboutRenewal    = "renewal of the certificate"
	aboutSnapshot   = "snapshot"
	aboutReport     = "report"
	aboutClock      = "clock"
	aboutSpool      = "spool"
)

// backoff returns a pause with full jitter: anything up to a ceiling that doubles
// with each failure.
func backoff(first, last time.Duration, failures int) time.Duration {
	ceiling := last
	if failures < 20 {
		ceiling = min(last, first<<failures)
	}
	return rand.N(ceiling + 1)
}

// sleep waits, or until cut says so; false means that ctx is done.
func sleep(ctx context.Context, d time.Duration, cut <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-cut:
	case <-ctx.Done():
		return false
	}
	return ctx.Err() == nil
}

// offer makes a snapshot the one to be applied next.
func (c *Client) offer(s *decoynetv1.Snapshot) {
	c.mu.Lock()
	c.wanted = s
	c.mu.Unlock()
	signal(c.updated)
}

// applyLoop takes the newest snapshot each time the last one is done with.
func (c *Client) applyLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.updated:
		}
		c.mu.Lock()
		s := c.wanted
		same := c.refused == nil && c.applied != nil && proto.Equal(s, c.applied)
		c.mu.Unlock()
		if !same {
			c.apply(ctx, s)
			c.ReportSoon()
		}
	}
}

func (c *Client) apply(ctx context.Context, s *decoynetv1.Snapshot) {
	if urls := s.GetControllers(); len(urls) > 0 {
		if err := c.cfg.Identity.SetControllers(urls); err != nil {
			c.log.Warn("take the controllers of the snapshot", "error", err)
		}
		c.mu.Lock()
		c.urls = c.cfg.Identity.Controllers()
		c.mu.Unlock()
	}
	_, err := DecodeState(s, c.cfg.Version)
	c.mu.Lock()
	c.refused = err
	c.mu.Unlock()
	if err != nil {
		// What runs stays, also over a restart.
		c.note(aboutSnapshot, err.Error())
		return
	}
	c.note(aboutSnapshot, "")
	if err := saveSnapshot(c.cfg.Dir, s); err != nil {
		c.log.Warn("the node would start with an older one", "error", err)
	}
	c.cfg.Apply(ctx, s)
	c.mu.Lock()
	c.applied = s
	c.mu.Unlock()
}

// renewal returns a channel that is closed when the certificate is a new one.
func (c *Client) renewal() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.renewed
}

// pick returns the controller for a call: the one that is being heard from, and
// after failures each of them in turn.
func (c *Client) pick(failures int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status.Connected && failures%(len(c.urls)+1) == 0 {
		return c.status.URL
	}
	return c.urls[failures%len(c.urls)]
}

// controllers returns the controllers' URLs, best first; never none.
func (c *Client) controllers() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.urls
}
