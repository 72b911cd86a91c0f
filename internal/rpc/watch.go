package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"decoynet/internal/rpc/decoynetv1"

	"connectrpc.com/connect"
)

// errRenewed is the cause where a connection is given up for the sake of a new
// certificate.
var errRenewed = errors.New("the certificate was renewed")

// errEnded is where a controller ends the stream in order: it is being stopped.
var errEnded = errors.New("the controller ended the connection in order: it is being stopped or restarted")

// watchLoop keeps a stream to one of the controllers. They are tried in the order
// of the list; only when all have failed there is a pause that grows.
func (c *Client) watchLoop(ctx context.Context) {
	turn, failures, denials := 0, 0, 0
	for ctx.Err() == nil {
		urls, renewal := c.controllers(), c.renewal()
		url := urls[turn%len(urls)]
		held, err := c.watch(ctx, url, renewal)
		if !connect.IsWireError(err) { // else it answers, and other calls may be on their way
			c.watching.drop(url)
		}
		if errors.Is(err, errSilent) { // what is on its way to it waits in vain
			c.uploading.drop(url)
			c.sending.drop(url)
		}
		if ctx.Err() != nil {
			c.disconnected(url, ctx.Err())
			return
		}
		if errors.Is(err, errRenewed) {
			continue // to the same one, at once
		}
		c.disconnected(url, err)
		turn++
		if failures++; held >= c.pace.steady {
			failures = 0
		}
		if denials++; !isDenied(err) {
			denials = 0
		}
		pause := backoff(c.pace.first, c.pace.last, failures/len(urls))
		if failures%len(urls) != 0 { // the next one may do better
			pause = backoff(c.pace.first, c.pace.last, 0)
		}
		if denials >= len(urls) {
			pause = c.pace.denied/2 + backoff(c.pace.denied, c.pace.denied, 0)
		}
		if !sleep(ctx, pause, renewal) {
			return
		}
	}
}

// watch stays connected to the controller as long as that is heard from. It returns
// for how long it was.
func (c *Client) watch(ctx context.Context, url string, renewal <-chan struct{}) (held time.Duration, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(c.pace.silence, func() {
		cancel(fmt.Errorf("%w: nothing was heard for %v", errSilent, c.pace.silence))
	})
	defer silence.Stop()

	stream, err := c.watching.to(url).Watch(ctx, connect.NewRequest(&decoynetv1.WatchRequest{
		Revision: c.cfg.Held(), Version: c.cfg.Version, Boot: c.cfg.Boot,
	}))
	if err != nil {
		return 0, orCause(ctx, err)
	}
	defer stream.Close()
	go func() {
		select {
		case <-renewal:
			cancel(errRenewed)
		case <-ctx.Done():
		}
	}()

	var since time.Time
	for stream.Receive() {
		silence.Reset(c.pace.silence)
		if since.IsZero() {
			since = time.Now()
			c.connected(url)
		}
		m := stream.Msg()
		c.heard(m.GetControllerTime())
		if s := m.GetSnapshot(); s != nil {
			c.offer(s)
		}
		if p := m.GetPackets(); p != nil {
			c.ask(url, p)
		}
	}
	if !since.IsZero() {
		held = time.Since(since)
	}
	if err := stream.Err(); err != nil {
		return held, orCause(ctx, err)
	}
	return held, errEnded
}

// orCause returns why the context was cancelled, where that is the reason of err.
func orCause(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

func (c *Client) connected(url string) {
	c.mu.Lock()
	s := &c.status
	s.URL, s.Connected, s.Since, s.Denied, s.Err = url, true, time.Now(), false, ""
	c.mu.Unlock()
	c.note(aboutController, "")
	c.log.Info("connected to controller", "url", url)
	c.ReportSoon()
	signal(c.met)
}

func (c *Client) disconnected(url string, err error) {
	text := fmt.Sprintf("controller %s: %s", url, explain(err))
	c.mu.Lock()
	s := &c.status
	if s.Connected {
		s.Since = time.Now()
	}
	s.URL, s.Connected, s.Denied, s.Err = url, false, isDenied(err), text
	c.mu.Unlock()
	if !errors.Is(err, context.Canceled) {
		c.note(aboutController, text)
	}
}

// current returns the controller that is being heard from.
func (c *Client) current() (url string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status.URL, c.status.Connected
}

// heard takes the controller's time from a message that came just now. It counts
// until a report has measured better: how long it was on its way is a guess.
func (c *Client) heard(controller int64) {
	if controller == 0 {
		return
	}
	now := time.Now().UnixNano()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.status.RoundTrip == 0 {
		c.status.ClockKnown, c.status.ClockOffset = true, time.Duration(now-controller)
	}
}
