package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"decoynet/bench/parity/replay"
	"decoynet/bench/parity/script"
	"decoynet/internal/lab"
)

// feed is a way of showing flows to Suricata, and how it is recorded.
type feed struct {
	name    string
	inspect string // its name in the document; empty: it needs none
	hop     bool   // it is made at the egress, of what comes from the gateway
	stream  bool   // it ends with decoynet
	// record starts to record; what it returns ends that and names the files.
	record func(ctx context.Context, w *replay.World, dir string) (stop func(context.Context) ([]string, error), err error)
}

// feeds lists what can be measured.
var feeds = []feed{
	// What stands on the intruder's own wire is no feed. It shows what is lost to
	// the way of playing, rather than to a feed.
	{name: "wire", record: recordWire},
	{name: "fifo", inspect: "fifo", stream: true, record: recordFIFO},
	{name: "tap", inspect: "tap", record: recordTap},
	{name: "capture", hop: true, stream: true, record: recordCapture},
}

// sessions tells whether the frames' MAC addresses hold the session's key.
func (f *feed) sessions() bool { return f.inspect != "" || f.hop }

// atEgress has an egress show what a gateway sends it, as if the gateway were
// somebody else's.
var atEgress = fmt.Sprintf("  nodes: [%s]\n  suricata: off\n  feeds: [fifo]\n  pcap: {size: off}\n  capture: [{interface: %s, ports: [%d]}]\n",
	replay.EgressNode, replay.Link, replay.EgressPort)

// inspection is the document's section that has flows fed to what is recorded.
// Nobody but us reads them.
func inspection(feeds []feed) string {
	var names []string
	for _, f := range feeds {
		if f.inspect != "" {
			names = append(names, f.inspect)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return fmt.Sprintf("  suricata: off\n  feeds: [%s]\n  pcap: {size: off}\n", strings.Join(names, ", "))
}

func feedNames() []string {
	var out []string
	for _, f := range feeds {
		out = append(out, f.name)
	}
	return out
}

func feedsOf(list string) ([]feed, error) {
	var out []feed
	for name := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(feeds, func(f feed) bool { return f.name == name })
		if i < 0 {
			return nil, fmt.Errorf("unknown feed %q; one of %s", name, strings.Join(feedNames(), ", "))
		}
		out = append(out, feeds[i])
	}
	return out, nil
}

// recordWire captures at the clients.
func recordWire(ctx context.Context, w *replay.World, dir string) (func(context.Context) ([]string, error), error) {
	var files []string
	var all []*lab.Process
	for n, m := range w.Clients {
		file := filepath.Join(dir, fmt.Sprintf("wire%d.pcap", n))
		p, err := tcpdump(ctx, m, "eth0", file)
		if err != nil {
			return nil, err
		}
		files, all = append(files, file), append(all, p)
	}
	return func(ctx context.Context) ([]string, error) {
		var errs []error
		for _, p := range all {
			errs = append(errs, stopTcpdump(ctx, p))
		}
		return files, errors.Join(errs...)
	}, nil
}

// recordFIFO reads the stream that Suricata would.
func recordFIFO(_ context.Context, w *replay.World, dir string) (func(context.Context) ([]string, error), error) {
	return readFIFO(w.Gateway, filepath.Join(dir, "fifo.pcap"))
}

// recordCapture does so where the flows are taken from the link.
func recordCapture(_ context.Context, w *replay.World, dir string) (func(context.Context) ([]string, error), error) {
	return readFIFO(w.Egress, filepath.Join(dir, "capture.pcap"))
}

func readFIFO(n *replay.Node, file string) (func(context.Context) ([]string, error), error) {
	p, err := n.Start("dd", "if="+filepath.Join(n.Data, "inspect", "feed.fifo"), "of="+file, "bs=1M")
	if err != nil {
		return nil, fmt.Errorf("read the FIFO: %w", err)
	}
	return func(ctx context.Context) ([]string, error) {
		// decoynet has ended, and with it the stream.
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if err := p.Wait(ctx); err != nil {
			return nil, fmt.Errorf("read the FIFO: %w: %s", err, p.Log())
		}
		return []string{file}, nil
	}, nil
}

// recordTap captures on the tap device.
func recordTap(ctx context.Context, w *replay.World, dir string) (func(context.Context) ([]string, error), error) {
	file := filepath.Join(dir, "tap.pcap")
	p, err := tcpdump(ctx, w.Gateway.Machine, "vtap0", file)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) ([]string, error) { return []string{file}, stopTcpdump(ctx, p) }, nil
}

// tcpdump captures on a machine's interface and returns when it does.
func tcpdump(ctx context.Context, m *lab.Machine, nic, file string) (*lab.Process, error) {
	p, err := m.Start("tcpdump", "-i", nic, "-s", "0", "-U", "-B", "65536", "-Z", "root", "--time-stamp-precision=nano", "-w", file)
	if err != nil {
		return nil, fmt.Errorf("capture on %s: %w", nic, err)
	}
	err = lab.Eventually(ctx, 10*time.Second, func() error {
		if !strings.Contains(p.Log(), "listening on") {
			return fmt.Errorf("capture on %s: tcpdump said %q", nic, p.Log())
		}
		return nil
	})
	return p, err
}

// stopTcpdump ends a capture; it is an error if it lacks packets.
func stopTcpdump(ctx context.Context, p *lab.Process) error {
	if err := p.Stop(ctx); err != nil {
		return err
	}
	if !strings.Contains(p.Log(), "\n0 packets dropped by kernel") {
		return fmt.Errorf("the recording lacks packets: %s", strings.TrimSpace(p.Log()))
	}
	return nil
}

// record plays all captures, and cuts each feed's recording into theirs.
func (s *session) record(ctx context.Context) (err error) {
	w, err := replay.NewWorld(ctx, s.plan, s.decoynet, slices.ContainsFunc(s.feeds, func(f feed) bool { return f.hop }))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := w.Start(ctx, inspection(s.feeds), atEgress); err != nil {
		return err
	}
	stops := make([]func(context.Context) ([]string, error), len(s.feeds))
	for i, f := range s.feeds {
		if stops[i], err = f.record(ctx, w, s.work); err != nil {
			return fmt.Errorf("record feed %s: %w", f.name, err)
		}
	}
	began := time.Now()
	windows, flows := s.play(ctx, w)
	fmt.Fprintf(s.w, "played %d captures (%d flows) in %.1f s; %d could not be played\n",
		len(windows), flows, time.Since(began).Seconds(), len(s.failures))
	s.inspected = map[string]any{}
	for _, n := range w.Nodes() {
		if status, err := w.Status(ctx, n); err == nil {
			s.inspected[n.Name()] = status.Inspect
		}
	}
	// The kernel hands packets to tcpdump a second late, and it leaves what it has
	// not got when it is told to end. The tap device goes with decoynet.
	time.Sleep(2 * time.Second)
	if err := s.finish(ctx, stops, windows, func(f feed) bool { return !f.stream }); err != nil {
		return err
	}
	if err := w.Stop(ctx); err != nil {
		return err
	}
	if err := s.finish(ctx, stops, windows, func(f feed) bool { return f.stream }); err != nil {
		return err
	}
	return ctx.Err()
}

// finish ends the recordings of some feeds, and cuts them.
func (s *session) finish(ctx context.Context, stops []func(context.Context) ([]string, error), windows []replay.Played, which func(feed) bool) error {
	for i, f := range s.feeds {
		if !which(f) {
			continue
		}
		files, err := stops[i](ctx)
		if err != nil {
			return fmt.Errorf("record feed %s: %w", f.name, err)
		}
		if err := s.cut(f, files, windows); err != nil {
			return fmt.Errorf("cut feed %s: %w", f.name, err)
		}
	}
	return nil
}

// play plays one capture after the other.
func (s *session) play(ctx context.Context, w *replay.World) (played []replay.Played, flows int) {
	next := time.Now()
	for _, c := range s.played {
		if ctx.Err() != nil {
			return played, flows
		}
		time.Sleep(time.Until(next))
		p, err := w.Play(ctx, c)
		if err != nil {
			s.failures[c.Name] = err
			fmt.Fprintln(s.w, err)
		}
		played = append(played, p)
		for _, begun := range p.Begun {
			if begun {
				flows++
			}
		}
		if s.pace > 0 {
			next = next.Add(time.Duration(float64(len(c.Flows)) * float64(time.Second) / s.pace))
		}
	}
	return played, flows
}

// cut writes what a feed showed of each capture to a file of its own.
func (s *session) cut(f feed, files []string, played []replay.Played) error {
	var windows []script.Window
	for _, p := range played {
		w := script.Window{Begin: p.Begin, Path: s.fed(f, p.Capture)}
		for i := range p.Capture.Flows {
			if !p.Begun[i] {
				continue
			}
			client, server := s.plan.OnWire(&p.Capture.Flows[i])
			w.Flows = append(w.Flows, script.Fed{Client: client, Server: server, Open: p.Open[i]})
		}
		windows = append(windows, w)
	}
	foreign, err := script.Cut(files, windows, f.sessions())
	fmt.Fprintf(s.w, "%s: %d packets of no capture\n", f.name, foreign)
	return err
}

// fed returns the file with what a feed showed of a capture, or of one like it.
func (s *session) fed(f feed, c *script.Capture) string {
	return filepath.Join(s.work, f.name, fmt.Sprintf("%x.pcap", c.Hash[:8]))
}
