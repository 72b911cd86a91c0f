package agent

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"decoynet/deception"
	"decoynet/internal/proxyheader"
	"decoynet/internal/pump"
)

// Carrier takes flows from where an intruder was met to where the service is
// known: through a tunnel (Courier), or on a gateway's own machine without one.
type Carrier interface {
	// Carry takes over the intruder's side of a flow and never waits. Of the
	// session Node, Segment, Decoy, Transport, Source, Destination and Start are
	// set, ID and Service where they are known. Nil where the flow could not be
	// taken; it is reset then.
	Carry(intruder pump.Stream, s *deception.Session, idle time.Duration) pump.Handle
	// CloseFlows ends the flows that match wants ended.
	CloseFlows(match func(*deception.Session) bool, reason deception.EndReason)
}

// Upstream is the way to the ingress gateways.
type Upstream interface {
	// Open opens a stream that begins with the header at the best gateway there
	// is. Where there is none it waits for one until the context is done.
	Open(ctx context.Context, header []byte, datagrams bool) (pump.Stream, error)
	// Gateways returns the gateways and whether they can be used now, best first.
	Gateways() []GatewayLink
}

// GatewayLink is what is true about the way to one ingress gateway.
type GatewayLink struct {
	Name      string        `json:"name"`
	Address   string        `json:"address,omitempty"`
	Connected bool          `json:"connected"`
	RoundTrip time.Duration `json:"round_trip,omitempty"` // ns
	Problem   string        `json:"problem,omitempty"`
}

// FlowRecorder takes what the ingress gateway cannot know: sessions that did
// not reach it or were cut off from it, and events. Its methods never block.
type FlowRecorder interface {
	Ended(s *deception.Session)
	Event(e *deception.Event)
}

// Limits of a courier.
const (
	// DefaultMaxFlows is how many flows a courier carries at once.
	DefaultMaxFlows = 4096
	// udpShare of them may be of UDP, whose sources can be forged.
	udpShare = 4
	// udpIdle bounds the idle time of UDP flows, which have no other end.
	udpIdle = time.Minute
	// openTimeout is how long an intruder waits for a gateway.
	openTimeout = 3 * time.Second
	// closeDelay is how long the upstream is left to bring resets to the gateways.
	closeDelay = 100 * time.Millisecond
)

// CourierConfig is what a courier is made with.
type CourierConfig struct {
	Node     string
	Upstream Upstream
	Recorder FlowRecorder
	MaxFlows int // flows at once (default DefaultMaxFlows)
	NoHeads  bool
	// Changed is called when what Courier.Up says may have changed. It must not
	// block; nil for nobody.
	Changed func()
	Log     *slog.Logger
}

// Courier carries flows to ingress gateways on other machines.
//
// An ingress records every flow that reached it. The courier records the others
// only: those that no gateway took and those whose tunnel broke, under the
// session identifier that the gateway was told.
type Courier struct {
	cfg      CourierConfig
	overload overload
	news     news
	watch    gatewayWatch

	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup

	opened, unreached, broken atomic.Uint64

	mu     sync.Mutex // guards the rest
	closed bool
	tcp    map[*carried]struct{}
	udp    map[*carried]struct{}
}

// CourierStatus is what is true about a courier. Counters run since its start.
type CourierStatus struct {
	Flows     int           `json:"flows"`
	UDPFlows  int           `json:"udp_flows"`
	Opened    uint64        `json:"opened"`
	NoGateway uint64        `json:"no_gateway"` // reset, because no gateway could be reached
	Broken    uint64        `json:"broken"`     // cut off in mid-flow
	Overload  uint64        `json:"overload"`   // reset, because there were too many
	Gateways  []GatewayLink `json:"gateways"`
	Lost      bool          `json:"lost"` // no gateway can be reached
}

// NewCourier returns a courier. Close it.
func NewCourier(cfg CourierConfig) *Courier {
	if cfg.MaxFlows <= 0 {
		cfg.MaxFlows = DefaultMaxFlows
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Courier{cfg: cfg, tcp: map[*carried]struct{}{}, udp: map[*carried]struct{}{}}
	c.overload = overload{node: cfg.Node, limit: cfg.MaxFlows, recorder: cfg.Recorder}
	c.ctx, c.stop = context.WithCancel(context.Background())
	c.wg.Go(c.look)
	return c
}

// carried is one flow.
type carried struct {
	courier  *Courier
	intruder pump.Stream
	session  deception.Session
	idle     time.Duration
	cancel   context.CancelFunc

	mu    sync.Mutex // guards the rest
	flow  *pump.Flow // nil until a gateway has it
	ended deception.EndReason
}

// Carry implements Carrier.
func (c *Courier) Carry(intruder pump.Stream, s *deception.Session, idle time.Duration) pump.Handle {
	f := &carried{courier: c, intruder: intruder, session: *s, idle: idle}
	if f.session.ID.IsZero() {
		f.session.ID = deception.NewSessionID(s.Start)
	}
	f.session.Path = deception.PathRelay
	if s.Transport == deception.UDP && (idle <= 0 || idle > udpIdle) {
		f.idle = udpIdle
	}
	var ctx context.Context
	ctx, f.cancel = context.WithTimeout(c.ctx, openTimeout)
	switch why := c.take(f); why {
	case deception.EndNone:
	case deception.EndOverload:
		f.cancel()
		intruder.Reset(why)
		c.overload.note(time.Now(), &f.session)
		return nil
	default:
		f.cancel()
		f.record(f.end(why))
		return nil
	}
	go func() {
		defer c.wg.Done()
		f.run(ctx)
	}()
	return f
}

// take books a place for the flow, or says why there is none. For UDP, where sources can be forged, the
// quietest of a few flows taken at random gives up its own; so a flood pushes out
// mostly itself.
func (c *Courier) take(f *carried) deception.EndReason {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return deception.EndShutdown
	}
	of := c.tcp
	if f.session.Transport == deception.UDP {
		of = c.udp
		if len(c.udp) >= max(1, c.cfg.MaxFlows/udpShare) {
			out := quietest(c.udp)
			delete(c.udp, out)
			c.wg.Go(func() { out.End(deception.EndOverload) })
			c.overload.count.Add(1)
		}
	}
	if len(c.tcp)+len(c.udp) >= c.cfg.MaxFlows {
		return deception.EndOverload
	}
	of[f] = struct{}{}
	c.wg.Add(1)
	return deception.EndNone
}

// quietest returns the flow without a byte for the longest time out of a few
// that are taken at random, as Go's map order is.
func quietest(flows map[*carried]struct{}) *carried {
	const sample = 16
	var out *carried
	seen := 0
	for f := range flows {
		if out == nil || f.Quiet() > out.Quiet() {
			out = f
		}
		if seen++; seen == sample {
			break
		}
	}
	return out
}

// forget gives the flow's place back.
func (c *Courier) forget(f *carried) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.tcp, f)
	delete(c.udp, f)
}

// run carries the flow until its end.
func (f *carried) run(ctx context.Context) {
	c := f.courier
	defer f.cancel()
	defer c.forget(f)
	gateway, err := f.open(ctx)
	if err != nil {
		c.unreached.Add(1)
		c.cfg.Log.Debug("flow not carried", "session", f.session.ID.String(), "error", err)
		f.record(f.end(deception.EndGateway))
		return
	}
	flow := pump.New(f.intruder, gateway, pump.Options{
		Idle: f.idle, Heads: !c.cfg.NoHeads, Datagrams: f.session.Transport == deception.UDP,
	})
	f.mu.Lock()
	f.flow = flow
	ended := f.ended
	f.mu.Unlock()
	if ended != deception.EndNone { // meanwhile
		flow.End(ended)
	}
	c.opened.Add(1)
	flow.Run()
	if flow.Reason() == deception.EndGateway {
		c.broken.Add(1)
		flow.Fill(&f.session)
		c.cfg.Recorder.Ended(&f.session)
	}
}

// open brings the flow to a gateway.
func (f *carried) open(ctx context.Context) (pump.Stream, error) {
	s := &f.session
	h := proxyheader.Header{
		Transport: s.Transport, Source: s.Source, Destination: s.Destination, Session: s.ID,
		Node: s.Node, Segment: s.Segment, Decoy: s.Decoy, Service: s.Service,
	}
	header, err := h.Append(make([]byte, 0, 384))
	if err != nil {
		return nil, fmt.Errorf("write the header of session %s: %w", s.ID, err)
	}
	stream, err := f.courier.cfg.Upstream.Open(ctx, header, s.Transport == deception.UDP)
	if err != nil {
		return nil, fmt.Errorf("open session %s at a gateway: %w", s.ID, err)
	}
	return stream, nil
}

// end ends a flow that no gateway has, and returns why: what ended it first.
func (f *carried) end(reason deception.EndReason) deception.EndReason {
	f.mu.Lock()
	if f.ended == deception.EndNone {
		f.ended = reason
	}
	reason = f.ended
	f.mu.Unlock()
	f.intruder.Reset(reason)
	return reason
}

// record writes down a session that no gateway knows of.
func (f *carried) record(reason deception.EndReason) {
	f.session.End, f.session.Reason = time.Now(), reason
	f.courier.cfg.Recorder.Ended(&f.session)
}

// End implements pump.Handle.
func (f *carried) End(reason deception.EndReason) {
	f.mu.Lock()
	if f.ended == deception.EndNone {
		f.ended = reason
	}
	flow := f.flow
	f.mu.Unlock()
	if flow != nil {
		flow.End(reason)
		return
	}
	f.cancel() // run sees to the rest
}

// Quiet implements pump.Handle.
func (f *carried) Quiet() time.Duration {
	f.mu.Lock()
	flow := f.flow
	f.mu.Unlock()
	if flow == nil {
		return 0
	}
	return flow.Quiet()
}

// CloseFlows implements Carrier.
func (c *Courier) CloseFlows(match func(*deception.Session) bool, reason deception.EndReason) {
	var out []*carried
	c.mu.Lock()
	for _, flows := range [...]map[*carried]struct{}{c.tcp, c.udp} {
		for f := range flows {
			s := deception.Session{ // what does not change while the flow runs
				ID: f.session.ID, Start: f.session.Start, Node: f.session.Node, Segment: f.session.Segment,
				Decoy: f.session.Decoy, Service: f.session.Service, Transport: f.session.Transport,
				Source: f.session.Source, Destination: f.session.Destination,
			}
			if match(&s) {
				out = append(out, f)
			}
		}
	}
	c.mu.Unlock()
	for _, f := range out {
		f.End(reason)
	}
}

// Status tells what is true now.
func (c *Courier) Status() CourierStatus {
	s := CourierStatus{
		Opened: c.opened.Load(), NoGateway: c.unreached.Load(), Broken: c.broken.Load(), Overload: c.overload.count.Load(),
		Gateways: c.cfg.Upstream.Gateways(), Lost: c.watch.isLost(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.Flows, s.UDPFlows = len(c.tcp)+len(c.udp), len(c.udp)
	return s
}

// Close ends all flows with reason shutdown. It waits for them no longer than
// ctx allows. The upstream is the caller's to close, after this.
func (c *Courier) Close(ctx context.Context) error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	running := c.Status().Flows
	c.CloseFlows(func(*deception.Session) bool { return true }, deception.EndShutdown)
	c.stop()
	done := make(chan struct{})
	go func() { c.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("end the flows to the gateways: %w", ctx.Err())
	}
	if running > 0 {
		select { // what ended the flows is still on its way
		case <-time.After(closeDelay):
		case <-ctx.Done():
		}
	}
	c.overload.flush(time.Now(), true)
	return nil
}
