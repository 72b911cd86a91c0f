package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"decoynet/deception"
	"decoynet/internal/registry"
	"decoynet/internal/rpc"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"
	"decoynet/internal/store"

	"connectrpc.com/connect"
)

// nodeService is what nodes ask. Who asks is in the certificate; see admit.
type nodeService struct{ c *Controller }

// Watch streams the node's part of the desired state.
func (s nodeService) Watch(ctx context.Context, req *connect.Request[decoynetv1.WatchRequest], stream *connect.ServerStream[decoynetv1.WatchResponse]) error {
	c, who := s.c, callerOf(ctx)
	c.hear(who, req.Msg.GetBoot())
	return c.watch(ctx, who, func(m *decoynetv1.WatchResponse) error {
		m.ControllerTime = time.Now().UnixNano()
		return send(ctx, stream, m)
	})
}

// watch calls tell with the node's snapshot, then with each new one, with wishes for
// packets, and with nothing for a heartbeat in between. It returns when ctx is done, the controller stops, tell
// fails, or the caller is no longer allowed to watch.
func (c *Controller) watch(ctx context.Context, who *caller, tell func(*decoynetv1.WatchResponse) error) error {
	w := c.hub.watch(who.node, who.generation != 0)
	defer c.hub.unwatch(w)
	beat := time.NewTicker(c.timing.heartbeat)
	defer beat.Stop()
	var last string
	var snapshot *decoynetv1.Snapshot
	if p := c.hub.node(who.node); p != nil {
		snapshot = p.snapshot
	}
	for {
		if snapshot != nil {
			last = snapshot.Revision
		}
		if err := tell(&decoynetv1.WatchResponse{Snapshot: snapshot}); err != nil {
			return err
		}
		snapshot = nil
		for woken := false; !woken && snapshot == nil; {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-c.stopping(ctx):
				return errStopping
			case <-w.gone:
				return connect.NewError(connect.CodeAborted, errors.New("the node has newer connections than this one"))
			case <-beat.C:
				woken = true
			case m := <-w.wishes:
				if err := tell(&decoynetv1.WatchResponse{Packets: m}); err != nil {
					return err
				}
			case <-w.wake:
				if who.generation != 0 {
					if refusal, _ := c.nodeStanding(who); refusal != nil {
						c.presence.forget(who.node)
						return connect.NewError(connect.CodePermissionDenied, refusal)
					}
				}
				if p := c.hub.node(who.node); p != nil && p.snapshot != nil && p.snapshot.Revision != last {
					snapshot = p.snapshot
				}
			}
		}
	}
}

// hear notes that the node called.
func (c *Controller) hear(who *caller, boot string) {
	var reach []string
	if who.peer.IsValid() {
		reach = []string{who.peer.Addr().WithZone("").String()}
	}
	c.presence.hear(who, clip(boot, 64), reach, time.Now(), c.timing.lostAfter)
}

// Report takes what is really true on the node.
func (s nodeService) Report(ctx context.Context, req *connect.Request[decoynetv1.ReportRequest]) (*connect.Response[decoynetv1.ReportResponse], error) {
	s.c.report(callerOf(ctx), req.Msg)
	return connect.NewResponse(&decoynetv1.ReportResponse{ControllerTime: time.Now().UnixNano()}), nil
}

func (c *Controller) report(who *caller, m *decoynetv1.ReportRequest) {
	now := time.Now()
	c.hear(who, m.GetBoot())
	r := reportOf(m, who, now)
	if !c.presence.take(who.node, r, addressesOf(m)) {
		return
	}
	ahead := "ahead"
	if r.ClockOffset < 0 {
		ahead = "behind"
	}
	c.event(deception.Event{
		Kind: deception.EventClockOff, Node: who.node,
		Message: fmt.Sprintf("the clock of node %s is %v %s of the controller's; times in its records are off by as much: set it, by NTP best",
			who.node, time.Duration(r.ClockOffset).Abs().Round(100*time.Millisecond), ahead),
	})
}

// Upload commits what a node has recorded. A record that cannot be read is given up
// and counted: the node would send it for ever, and nothing behind it.
func (s nodeService) Upload(ctx context.Context, req *connect.Request[decoynetv1.UploadRequest]) (*connect.Response[decoynetv1.UploadResponse], error) {
	c, who := s.c, callerOf(ctx)
	c.hear(who, req.Msg.GetBoot())
	p := c.hub.node(who.node)
	batch, bad, example := readRecords(req.Msg.GetRecords(), who.node, p != nil && p.relays)
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	refused, err := c.commit(ctx, batch)
	if err != nil {
		return nil, c.unavailable(err)
	}
	if len(refused) > 0 {
		bad, example = bad+len(refused), refused[0]
	}
	if bad > 0 {
		c.log.Warn("records of a node cannot be read", "node", who.node, "records", bad, "example", example)
		c.event(deception.Event{
			Kind: deception.EventRecordRefused, Node: who.node, Source: who.peer,
			Message: fmt.Sprintf("%d records of node %s cannot be read and are lost (%v); the node may run another version than the controller",
				bad, who.node, example),
		})
	}
	return connect.NewResponse(&decoynetv1.UploadResponse{}), nil
}

// commit commits the batch. Records that the store can never take are left out, one by
// one, and their errors returned.
func (c *Controller) commit(ctx context.Context, b store.Batch) (refused []error, err error) {
	n := recordsOf(&b)
	if n == 0 {
		return nil, nil
	}
	err = c.cfg.Store.Commit(ctx, b)
	switch {
	case err == nil:
		return nil, nil
	case !errors.Is(err, store.ErrRecord):
		return nil, err
	case n == 1:
		return []error{err}, nil
	}
	first, second := halves(b)
	for _, half := range []store.Batch{first, second} {
		more, err := c.commit(ctx, half)
		if err != nil {
			return nil, err
		}
		refused = append(refused, more...)
	}
	return refused, nil
}

// halves cuts a batch of two records or more in two.
func halves(b store.Batch) (first, second store.Batch) {
	first, second = store.Batch{Node: b.Node}, store.Batch{Node: b.Node}
	room := recordsOf(&b) / 2
	n := min(room, len(b.Sessions))
	first.Sessions, second.Sessions = b.Sessions[:n], b.Sessions[n:]
	room -= n
	n = min(room, len(b.Seen))
	first.Seen, second.Seen = b.Seen[:n], b.Seen[n:]
	room -= n
	n = min(room, len(b.Events))
	first.Events, second.Events = b.Events[:n], b.Events[n:]
	room -= n
	n = min(room, len(b.Probes))
	first.Probes, second.Probes = b.Probes[:n], b.Probes[n:]
	room -= n
	first.Findings, second.Findings = b.Findings[:room], b.Findings[room:]
	return first, second
}

func recordsOf(b *store.Batch) int {
	return len(b.Sessions) + len(b.Seen) + len(b.Events) + len(b.Probes) + len(b.Findings)
}

// readRecords decodes a node's records. They are about the node itself, unless it
// relays: an ingress gateway also records the sessions of agents on other nodes.
func readRecords(records [][]byte, node string, relays bool) (b store.Batch, bad int, example error) {
	b.Node = node
	own := func(field *string) {
		if !relays || *field == "" {
			*field = node
		}
	}
	for _, raw := range records {
		r, err := rpc.DecodeRecord(raw)
		switch {
		case err != nil:
			bad++
			example = err
		case r.Session != nil:
			own(&r.Session.Node)
			b.Sessions = append(b.Sessions, *r.Session)
		case r.SourceSeen != nil:
			b.Seen = append(b.Seen, *r.SourceSeen)
		case r.Event != nil:
			own(&r.Event.Node)
			b.Events = append(b.Events, *r.Event)
		case r.Probe != nil:
			r.Probe.Node = node // what it saw itself, whatever it relays
			b.Probes = append(b.Probes, *r.Probe)
		case r.Finding != nil:
			r.Finding.Node = node // where it was found, whoever's the session is
			b.Findings = append(b.Findings, *r.Finding)
		}
	}
	return b, bad, example
}

// Renew exchanges a certificate request for a new certificate of the same generation.
func (s nodeService) Renew(ctx context.Context, req *connect.Request[decoynetv1.RenewRequest]) (*connect.Response[decoynetv1.RenewResponse], error) {
	c, who := s.c, callerOf(ctx)
	c.hear(who, "")
	e := entry(who, decoynetv1connect.NodeServiceRenewProcedure, who.node)
	certificate, err := c.ca.SignNode(req.Msg.GetCsr(), who.node, who.generation, c.cfg.CertificateTTL, time.Now())
	if err != nil {
		e.Result, e.Detail = registry.ResultFailed, err.Error()
		c.audit(e)
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	e.Result = registry.ResultOK
	c.audit(e)
	return connect.NewResponse(&decoynetv1.RenewResponse{Certificate: certificate, Ca: c.ca.Certificate().Raw}), nil
}
