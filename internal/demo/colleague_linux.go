package demo

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"decoynet/internal/lab"
)

// colleague is somebody who works with a server of production all the while, over
// one connection that must not break: in the office from the decoy host itself,
// whose own network is no less production.
type colleague struct {
	stop context.CancelFunc
	done chan struct{}

	// Read after done is closed.
	answers int
	slowest time.Duration
	faults  []string
}

const (
	colleaguePause    = 100 * time.Millisecond
	colleaguePatience = 2 * time.Second // with an answer
)

func work(ctx context.Context, from *lab.Machine, with netip.AddrPort) *colleague {
	ctx, stop := context.WithCancel(ctx)
	c := &colleague{stop: stop, done: make(chan struct{})}
	go c.work(ctx, from, with)
	return c
}

func (c *colleague) work(ctx context.Context, from *lab.Machine, with netip.AddrPort) {
	defer close(c.done)
	connections := 0
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		connections++
		return from.Dial(ctx, network, address)
	}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: colleaguePatience}
	first := ""
	for ctx.Err() == nil && len(c.faults) < 10 {
		began := time.Now()
		page, err := get(ctx, client, "http://"+with.String()+"/")
		if ctx.Err() != nil {
			break
		}
		took := time.Since(began)
		c.slowest = max(c.slowest, took)
		switch {
		case err != nil:
			c.faults = append(c.faults, err.Error())
		case first == "":
			first = page
		case page != first: // it names the connection: another one is a difference
			c.faults = append(c.faults, fmt.Sprintf("the page changed from %q to %q", first, page))
		}
		c.answers++
		select {
		case <-ctx.Done():
		case <-time.After(colleaguePause):
		}
	}
	if connections > 1 {
		c.faults = append(c.faults, fmt.Sprintf("the connection broke %d times", connections-1))
	}
}

func get(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", fmt.Errorf("read the page of production: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("read the page of production: %w", err)
	}
	return resp.Status + "\n" + string(body), nil
}

// leave ends the work and returns when it has ended.
func (c *colleague) leave() {
	c.stop()
	<-c.done
}

// complaints returns what went wrong; to be called when the colleague has left.
func (c *colleague) complaints() []string {
	faults := slices.Clone(c.faults)
	if c.answers == 0 {
		faults = append(faults, "nobody worked with it")
	}
	return faults
}
