package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"decoynet/config"
	"decoynet/internal/registry"
	"decoynet/internal/rpc/decoynetv1"
)

// hub holds the present plan and wakes who waits for the next. Parts are worked out
// once for each change, however many nodes are connected, and only the watchers of
// nodes for which something changed are woken.
type hub struct {
	registry *registry.Registry
	version  string
	log      *slog.Logger

	making sync.Mutex // held while a plan is made, so that they are installed in order

	mu       sync.RWMutex // guards the rest
	now      *plan
	watchers map[string][]*watcher
}

// watcher waits for changes of one node.
type watcher struct {
	node string
	wake chan struct{} // a token when there is something to look at
	gone chan struct{} // closed when too many others watch the same node
	// wishes are packets that somebody wants of the node; nobody reads it where the
	// node runs in this process.
	wishes chan *decoynetv1.PacketsWish
}

// maxAsked is how many wishes for packets may wait for a node's stream.
const maxAsked = 4

// ask tells the node, by its newest stream, that somebody wants packets. False where
// it has none, or does not take them.
func (h *hub) ask(node string, m *decoynetv1.PacketsWish) bool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	all := h.watchers[node]
	for i := len(all) - 1; i >= 0; i-- {
		select {
		case all[i].wishes <- m:
			return true
		default:
		}
	}
	return false
}

// maxWatchers is how many streams a node may have: the connection it lost, which is
// not noticed yet, and the one that takes its place, with some to spare.
const maxWatchers = 4

func newHub(r *registry.Registry, version string, log *slog.Logger) *hub {
	return &hub{
		registry: r, version: version, log: log,
		now: &plan{nodes: map[string]*planned{}}, watchers: make(map[string][]*watcher),
	}
}

// present returns the plan that holds now.
func (h *hub) present() *plan {
	h.mu.RLock()
	defer h.mu.RUnlock()
	return h.now
}

// node returns what is planned for the node, or nil.
func (h *hub) node(name string) *planned { return h.present().nodes[name] }

// watch begins to watch a node, which may be remote or in this process. The watcher is to be given to unwatch.
func (h *hub) watch(node string, remote bool) *watcher {
	w := &watcher{node: node, wake: make(chan struct{}, 1), gone: make(chan struct{})}
	if remote {
		w.wishes = make(chan *decoynetv1.PacketsWish, maxAsked)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	all := append(h.watchers[node], w)
	if len(all) > maxWatchers {
		close(all[0].gone)
		all = append([]*watcher(nil), all[1:]...)
	}
	h.watchers[node] = all
	return w
}

func (h *hub) unwatch(w *watcher) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var left []*watcher
	for _, other := range h.watchers[w.node] {
		if other != w {
			left = append(left, other)
		}
	}
	if left == nil {
		delete(h.watchers, w.node)
		return
	}
	h.watchers[w.node] = left
}

// install makes the plan the present one.
func (h *hub) install(p *plan) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.now
	h.now = p
	for name, list := range h.watchers {
		if !differs(before.nodes[name], p.nodes[name]) {
			continue
		}
		for _, w := range list {
			select {
			case w.wake <- struct{}{}:
			default: // it will look anyway
			}
		}
	}
}

// differs tells whether a node has something to be told.
func differs(a, b *planned) bool {
	if a == nil || b == nil {
		return a != b
	}
	return a.wanted() != b.wanted() || credentials(a) != credentials(b)
}

// credentials is what decides which certificates of the node are good.
func credentials(p *planned) (c struct {
	generation uint32
	revoked    bool
},
) {
	if p.enrolled != nil {
		c.generation, c.revoked = p.enrolled.Generation, !p.enrolled.Revoked.IsZero()
	}
	return c
}

// follow makes a new plan after each change of the registry, until ctx is done.
// Changes that come closer together than settle make one plan.
func (h *hub) follow(ctx context.Context, settle time.Duration) {
	pause := func(d time.Duration) {
		select {
		case <-time.After(d):
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		err := h.registry.Wait(ctx, h.present().change)
		if err == nil {
			pause(settle)
			err = h.refresh(ctx)
		}
		if err != nil && ctx.Err() == nil {
			h.log.Warn("look for changes in the registry; trying again", "err", err)
			pause(time.Second)
		}
	}
}

// refresh makes a new plan, if anything changed since the present one was made.
func (h *hub) refresh(ctx context.Context) error {
	h.making.Lock()
	defer h.making.Unlock()
	previous := h.present()
	// The number first: what changes while the rest is read is seen the next time.
	f := facts{version: h.version}
	var err error
	if f.change, err = h.registry.Change(ctx); err != nil {
		return err
	}
	if f.change == previous.change {
		return nil
	}
	if f.enrolled, err = h.registry.Nodes(ctx); err != nil {
		return err
	}
	if f.urls, err = h.registry.URLs(ctx); err != nil {
		return err
	}
	if f.revision, err = h.registry.Revision(ctx); err != nil {
		return err
	}
	f.document = previous.document
	problem := previous.problem
	if f.revision != previous.revision {
		var document *config.Document
		if document, problem, err = h.load(ctx); err != nil {
			return err
		}
		if problem == nil {
			f.document = document
		}
	}
	p, err := makePlan(f, previous)
	if err != nil {
		return err
	}
	if p.problem = problem; problem != nil && f.document == nil {
		// Nobody is told to tear down what runs because we cannot read.
		for _, n := range p.nodes {
			n.snapshot = nil
		}
	}
	h.install(p)
	return nil
}

// load reads the present document, nil where there is none. One that this program
// does not understand, since another version took it, is a problem rather than an
// error: there is nothing that could be tried again.
func (h *hub) load(ctx context.Context) (document *config.Document, problem, err error) {
	stored, err := h.registry.Document(ctx)
	if errors.Is(err, registry.ErrNoDocument) {
		return nil, nil, nil
	} else if err != nil {
		return nil, nil, err
	}
	document, err = parse(stored.Name, stored.Source)
	if err != nil {
		problem = fmt.Errorf("document %s: %w", stored.Revision, err)
		h.log.Error("this version cannot read the document that was applied; nodes keep what they have", "err", problem)
		return nil, problem, nil
	}
	if len(document.State.Nodes) == 0 {
		document.State.Node, document.Options.Node = stored.Machine, stored.Machine
	}
	return document, nil, nil
}
