package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"

	"decoynet/agent"
	"decoynet/config"
	"decoynet/deception"
	"decoynet/gateway"
	"decoynet/internal/health"
	"decoynet/internal/kernel/firewall"
	"decoynet/internal/kernel/route"
	"decoynet/internal/relay"
	"decoynet/internal/store"
)

const (
	// retryEvery is the pause between attempts to mend what could not be
	// applied: the parent NIC may be back, a service's namespace there at last.
	retryEvery = 2 * time.Second
	// driftEvery is how often everything is compared with the kernel, for what
	// others have changed. It writes nothing where nothing differs.
	driftEvery = 10 * time.Second
)

// node is one machine with its roles: agent, ingress and egress in one process,
// so that a hop between them is a function call.
type node struct {
	file, data string
	log        *slog.Logger
	started    time.Time

	recorder *store.Recorder
	engine   *relay.Engine
	gateway  *gateway.Gateway
	zones    *gateway.Zones
	agent    *agent.Agent
	checker  *health.Checker

	healthChanged chan struct{} // holds one token; a token means: look again

	applying sync.Mutex // serialises apply, refresh and close

	mu       sync.Mutex // guards the rest, never held for long
	doc      *config.Document
	revision string
	problem  error // of the last apply
	applied  bool
}

func newNode(file, data string, doc *config.Document, log *slog.Logger) (*node, error) {
	n := &node{file: file, data: data, log: log, started: time.Now(), doc: doc, revision: revision(file), healthChanged: make(chan struct{}, 1)}
	var err error
	if n.recorder, err = store.OpenRecorder(store.RecorderConfig{Path: databasePath(data), Retain: doc.Options.Retention}); err != nil {
		return nil, fmt.Errorf("open session store: %w", err)
	}
	n.checker = health.New(health.Config{Changed: n.noteHealth, Mark: firewall.MarkSelf})
	n.gateway = gateway.New(gateway.Config{Node: doc.State.Node, Recorder: n.recorder, Suspect: n.checker.Suspect})
	if n.engine, err = relay.New(n.gateway, relay.Config{Loops: runtime.NumCPU()}); err != nil {
		return nil, errors.Join(err, n.close(context.Background()))
	}
	if n.zones, err = gateway.NewZones(); err != nil {
		return nil, errors.Join(err, n.close(context.Background()))
	}
	n.agent, err = agent.New(agent.Config{Engine: n.engine, Recorder: n.recorder, NewID: gateway.NewSessionID, Log: log})
	if err != nil {
		return nil, errors.Join(err, n.close(context.Background()))
	}
	return n, nil
}

func (n *node) noteHealth() {
	select {
	case n.healthChanged <- struct{}{}:
	default:
	}
}

// apply makes the machine what the document says. What can be brought up is up
// when it returns; the joined errors name the rest.
//
// The order keeps every midpoint safe: zones are contained before anything
// leads into them, services are known to be up before their ports open, the
// table knows a binding before its port opens, and flows that it leads elsewhere
// or nowhere are ended while the decoy's address still stands to reset them from.
func (n *node) apply(ctx context.Context, doc *config.Document) error {
	n.applying.Lock()
	defer n.applying.Unlock()
	state := &doc.State
	table := deception.NewTable(state)
	errs := []error{n.zones.Apply(ctx, state)}
	errs = append(errs, n.applyHostRoutes(ctx, state))
	n.checker.Watch(ctx, health.PortsOf(state))
	n.gateway.KeepHeads(doc.Options.Heads)
	n.gateway.SetTable(table)
	n.engine.CloseFlows(misled(state, table), deception.EndUnbound)
	errs = append(errs, n.agent.Apply(ctx, state, table, n.checker.Up))
	errs = append(errs, n.applyHostRoutes(ctx, state)) // now with the links of the kernel path

	err := errors.Join(errs...)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.doc, n.problem, n.applied = doc, err, true
	return err
}

func (n *node) applyHostRoutes(ctx context.Context, state *deception.State) error {
	d := gateway.HostRoutes(state)
	uplinks := n.agent.HostRoutes()
	d.Routes = append(d.Routes, uplinks.Routes...)
	d.Rules = append(d.Rules, uplinks.Rules...)
	if _, err := route.Apply(ctx, n.zones.Host(), d); err != nil {
		return fmt.Errorf("host routes: %w", err)
	}
	return nil
}

// misled tells of a flow whether the table leads it elsewhere, or nowhere. Flows
// of segments that go are the agent's, which ends them with the segment.
func misled(state *deception.State, table *deception.Table) func(*relay.Flow) bool {
	return func(f *relay.Flow) bool {
		s := &f.Session
		target, ok := table.Lookup(s.Segment, s.Transport, s.Destination)
		if !ok {
			return state.Segment(s.Segment) != nil
		}
		return target.Service.Name != s.Service || target.Decoy.Path != deception.PathRelay || target.Address != s.DestinationNAT
	}
}

// refresh opens and closes ports after a change of health.
func (n *node) refresh(ctx context.Context) {
	n.applying.Lock()
	defer n.applying.Unlock()
	if err := n.agent.Refresh(ctx, n.checker.Up); err != nil {
		n.log.Error("open and close ports", "error", err)
		n.mu.Lock()
		n.problem = err // and so tried again
		n.mu.Unlock()
	}
}

// mend applies the document again: soon while something is not as it should
// be, now and then otherwise.
func (n *node) mend(ctx context.Context, turn int) {
	n.mu.Lock()
	doc, problem := n.doc, n.problem
	n.mu.Unlock()
	if problem == nil && turn%int(driftEvery/retryEvery) != 0 {
		return
	}
	err := n.apply(ctx, doc)
	switch {
	case err == nil && problem != nil:
		n.log.Info("everything is applied now")
	case err != nil && (problem == nil || err.Error() != problem.Error()):
		n.log.Error("not everything could be applied", "error", err)
	}
}

// reload reads the document again. A document with errors changes nothing.
func (n *node) reload(ctx context.Context) error {
	doc, err := config.Load(n.file)
	if err != nil {
		return fmt.Errorf("the document is not valid and was not applied:\n%w", err)
	}
	n.mu.Lock()
	old := n.doc
	n.mu.Unlock()
	for _, change := range config.Diff(&old.State, &doc.State) {
		n.log.Info("change", "what", change.String())
	}
	n.warnFixed(old, doc)
	n.setRevision(revision(n.file))
	if err := n.apply(ctx, doc); err != nil {
		return fmt.Errorf("applied, but not in full: %w", err)
	}
	return nil
}

// warnFixed names what a running process cannot change.
func (n *node) warnFixed(old, now *config.Document) {
	if old.State.Node != now.State.Node || old.Options.Data != now.Options.Data || old.Options.Retention != now.Options.Retention {
		n.log.Warn("node, data and recording.retention are taken at the start only; restart decoynet for the new ones")
	}
}

func (n *node) setRevision(revision string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.revision = revision
}

// close ends all flows and leaves nothing of ours in the kernel. It works on a
// node that came up in part.
func (n *node) close(ctx context.Context) error {
	n.applying.Lock()
	defer n.applying.Unlock()
	var errs []error
	n.checker.Close()
	if n.agent != nil {
		errs = append(errs, n.agent.Close(ctx))
	}
	if n.engine != nil {
		errs = append(errs, n.engine.Close(ctx))
	}
	if n.zones != nil {
		errs = append(errs, n.zones.Close(ctx))
	}
	if err := os.Remove(socketPath(n.data)); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove status socket: %w", err))
	}
	return errors.Join(append(errs, n.recorder.Close(ctx))...)
}

// revision names a document by its content.
func revision(file string) string {
	src, err := os.ReadFile(file)
	if err != nil {
		return "unknown"
	}
	sum := sha256.Sum256(src)
	return hex.EncodeToString(sum[:6])
}
