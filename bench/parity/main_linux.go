// Command parity measures what Suricata detects in the feeds of decoynet, compared
// with what it detects in the original traffic. Captures are played through the real
// path (client, decoy, agent, gateways, scripted service), what a feed shows of each
// is recorded, and Suricata reads both by the same configuration and rules.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"decoynet/bench/parity/replay"
	"decoynet/bench/parity/script"
	"decoynet/bench/parity/verdict"
)

// options are the command's flags.
type options struct {
	corpus   string
	only     string
	feeds    string
	decoynet string
	out      string
	work     string
	verbose  bool
	reuse    bool
	pace     float64
}

func main() {
	var o options
	flag.StringVar(&o.corpus, "corpus", "", "folder of captures; rules beside a capture are in test.rules")
	flag.StringVar(&o.only, "only", "", "play only captures whose name holds this")
	flag.StringVar(&o.feeds, "feeds", "fifo,tap,capture", "comma-separated feeds to measure, of "+strings.Join(feedNames(), ", "))
	flag.StringVar(&o.decoynet, "decoynet", "bin/decoynet", "the binary to measure")
	flag.StringVar(&o.out, "out", "bench/out", "folder of the JSON file")
	flag.StringVar(&o.work, "work", "", "folder that keeps recordings and events (default: a temporary one)")
	flag.Float64Var(&o.pace, "pace", 50, "flows a second that are played at most; 0: as fast as it goes")
	flag.BoolVar(&o.reuse, "reuse", false, "take events of the originals that are in -work from an earlier run")
	flag.BoolVar(&o.verbose, "v", false, "print every miss")
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if err := run(ctx, o, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "parity:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, w io.Writer) (err error) {
	if o.corpus == "" {
		return errors.New("no captures to play: -corpus FOLDER (make parity CORPUS=FOLDER)")
	}
	if o.decoynet, err = filepath.Abs(o.decoynet); err != nil {
		return fmt.Errorf("find the binary: %w", err)
	}
	if o.work == "" {
		if o.work, err = os.MkdirTemp("", "decoynet-parity-"); err != nil {
			return fmt.Errorf("make a folder: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(o.work)) }()
	}
	captures, failed, err := script.Folder(o.corpus)
	if err != nil {
		return err
	}
	for name, err := range failed {
		fmt.Fprintf(w, "%s: cannot be read: %v\n", name, err)
	}
	captures = selected(captures, o.only)
	if len(captures) == 0 {
		return fmt.Errorf("no captures in %s", o.corpus)
	}
	feeds, err := feedsOf(o.feeds)
	if err != nil {
		return err
	}
	s, err := newSession(o, captures, feeds, w)
	if err != nil {
		return err
	}
	return s.run(ctx)
}

func selected(captures []*script.Capture, only string) []*script.Capture {
	var out []*script.Capture
	for _, c := range captures {
		if strings.Contains(c.Name, only) {
			out = append(out, c)
		}
	}
	return out
}

// session is one run of the command.
type session struct {
	options
	w        io.Writer
	captures []*script.Capture
	feeds    []feed
	plan     *replay.Plan
	suricata *verdict.Suricata
	played   []*script.Capture // one of each hash
	failures map[string]error  // captures that could not be played
	// inspected is what each node said of its feed when all was played.
	inspected map[string]any
}

func newSession(o options, captures []*script.Capture, feeds []feed, w io.Writer) (*session, error) {
	if err := os.MkdirAll(o.work, 0o755); err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	s := &session{options: o, w: w, captures: captures, feeds: feeds, failures: map[string]error{}}
	s.plan = replay.NewPlan(captures)
	seen := map[[32]byte]bool{}
	for _, c := range captures {
		if !seen[c.Hash] && c.Playable() {
			s.played = append(s.played, c)
		}
		seen[c.Hash] = true
	}
	var err error
	s.suricata, err = verdict.NewSuricata(o.work)
	return s, err
}

func (s *session) run(ctx context.Context) error {
	if err := s.record(ctx); err != nil {
		return err
	}
	r, err := s.compare(ctx)
	if err != nil {
		return err
	}
	return s.report(r)
}
