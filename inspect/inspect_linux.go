// Package inspect is the role that has everything analysed that intruders do: it
// shows flows to Suricata and to other sensors, runs Suricata, ties what that finds
// to sessions, and keeps the packets.
//
// Its parts are in packages of their own: the queue and the synthetic packets in
// internal/feed, the device in internal/kernel/vtap, Suricata's process and rules
// in internal/suricata, its events in internal/eve, packets of sessions in
// internal/archive. What is here is which of them there are, and in which order
// they come and go.
package inspect

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"decoynet/deception"
	"decoynet/internal/archive"
	"decoynet/internal/capture"
	"decoynet/internal/eve"
	"decoynet/internal/feed"
	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/vtap"
	"decoynet/internal/suricata"
)

// Names of the feed's outputs, as they stand in the status.
const (
	outputFIFO = "fifo"
	outputTap  = "tap"
	outputPCAP = "pcap"
)

// Recorder takes what is found. Its methods never block.
type Recorder interface {
	Finding(f *deception.Finding)
	// Room tells whether findings would be taken now: until then they stay in
	// Suricata's file.
	Room() bool
	Event(e *deception.Event)
	// Started and Ended are for sessions of gateways that are not ours.
	Started(s *deception.Session)
	Ended(s *deception.Session)
}

// Config is what an Inspector is made with.
type Config struct {
	Node     string
	Dir      string    // where all that belongs to analysis is kept
	Packets  string    // where the packets of sessions are
	Host     *netns.NS // where the tap device stands
	Lanes    int       // loops of the relay
	Recorder Recorder
	Log      *slog.Logger
}

// Inspector realises what the document says of analysis.
type Inspector struct {
	cfg  Config
	feed *feed.Feed

	// passed is the reader of events, for Suricata's goroutine, which must not wait
	// for mu: Close waits for it.
	passed   atomic.Pointer[eve.Reader]
	sensor   sensor
	services atomic.Pointer[[]deception.Service] // of the document
	enabled  atomic.Bool                         // something is analysed
	mirror   *capture.Mirror

	mu       sync.Mutex // guards the rest
	want     *deception.Inspect
	archive  *archive.Archive
	limits   deception.PCAPLimits // of archive
	tap      *vtap.Tap
	tapName  string
	swept    bool // tap devices of an earlier process were looked for
	fifo     *feed.FIFO
	fifoPath string
	suricata *suricata.Suricata
	events   *eve.Reader
	reads    string // the file that events reads
	sees     string // the output that who writes it sees
	captures []link
}

// New returns an Inspector that analyses nothing yet.
func New(cfg Config) *Inspector {
	f := feed.New(feed.Config{Lanes: cfg.Lanes, Log: cfg.Log})
	i := &Inspector{cfg: cfg, feed: f, mirror: capture.NewMirror(capture.MirrorConfig{Node: cfg.Node, Feed: f, Log: cfg.Log})}
	i.sensor.tell = i.tell
	return i
}

// Feed is where flows are shown to the outputs.
func (i *Inspector) Feed() *feed.Feed { return i.feed }

// Apply brings analysis to what the state wants of it. A part that cannot be
// had is named in the error and tried again at the next call; the others work.
//
// Who reads is there before what writes to it.
func (i *Inspector) Apply(ctx context.Context, state *deception.State) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.services.Store(&state.Services)
	want := state.Inspect
	if want == nil {
		want = &deception.Inspect{}
	}
	i.want = want
	i.feed.SetDepth(want.Depth)
	i.enabled.Store(want.Enabled())
	if want.Enabled() {
		if err := os.MkdirAll(i.cfg.Dir, 0o700); err != nil {
			return fmt.Errorf("inspect: %w", err)
		}
	}
	errs := []error{
		i.applyPackets(want), i.applyTap(ctx, want), i.applySuricata(ctx, want), i.applyEvents(want),
	}
	for j, err := range errs {
		if err != nil {
			errs[j] = fmt.Errorf("inspect: %w", err)
		}
	}
	i.applyCaptures(want.Capture)
	return errors.Join(errs...)
}

// add gives the feed an output, and closes what finds no room there.
func (i *Inspector) add(name string, w feed.Writer) error {
	if i.feed.Add(name, w) {
		return nil
	}
	err := fmt.Errorf("the feed has no room for the output %s while earlier ones hang; it is tried again", name)
	if c, ok := w.(io.Closer); ok {
		err = errors.Join(err, c.Close())
	}
	return err
}

// applyPackets keeps the packets of sessions, or ends that.
func (i *Inspector) applyPackets(want *deception.Inspect) error {
	switch {
	case want.PCAP.MaxBytes == 0 && i.archive != nil:
		i.archive = nil
		return i.feed.Remove(outputPCAP)
	case want.PCAP.MaxBytes == 0:
		return nil
	case i.archive != nil:
		if i.limits != want.PCAP { // it waits for the disk
			i.archive.SetLimits(want.PCAP)
			i.limits = want.PCAP
		}
		return nil
	}
	a, err := archive.Open(archive.Config{Dir: i.cfg.Packets, Limits: want.PCAP, Log: i.cfg.Log})
	if err != nil {
		return err
	}
	if err := i.add(outputPCAP, a); err != nil {
		return err
	}
	i.archive, i.limits = a, want.PCAP
	return nil
}

func (i *Inspector) applyTap(ctx context.Context, want *deception.Inspect) error {
	var err error
	if i.tap != nil && i.tapName != want.Tap {
		err = i.feed.Remove(outputTap)
		i.tap = nil
	}
	if !i.swept || i.tapName != want.Tap {
		err = errors.Join(err, i.removeTaps(ctx, want.Tap))
		i.swept, i.tapName = true, want.Tap
	}
	if want.Tap == "" {
		return err
	}
	fresh := i.tap == nil
	if fresh {
		i.tap = vtap.New(i.cfg.Host, want.Tap)
	}
	changes, err2 := i.tap.Apply(ctx)
	for _, c := range changes {
		i.cfg.Log.Debug("tap device", "name", want.Tap, "change", c)
	}
	if fresh && err2 != nil {
		i.tap = nil
	} else if fresh {
		if err2 = errors.Join(err2, i.add(outputTap, i.tap)); err2 != nil {
			i.tap = nil
		}
	}
	return errors.Join(err, err2)
}

// removeTaps removes the devices of ours, also those of an earlier process, but for
// those to keep.
func (i *Inspector) removeTaps(ctx context.Context, keep ...string) error {
	removed, err := vtap.Remove(ctx, i.cfg.Host, keep...)
	for _, name := range removed {
		i.cfg.Log.Debug("tap device removed", "name", name)
	}
	return err
}

// applySuricata has the FIFO stand while Suricata, ours or another, reads it.
func (i *Inspector) applySuricata(ctx context.Context, want *deception.Inspect) error {
	managed := want.Suricata == deception.SuricataManaged
	if i.suricata == nil && managed {
		s, err := suricata.New(suricata.Config{
			Dir: i.cfg.Dir, Node: i.cfg.Node, Log: i.cfg.Log, Event: i.cfg.Recorder.Event, Read: i.wasRead,
		})
		if err != nil {
			return err
		}
		i.suricata = s
	}
	path := filepath.Join(i.cfg.Dir, "feed.fifo")
	if managed {
		path = i.suricata.FIFO()
	}
	var err error
	if i.fifo != nil && (!want.FIFO || i.fifoPath != path) {
		i.fifo = nil
		err = i.feed.Remove(outputFIFO)
	}
	if i.fifo == nil && want.FIFO {
		fifo, err := feed.NewFIFO(path, i.cfg.Log)
		if err != nil {
			return err
		}
		if err := i.add(outputFIFO, fifo); err != nil {
			return err
		}
		i.fifo, i.fifoPath = fifo, path
	}
	if i.suricata == nil {
		return err
	}
	return errors.Join(err, i.suricata.Apply(ctx, want))
}

// wasRead tells whether a rotated file of events may be removed.
func (i *Inspector) wasRead(path string) bool {
	r := i.passed.Load()
	return r != nil && r.Done(path)
}

// applyEvents reads the file that Suricata writes.
func (i *Inspector) applyEvents(want *deception.Inspect) error {
	path := want.EVE
	if want.Suricata == deception.SuricataManaged && i.suricata != nil {
		path = i.suricata.EVE()
	}
	sees := outputFIFO
	if want.Suricata == deception.SuricataExternal && want.Tap != "" {
		sees = outputTap
	}
	if i.events != nil && (i.reads != path || i.sees != sees) {
		i.events.Close()
		i.events = nil
		i.sensor.forget()
	}
	if i.events != nil || path == "" {
		return nil
	}
	i.reads, i.sees = path, sees
	view := i.feed.Of(sees)
	i.events = eve.New(eve.Config{
		Path: path, Checkpoint: filepath.Join(i.cfg.Dir, checkpointOf(want)), FromEnd: want.Suricata == deception.SuricataExternal,
		Node: i.cfg.Node, Sessions: view, Deliver: i.deliver, Missed: i.missed, Lost: view.Lost, Log: i.cfg.Log,
		Stats: i.sensor.heard,
	})
	i.passed.Store(i.events)
	return nil
}

// missed tells of events that cannot be read any more.
func (i *Inspector) missed(why error) {
	i.tell(deception.EventFindingsMissed, "events of Suricata may not have been read: "+why.Error())
}

func (i *Inspector) tell(kind deception.EventKind, message string) {
	now := time.Now()
	i.cfg.Recorder.Event(&deception.Event{ID: deception.NewSessionID(now), Time: now, Kind: kind, Node: i.cfg.Node, Message: message})
}

// checkpointOf names the file in which the place in Suricata's events is noted. It
// differs for that of others, whose events have nothing to do with ours.
func checkpointOf(want *deception.Inspect) string {
	if want.Suricata == deception.SuricataExternal {
		return "eve-external.checkpoint"
	}
	return "eve.checkpoint"
}

// deliver hands findings to the recorder while that has room.
func (i *Inspector) deliver(_ context.Context, findings []*deception.Finding) error {
	if !i.cfg.Recorder.Room() {
		return eve.ErrBusy
	}
	for _, f := range findings {
		i.cfg.Recorder.Finding(f)
	}
	return nil
}

// Reload has Suricata's rules read again, tested, and used.
func (i *Inspector) Reload(ctx context.Context) (suricata.Report, error) {
	i.mu.Lock()
	s := i.suricata
	managed := i.want != nil && i.want.Suricata == deception.SuricataManaged
	i.mu.Unlock()
	if s == nil || !managed {
		return suricata.Report{}, errors.New("decoynet runs no Suricata here; the document says so with inspect: {suricata: managed}")
	}
	return s.Reload(ctx)
}

// catchUp is how long the last events of a Suricata that has ended are waited for.
const catchUp = 3 * time.Second

// Close shows what waits, ends Suricata in good order and reads what it says at
// its end. Flows must have ended before.
func (i *Inspector) Close(ctx context.Context) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.applyCaptures(nil)
	i.mirror.Close()
	if i.suricata != nil {
		i.suricata.Ending()
	}
	errs := []error{i.feed.Close()} // with the outputs
	errs = append(errs, i.removeTaps(ctx))
	if i.suricata != nil {
		errs = append(errs, i.suricata.Close(ctx))
	}
	if i.events != nil {
		i.readOut(ctx)
		i.events.Close()
	}
	i.archive, i.tap, i.fifo, i.suricata, i.events = nil, nil, nil, nil, nil
	return errors.Join(errs...)
}

// readOut waits until what Suricata has written is read.
func (i *Inspector) readOut(ctx context.Context) {
	ctx, stop := context.WithTimeout(ctx, catchUp)
	defer stop()
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for lines := uint64(0); ; {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
		s := i.events.Stats()
		if s.Behind == 0 && s.Lines == lines {
			return
		}
		lines = s.Lines
	}
}
