package fleet

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"time"

	"decoynet/deception"
	"decoynet/internal/store"
)

// Delivery is what a delivery of sessions showed.
type Delivery struct {
	Elapsed   time.Duration
	Committed uint64 // sessions, within it
	Backlog   uint64 // sessions that waited on agents' disks at its end
	Recorded  uint64 // sessions that agents recorded from its start to its end
	Total     uint64 // the same, with those before its start
}

// PerSecond returns the committed sessions per second.
func (d *Delivery) PerSecond() float64 { return float64(d.Committed) / d.Elapsed.Seconds() }

const (
	// turn is how often sessions are recorded. A flood comes to a tenth of the
	// agents at a time.
	turn   = 10 * time.Millisecond
	shares = 10
	// full is how many sessions wait on an agent that always has some.
	full = 1000
	// settleWithin bounds the wait for what is still on the way.
	settleWithin = 2 * time.Minute
)

// Steady has the agents record so many sessions a second together, and looks at
// how they arrive. The first skip is not measured.
func (f *Fleet) Steady(ctx context.Context, perSecond int, skip, d time.Duration) (Delivery, error) {
	began := time.Now()
	return f.deliver(ctx, skip, d, func(_ int, recorded uint64) (put uint64) {
		for due := uint64(float64(perSecond) * time.Since(began).Seconds()); recorded+put < due; put++ {
			f.agents[(recorded+put)%uint64(len(f.agents))].record()
		}
		return put
	})
}

// Flood keeps sessions waiting on every agent, and looks at how fast they arrive.
func (f *Fleet) Flood(ctx context.Context, skip, d time.Duration) (Delivery, error) {
	return f.deliver(ctx, skip, d, func(at int, _ uint64) (put uint64) {
		for i := at % shares; i < len(f.agents); i += shares {
			a := f.agents[i]
			for n := a.spool.Stats().Waiting; n < full; n++ {
				a.record()
				put++
			}
		}
		return put
	})
}

// deliver calls record every turn and measures from the end of skip on.
func (f *Fleet) deliver(ctx context.Context, skip, d time.Duration, record func(at int, recorded uint64) uint64) (Delivery, error) {
	var out Delivery
	var recorded, before, acknowledged uint64
	began := time.Now()
	var start time.Time
	for at := 0; ; at++ {
		recorded += record(at, recorded)
		now := time.Now()
		if start.IsZero() && now.Sub(began) >= skip {
			start, before, acknowledged = now, recorded, f.acknowledged()
		}
		if !start.IsZero() && now.Sub(start) >= d {
			out.Elapsed = now.Sub(start)
			break
		}
		select {
		case <-ctx.Done():
			return out, ctx.Err()
		case <-time.After(turn):
		}
	}
	out.Committed = f.acknowledged() - acknowledged
	out.Recorded, out.Total, out.Backlog = recorded-before, recorded, f.waiting()
	f.recorded += recorded
	return out, f.settle(ctx)
}

// settle waits until every session that was ever recorded is acknowledged, and
// holds that against what the store has.
func (f *Fleet) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, settleWithin)
	defer cancel()
	for f.waiting() > 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d sessions still wait: %w; agent 1: %s", f.waiting(), ctx.Err(), f.agents[0].client.Status().UploadErr)
		case <-time.After(lookEvery):
		}
	}
	reader, err := store.OpenReader(f.cfg.Store)
	if err != nil {
		return fmt.Errorf("open the controller's store: %w", err)
	}
	defer reader.Close()
	totals, err := reader.Totals(ctx)
	if err != nil {
		return err
	}
	var have uint64
	for _, t := range totals {
		have += uint64(t.Ended)
	}
	if have != f.recorded {
		return fmt.Errorf("the store has %d sessions, %d were recorded", have, f.recorded)
	}
	return nil
}

func (f *Fleet) acknowledged() (n uint64) {
	for _, a := range f.agents {
		n += a.spool.Stats().Acknowledged
	}
	return n
}

func (f *Fleet) waiting() (n uint64) {
	for _, a := range f.agents {
		n += a.spool.Stats().Waiting
	}
	return n
}

var (
	request = bytes.Repeat([]byte("GET / HTTP/1.1\r\n"), 4)
	answer  = bytes.Repeat([]byte("HTTP/1.1 200 OK\r\n"), 6)
	decoy   = netip.MustParseAddrPort("192.0.2.10:80")
	service = netip.MustParseAddrPort("10.88.0.2:80")
)

// record records a session as an agent sees many.
func (a *agent) record() {
	now := time.Now()
	id := deception.NewSessionID(now)
	source := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, id[15]}), 1024+uint16(id[14])<<7)
	a.recorder.Ended(&deception.Session{
		ID: id, Start: now, End: now, Node: a.name,
		Segment: "host", Decoy: "decoy", Service: "web", Transport: deception.TCP, Path: deception.PathRelay,
		Source: source, SourceNAT: source, Destination: decoy, DestinationNAT: service,
		SourceBytes: uint64(len(request)), DestinationBytes: uint64(len(answer)), SourceHead: request, DestinationHead: answer,
		Reason: deception.EndClientClosed,
	})
}
