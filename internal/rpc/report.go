package rpc

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"decoynet/deception"
	"decoynet/internal/rpc/decoynetv1"

	"connectrpc.com/connect"
)

const (
	// clockTolerance is the difference of clocks that is worth a word.
	clockTolerance = 5 * time.Second
	// dropEvents is how often it is recorded at most that records were given up.
	dropEvents = time.Minute
)

// reportLoop tells the controller how the node is, and looks after the spool.
func (c *Client) reportLoop(ctx context.Context) {
	tick := time.NewTicker(c.pace.report)
	defer tick.Stop()
	dropped, nextEvent := c.dropped, time.Time{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-c.soon:
		}
		stats := c.cfg.Spool.Stats()
		if stats.Dropped > dropped && time.Now().After(nextEvent) {
			c.tellDropped(stats.Dropped - dropped)
			dropped, nextEvent = stats.Dropped, time.Now().Add(dropEvents)
		}
		text := ""
		if !stats.FailingSince.IsZero() {
			text = stats.LastError.Error()
		}
		c.note(aboutSpool, text)
		if url, ok := c.current(); ok {
			c.report(ctx, url)
			if !sleep(ctx, c.pace.gap, nil) {
				return
			}
		}
	}
}

// tellDropped puts on record that something is not on record.
func (c *Client) tellDropped(n uint64) {
	NewRecorder(c.cfg.Spool).Event(&deception.Event{
		Kind: deception.EventSpoolDropped, Node: c.cfg.Identity.Node(),
		Message: fmt.Sprintf("%d records of this node were given up: its spool is full, or its disk failed; see `decoynet status` there", n),
	})
}

func (c *Client) report(ctx context.Context, url string) {
	ctx, cancel := context.WithTimeoutCause(ctx, c.pace.call, fmt.Errorf("%w for %v", errSilent, c.pace.call))
	defer cancel()
	m := c.fill(c.cfg.Report())
	sent := time.Now()
	m.Time = sent.UnixNano()
	answer, err := c.watching.to(url).Report(ctx, connect.NewRequest(m))
	if err != nil {
		if context.Cause(ctx) != context.Canceled {
			c.note(aboutReport, explain(orCause(ctx, err)))
		}
		return
	}
	trip := time.Since(sent)
	c.note(aboutReport, "")
	c.measured(sent, trip, answer.Msg.GetControllerTime())
}

// fill adds what the client knows by itself.
func (c *Client) fill(m *decoynetv1.ReportRequest) *decoynetv1.ReportRequest {
	if m == nil {
		m = &decoynetv1.ReportRequest{}
	}
	m.Version, m.Boot = c.cfg.Version, c.cfg.Boot
	m.Platform = runtime.GOOS + "/" + runtime.GOARCH
	if m.Revision == "" {
		m.Revision = c.cfg.Held()
	}
	stats := c.cfg.Spool.Stats()
	m.Spool = &decoynetv1.Spool{Waiting: stats.Waiting, WaitingBytes: stats.WaitingBytes, Dropped: stats.Dropped}
	s := c.Status()
	if s.SnapshotErr != "" {
		m.State = decoynetv1.ReportRequest_STATE_FAILED
	}
	for _, text := range s.Problems() {
		m.Problems = append(m.Problems, validText(text))
	}
	if !stats.FailingSince.IsZero() {
		m.Problems = append(m.Problems, validText(fmt.Sprintf("records are kept in memory only since %s: %v",
			stats.FailingSince.UTC().Format(time.RFC3339), stats.LastError)))
	}
	return m
}

// measured takes the clock's offset from an answer: the controller looked at its
// clock about half the round trip after the request was sent.
func (c *Client) measured(sent time.Time, trip time.Duration, controller int64) {
	offset := time.Duration(sent.UnixNano()+int64(trip/2)) - time.Duration(controller)
	text := ""
	if controller != 0 && offset.Abs() > max(clockTolerance, trip) {
		word := "ahead of"
		if offset < 0 {
			word = "behind"
		}
		text = fmt.Sprintf("the clock of this machine is %v %s the controller's: set one of them (NTP)", offset.Abs().Round(time.Second), word)
	}
	c.mu.Lock()
	c.status.RoundTrip, c.status.ClockErr = trip, text
	if controller != 0 {
		c.status.ClockKnown, c.status.ClockOffset = true, offset
	}
	c.mu.Unlock()
	c.note(aboutClock, text)
}
