package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"

	"decoynet/bench/parity/script"
	"decoynet/bench/parity/verdict"
)

// result is what became of one capture in one feed.
type result struct {
	capture, feed string
	// counts by what was compared: alerts, records, files, flows
	counts       map[string]verdict.Count
	missed, more map[string][]string
	protocols    map[string]verdict.Count // records by kind of event
	excluded     int
}

// compare has Suricata read every capture and what the feeds showed of it.
func (s *session) compare(ctx context.Context) ([]result, error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(2 * runtime.NumCPU()) // Suricata sleeps half the time that it takes to start
	var (
		mu      sync.Mutex // guards results and s.failures
		results []result
	)
	for _, c := range s.captures {
		mu.Lock()
		skip := !c.Playable() || s.failures[c.Name] != nil
		mu.Unlock()
		if skip {
			continue
		}
		group.Go(func() error {
			of, err := s.compareOne(ctx, c)
			mu.Lock()
			defer mu.Unlock()
			results = append(results, of...)
			if err != nil {
				s.failures[c.Name] = err
			}
			return ctx.Err()
		})
	}
	return results, group.Wait()
}

func (s *session) compareOne(ctx context.Context, c *script.Capture) ([]result, error) {
	dir := filepath.Join(s.work, "events", c.Name)
	original := filepath.Join(s.work, originals, c.Name+".pcap")
	if err := c.Original(original, s.plan.OnWire); err != nil {
		return nil, err
	}
	want, err := s.events(ctx, c, original, filepath.Join(dir, originals))
	if err != nil {
		return nil, err
	}
	var out []result
	for _, f := range s.feeds {
		got, err := s.events(ctx, c, s.fed(f, c), filepath.Join(dir, f.name))
		if err != nil {
			return nil, err
		}
		r := result{
			capture: c.Name, feed: f.name, excluded: want.Excluded,
			counts: map[string]verdict.Count{}, missed: map[string][]string{}, more: map[string][]string{},
		}
		for _, k := range kinds {
			r.counts[k.name], r.missed[k.name], r.more[k.name] = verdict.Compare(k.of(want), k.of(got), k.distinct)
		}
		r.protocols = byProtocol(want, got)
		out = append(out, r)
	}
	return out, nil
}

// kinds are what is compared.
var kinds = []struct {
	name     string
	of       func(verdict.Events) map[string]int
	distinct bool
}{
	{"alerts", func(e verdict.Events) map[string]int { return e.Alerts }, true},
	{"records", func(e verdict.Events) map[string]int { return e.Records }, false},
	{"files", func(e verdict.Events) map[string]int { return e.Files }, false},
	{"flows", func(e verdict.Events) map[string]int { return e.Applications }, false},
}

// originals is the name of the folders that are of no feed.
const originals = "original"

// pcapHeader is the length of a capture file without packets.
const pcapHeader = 24

// events has Suricata read one file.
func (s *session) events(ctx context.Context, c *script.Capture, capture, dir string) (verdict.Events, error) {
	if info, err := os.Stat(capture); err != nil || info.Size() <= pcapHeader {
		return verdict.Events{}, err // Suricata takes a file without packets for a fault
	}
	file := filepath.Join(dir, "eve.json")
	var err error
	if _, statErr := os.Stat(file); statErr != nil || !s.reuse || filepath.Base(dir) != originals {
		file, err = s.suricata.Read(ctx, capture, c.Rules, dir)
	}
	if err != nil {
		return verdict.Events{}, fmt.Errorf("%s: %w", c.Name, err)
	}
	var flows []verdict.Flow
	for i := range c.Flows {
		f := &c.Flows[i]
		if f.Why == "" {
			client, server := s.plan.OnWire(f)
			flows = append(flows, verdict.Flow{Transport: f.Transport.String(), Client: client, Server: server})
		}
	}
	return verdict.ReadEvents(file, flows)
}
