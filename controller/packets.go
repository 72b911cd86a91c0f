package controller

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"decoynet/deception"
	"decoynet/internal/registry"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"
	"decoynet/internal/store"

	"connectrpc.com/connect"
)

// The packets of a session lie on the node that analysed it. A call for them asks
// the nodes that may have them, over the streams by which they watch, and hands on
// what the first one sends, piece by piece: neither the controller nor the node
// holds more than a piece in memory, however slow the reader is.

const (
	// maxWishes is how many calls may wait for packets at the same time.
	maxWishes = 16
	// pieceBytes is how much of a file one message holds.
	pieceBytes = 256 << 10
)

// piece is what a node sends.
type piece struct {
	node string
	*decoynetv1.SendPacketsRequest
}

// wish is a call that waits for packets.
type wish struct {
	id     deception.SessionID // not the session's
	asked  map[string]bool     // nodes; not changed any more
	pieces chan piece
	done   chan struct{} // closed when nobody waits any more

	mu   sync.Mutex // guards node
	node string     // that sends; the first one to have something
}

// claim tells whether the node is the one that sends.
func (w *wish) claim(node string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.node == "" {
		w.node = node
	}
	return w.node == node
}

// wishes are the calls that wait for packets.
type wishes struct {
	mu   sync.Mutex // guards open
	open map[deception.SessionID]*wish
}

// begin adds a wish; false where there are too many. It is to be ended.
func (w *wishes) begin(asked map[string]bool) (*wish, bool) {
	n := &wish{id: deception.NewSessionID(time.Now()), asked: asked, pieces: make(chan piece), done: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.open) >= maxWishes {
		return nil, false
	}
	if w.open == nil {
		w.open = make(map[deception.SessionID]*wish)
	}
	w.open[n.id] = n
	return n, true
}

func (w *wishes) end(n *wish) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.open, n.id)
	close(n.done)
}

// find returns the wish of that identifier that the node was asked for, or nil.
func (w *wishes) find(id []byte, node string) *wish {
	if len(id) != len(deception.SessionID{}) {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.open[deception.SessionID(id)]
	if n == nil || !n.asked[node] {
		return nil
	}
	return n
}

// GetPackets streams the packets of a session.
func (s adminService) GetPackets(ctx context.Context, req *connect.Request[decoynetv1.GetPacketsRequest], stream *connect.ServerStream[decoynetv1.GetPacketsResponse]) error {
	c, who := s.c, callerOf(ctx)
	e := entry(who, decoynetv1connect.AdminServiceGetPacketsProcedure, clip(req.Msg.GetSession(), 64))
	if _, err := c.reader(); err != nil {
		return err
	}
	ctx, end := c.whileAllowed(ctx)
	defer end()
	node, sent := "", 0
	err := c.packets(ctx, req.Msg.GetSession(), func(m *decoynetv1.GetPacketsResponse) error {
		node, sent = m.GetNode(), sent+len(m.GetData())
		return send(ctx, stream, m)
	})
	// Also where it failed half way: what was sent was seen.
	e.Result, e.Detail = registry.ResultOK, fmt.Sprintf("%d bytes from node %s", sent, node)
	if err != nil {
		e.Result, e.Detail = registry.ResultFailed, fmt.Sprintf("%v; %d bytes were sent", err, sent)
	}
	c.audit(e)
	return err
}

// packets tells the packets of a session. Its errors are *connect.Error.
func (c *Controller) packets(ctx context.Context, session string, tell func(*decoynetv1.GetPacketsResponse) error) error {
	id, err := deception.ParseSessionID(session)
	if err != nil {
		return connect.NewError(connect.CodeInvalidArgument, err)
	}
	var found *deception.Session
	for s, err := range c.cfg.Reader.Sessions(ctx, store.Filter{ID: id, Limit: 1}) {
		if err != nil {
			return c.unavailable(err)
		}
		found = &s
	}
	if found == nil {
		return connect.NewError(connect.CodeNotFound, fmt.Errorf("no session %s", id))
	}
	var missing []string
	if c.cfg.Packets != nil {
		out := &teller{node: c.thisNode(), tell: tell}
		capped, err := c.cfg.Packets(ctx, id, found.Start, found.End, out)
		if err == nil || out.told {
			return out.finish(capped, err)
		}
		missing = append(missing, fmt.Sprintf("%s: %v", out.node, err))
	}
	return c.fetch(ctx, found, missing, tell)
}

// teller cuts a file into messages.
type teller struct {
	node string
	tell func(*decoynetv1.GetPacketsResponse) error
	told bool
}

func (t *teller) Write(b []byte) (n int, err error) {
	t.told = true
	for part := range slices.Chunk(b, pieceBytes) {
		if err := t.tell(&decoynetv1.GetPacketsResponse{Node: t.node, Data: part}); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

func (t *teller) finish(capped bool, err error) error {
	if err != nil {
		var e *connect.Error
		if errors.As(err, &e) {
			return e
		}
		return connect.NewError(connect.CodeDataLoss, err)
	}
	return t.tell(&decoynetv1.GetPacketsResponse{Node: t.node, Capped: capped})
}

// fetch asks the nodes that may have the packets. missing are reasons of others that
// have none.
func (c *Controller) fetch(ctx context.Context, s *deception.Session, missing []string, tell func(*decoynetv1.GetPacketsResponse) error) error {
	asked := make(map[string]bool)
	for _, node := range c.analysts(s) {
		asked[node] = true
	}
	w, ok := c.wishes.begin(asked)
	if !ok {
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("%d others wait for packets already; try again in a moment", maxWishes))
	}
	defer c.wishes.end(w)
	m := &decoynetv1.PacketsWish{Id: w.id[:], Session: s.ID[:], Start: s.Start.UnixNano()}
	if !s.Running() {
		m.End = s.End.UnixNano()
	}
	waiting := map[string]bool{}
	for node := range asked {
		if c.hub.ask(node, m) {
			waiting[node] = true
			continue
		}
		missing = append(missing, fmt.Sprintf("%s: it is not connected to this controller; `decoynet pcap %s` there may find them", node, s.ID))
	}
	for len(waiting) > 0 {
		p, err := c.nextPiece(ctx, w, waiting)
		if err != nil {
			return err
		}
		switch {
		case p.GetMissing() == "" || w.claimed() == p.node:
			return c.handOn(ctx, w, p, tell)
		default:
			delete(waiting, p.node)
			missing = append(missing, p.node+": "+p.GetMissing())
		}
	}
	slices.Sort(missing)
	return connect.NewError(connect.CodeNotFound, fmt.Errorf("no packets of session %s were found: %s", s.ID, strings.Join(missing, "; ")))
}

// thisNode names the node that runs in this process.
func (c *Controller) thisNode() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.local {
		return name
	}
	return "this controller's machine"
}

// analysts are the other nodes that may have analysed a session: the one that took it
// from the intruder, and every ingress gateway.
func (c *Controller) analysts(s *deception.Session) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []string
	for name, p := range c.hub.present().nodes {
		if c.local[name] == nil && (name == s.Node || p.relays) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func (w *wish) claimed() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.node
}

// nextPiece waits for what a node has to say.
func (c *Controller) nextPiece(ctx context.Context, w *wish, waiting map[string]bool) (piece, error) {
	limit := time.NewTimer(c.timing.packets)
	defer limit.Stop()
	select {
	case p := <-w.pieces:
		return p, nil
	case <-ctx.Done():
		return piece{}, c.streamError(ctx, ctx.Err())
	case <-c.stopping(ctx):
		return piece{}, errStopping
	case <-limit.C:
		names := make([]string, 0, len(waiting))
		for name := range waiting {
			names = append(names, name)
		}
		slices.Sort(names)
		return piece{}, connect.NewError(connect.CodeDeadlineExceeded,
			fmt.Errorf("nothing came for %v from %s; its version may be older than this one's", c.timing.packets, strings.Join(names, ", ")))
	}
}

// handOn tells what a node sends, from its first piece to the last.
func (c *Controller) handOn(ctx context.Context, w *wish, p piece, tell func(*decoynetv1.GetPacketsResponse) error) error {
	node := p.node
	for {
		if p.node == node {
			if p.GetMissing() != "" {
				return connect.NewError(connect.CodeDataLoss, fmt.Errorf("node %s could not send the rest: %s", node, p.GetMissing()))
			}
			if p.SendPacketsRequest == nil { // its stream has ended
				return nil
			}
			if err := tell(&decoynetv1.GetPacketsResponse{Node: node, Data: p.GetData(), Capped: p.GetCapped()}); err != nil {
				return err
			}
		}
		var err error
		if p, err = c.nextPiece(ctx, w, map[string]bool{node: true}); err != nil {
			return err
		}
	}
}

// errNoWish is what a node gets whose packets nobody waits for.
var errNoWish = connect.NewError(connect.CodeAborted, errors.New("nobody waits for these packets any more, or another node sends them"))

// SendPackets takes the packets that somebody waits for.
func (s nodeService) SendPackets(ctx context.Context, stream *connect.ClientStream[decoynetv1.SendPacketsRequest]) (*connect.Response[decoynetv1.SendPacketsResponse], error) {
	c, who := s.c, callerOf(ctx)
	var w *wish
	for stream.Receive() {
		m := stream.Msg()
		if w == nil {
			if w = c.wishes.find(m.GetWish(), who.node); w == nil {
				return nil, errNoWish
			}
		}
		if m.GetMissing() == "" && !w.claim(who.node) {
			return nil, errNoWish
		}
		if control, ok := ctx.Value(controlKey{}).(*http.ResponseController); ok {
			_ = control.SetReadDeadline(time.Now().Add(bodyTimeout))
		}
		// A copy of what holds memory that the next message is read into.
		if err := w.put(ctx, piece{who.node, &decoynetv1.SendPacketsRequest{
			Data: slices.Clone(m.GetData()), Missing: clip(m.GetMissing(), 500), Capped: m.GetCapped(),
		}}); err != nil {
			return nil, err
		}
		if m.GetMissing() != "" {
			return connect.NewResponse(&decoynetv1.SendPacketsResponse{}), nil
		}
	}
	if w == nil {
		return nil, errNoWish
	}
	if err := stream.Err(); err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(err, w.put(ctx, piece{who.node, &decoynetv1.SendPacketsRequest{Missing: "its connection was lost"}}))
	}
	if w.claimed() != who.node {
		return nil, errNoWish
	}
	if err := w.put(ctx, piece{node: who.node}); err != nil {
		return nil, err
	}
	return connect.NewResponse(&decoynetv1.SendPacketsResponse{}), nil
}

// put hands a piece to the call that waits for it.
func (w *wish) put(ctx context.Context, p piece) error {
	select {
	case w.pieces <- p:
		return nil
	case <-w.done:
		return errNoWish
	case <-ctx.Done():
		return ctx.Err()
	}
}
