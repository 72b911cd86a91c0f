package controller

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"decoynet/deception"
	"decoynet/internal/registry"
	"decoynet/internal/rpc"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/store"

	"connectrpc.com/connect"
)

// ListNodes returns every node, enrolled or only named in the document.
func (s adminService) ListNodes(ctx context.Context, _ *connect.Request[decoynetv1.ListNodesRequest]) (*connect.Response[decoynetv1.ListNodesResponse], error) {
	nodes, err := s.c.nodes(ctx, time.Now())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&decoynetv1.ListNodesResponse{Nodes: nodes}), nil
}

// nodes puts together what the registry has of nodes (also those that call another
// controller), what this controller heard since, and what they are to be.
func (c *Controller) nodes(ctx context.Context, now time.Time) ([]*decoynetv1.NodeInfo, error) {
	if err := c.refresh(ctx); err != nil {
		return nil, err
	}
	stored, err := c.cfg.Registry.Nodes(ctx)
	if err != nil {
		return nil, c.unavailable(err)
	}
	known := make(map[string]*registry.Node, len(stored))
	for i := range stored {
		n := &stored[i]
		known[n.Name] = n
		h, ok := c.presence.heardOf(n.Name)
		if ok && !h.at.Before(n.Seen) && (h.generation == 0 || h.generation == n.Generation) {
			n.Seen = h.at
			if h.report != nil {
				n.Report = *h.report
			}
		}
	}
	plan := c.hub.present()
	names := slices.Collect(maps.Keys(plan.nodes))
	for name := range known {
		if plan.nodes[name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	out := make([]*decoynetv1.NodeInfo, 0, len(names))
	for _, name := range names {
		out = append(out, nodeInfo(name, plan.nodes[name], known[name], now, c.timing.lostAfter))
	}
	return out, nil
}

// nodeInfo writes one node; p or n may be nil.
func nodeInfo(name string, p *planned, n *registry.Node, now time.Time, lostAfter time.Duration) *decoynetv1.NodeInfo {
	info := &decoynetv1.NodeInfo{Name: name, Condition: conditionOf(p, n, now, lostAfter)}
	if p != nil {
		info.RevisionWanted = p.wanted()
	}
	if n == nil {
		return info
	}
	r := &n.Report
	info.Version, info.Platform, info.RevisionHeld = r.Version, r.Platform, r.Held
	info.Problems, info.Flows, info.ClockOffset, info.Peer = r.Problems, r.Flows, r.ClockOffset, r.Peer
	if !n.Seen.IsZero() {
		info.LastSeen = n.Seen.UnixNano()
	}
	if !r.CertificateExpires.IsZero() {
		info.CertificateExpires = r.CertificateExpires.UnixNano()
	}
	info.Spool = &decoynetv1.Spool{Waiting: r.Spool.Waiting, WaitingBytes: r.Spool.WaitingBytes, Dropped: r.Spool.Dropped}
	for _, g := range r.Gateways {
		info.Gateways = append(info.Gateways, &decoynetv1.GatewayLink{
			Name: g.Name, Connected: g.Connected, RoundTrip: int64(g.RoundTrip), Error: g.Error,
		})
		// The node lists them in the order in which it takes them.
		if g.Connected && info.RoundTrip == 0 {
			info.RoundTrip = int64(g.RoundTrip)
		}
	}
	return info
}

// ListUsers returns the API users.
func (s adminService) ListUsers(ctx context.Context, _ *connect.Request[decoynetv1.ListUsersRequest]) (*connect.Response[decoynetv1.ListUsersResponse], error) {
	users, err := s.c.cfg.Registry.Users(ctx)
	if err != nil {
		return nil, s.c.unavailable(err)
	}
	out := &decoynetv1.ListUsersResponse{}
	for _, u := range users {
		m := &decoynetv1.User{Name: u.Name, Role: u.Role, Created: u.Created.UnixNano()}
		if !u.LastUsed.IsZero() {
			m.LastUsed = u.LastUsed.UnixNano()
		}
		out.Users = append(out.Users, m)
	}
	return connect.NewResponse(out), nil
}

// ListAudit returns who changed or tried what.
func (s adminService) ListAudit(ctx context.Context, req *connect.Request[decoynetv1.ListAuditRequest]) (*connect.Response[decoynetv1.ListAuditResponse], error) {
	entries, err := s.c.cfg.Registry.ListAudit(ctx, timeOf(req.Msg.GetSince()), int(min(req.Msg.GetLimit(), registry.MaxAuditLimit)))
	if err != nil {
		return nil, s.c.unavailable(err)
	}
	out := &decoynetv1.ListAuditResponse{}
	for _, e := range entries {
		out.Entries = append(out.Entries, &decoynetv1.AuditEntry{
			Time: e.Time.UnixNano(), Actor: e.Actor, Role: e.Role, Method: e.Method,
			Object: e.Object, Result: e.Result, Detail: e.Detail, Peer: e.Peer,
		})
	}
	return connect.NewResponse(out), nil
}

func timeOf(ns int64) time.Time {
	if ns <= 0 {
		return time.Time{}
	}
	return time.Unix(0, ns)
}

// reader returns where records are read.
func (c *Controller) reader() (Reader, error) {
	if c.cfg.Reader == nil {
		return nil, connect.NewError(connect.CodeUnimplemented, errors.New("this controller has no record to read"))
	}
	return c.cfg.Reader, nil
}

// listing streams what a reader yields: what there is, or with watch also what comes.
type listing[F, T, M any] struct {
	list, watch func(ctx context.Context, f F) iter.Seq2[T, error]
	message     func(*T) *M
}

func (l listing[F, T, M]) stream(ctx context.Context, c *Controller, f F, watch bool, stream *connect.ServerStream[M]) error {
	list := l.list
	if watch {
		list = l.watch
	}
	ctx, end := c.whileAllowed(ctx)
	defer end()
	for v, err := range list(ctx, f) {
		if err != nil {
			return c.streamError(ctx, err)
		}
		if err := send(ctx, stream, l.message(&v)); err != nil {
			return err
		}
	}
	return c.streamError(ctx, nil)
}

// streamError says why a listing ended; nil where it came to its end.
func (c *Controller) streamError(ctx context.Context, err error) error {
	select {
	case <-c.stopping(ctx):
		return errStopping
	default:
	}
	switch {
	case ctx.Err() != nil:
		return connect.NewError(connect.CodeCanceled, errors.New("the caller went away, or its token is not valid any more"))
	case err != nil:
		return c.unavailable(err)
	}
	return nil
}

// parseSource reads an address or a network; empty is none.
func parseSource(s string) (netip.Prefix, error) {
	if s == "" {
		return netip.Prefix{}, nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, connect.NewError(connect.CodeInvalidArgument,
			fmt.Errorf("bad source %q; an address as 192.0.2.10 or a prefix as 192.0.2.0/24", s))
	}
	return p.Masked(), nil
}

// parseSession reads a session's identifier; empty is none.
func parseSession(b []byte) (id deception.SessionID, err error) {
	if len(b) != 0 && len(b) != len(id) {
		return id, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("bad session identifier of %d bytes; its 16, in base64 where it is JSON", len(b)))
	}
	copy(id[:], b)
	return id, nil
}

// ListSessions streams sessions.
func (s adminService) ListSessions(ctx context.Context, req *connect.Request[decoynetv1.ListSessionsRequest], stream *connect.ServerStream[decoynetv1.ListSessionsResponse]) error {
	m := req.Msg
	source, err := parseSource(m.GetSource())
	if err != nil {
		return err
	}
	id, err := parseSession(m.GetId())
	if err != nil {
		return err
	}
	after, err := parseSession(m.GetAfter())
	if err != nil {
		return err
	}
	r, err := s.c.reader()
	if err != nil {
		return err
	}
	return listing[store.Filter, deception.Session, decoynetv1.ListSessionsResponse]{
		r.Sessions, r.Watch, func(v *deception.Session) *decoynetv1.ListSessionsResponse {
			return &decoynetv1.ListSessionsResponse{Session: rpc.EncodeSession(v)}
		},
	}.stream(ctx, s.c, store.Filter{
		ID: id, Since: timeOf(m.GetSince()), Source: source, Segment: m.GetSegment(), Decoy: m.GetDecoy(), Service: m.GetService(),
		Limit: int(m.GetLimit()), Scanner: m.GetScanner(), Unknown: m.GetUnknown(), After: after,
	}, m.GetWatch(), stream)
}

// ListEvents streams events.
func (s adminService) ListEvents(ctx context.Context, req *connect.Request[decoynetv1.ListEventsRequest], stream *connect.ServerStream[decoynetv1.ListEventsResponse]) error {
	m := req.Msg
	r, err := s.c.reader()
	if err != nil {
		return err
	}
	return listing[store.EventFilter, deception.Event, decoynetv1.ListEventsResponse]{
		r.Events, r.WatchEvents, func(v *deception.Event) *decoynetv1.ListEventsResponse {
			return &decoynetv1.ListEventsResponse{Event: rpc.EncodeEvent(v)}
		},
	}.stream(ctx, s.c, store.EventFilter{Since: timeOf(m.GetSince()), Node: m.GetNode(), Limit: int(m.GetLimit())}, m.GetWatch(), stream)
}

// ListProbes streams probes.
func (s adminService) ListProbes(ctx context.Context, req *connect.Request[decoynetv1.ListProbesRequest], stream *connect.ServerStream[decoynetv1.ListProbesResponse]) error {
	m := req.Msg
	source, err := parseSource(m.GetSource())
	if err != nil {
		return err
	}
	r, err := s.c.reader()
	if err != nil {
		return err
	}
	return listing[store.ProbeFilter, deception.Probe, decoynetv1.ListProbesResponse]{
		r.Probes, r.WatchProbes, func(v *deception.Probe) *decoynetv1.ListProbesResponse {
			return &decoynetv1.ListProbesResponse{Probe: rpc.EncodeProbe(v)}
		},
	}.stream(ctx, s.c, store.ProbeFilter{
		Since: timeOf(m.GetSince()), Source: source, Segment: m.GetSegment(), Node: m.GetNode(), Limit: int(m.GetLimit()),
		Scanner: m.GetScanner(), Unknown: m.GetUnknown(),
	}, m.GetWatch(), stream)
}

// ListFindings streams alerts and other findings. Documents are most of what these
// take, so they are left out where nobody asks for them.
func (s adminService) ListFindings(ctx context.Context, req *connect.Request[decoynetv1.ListFindingsRequest], stream *connect.ServerStream[decoynetv1.ListFindingsResponse]) error {
	m := req.Msg
	source, err := parseSource(m.GetSource())
	if err != nil {
		return err
	}
	id, err := parseSession(m.GetSession())
	if err != nil {
		return err
	}
	r, err := s.c.reader()
	if err != nil {
		return err
	}
	return listing[store.FindingFilter, deception.Finding, decoynetv1.ListFindingsResponse]{
		r.Findings, r.WatchFindings, func(v *deception.Finding) *decoynetv1.ListFindingsResponse {
			if !m.GetDocuments() {
				v.Document = nil
			}
			return &decoynetv1.ListFindingsResponse{Finding: rpc.EncodeFinding(v)}
		},
	}.stream(ctx, s.c, store.FindingFilter{
		Since: timeOf(m.GetSince()), Session: id, Source: source, Segment: m.GetSegment(), Decoy: m.GetDecoy(), Service: m.GetService(),
		Node: m.GetNode(), Kind: m.GetKind(), Alerts: m.GetAlerts(), SID: m.GetSid(), Severity: uint8(min(m.GetSeverity(), 255)),
		Scanner: m.GetScanner(), Unknown: m.GetUnknown(), Limit: int(m.GetLimit()),
	}, m.GetWatch(), stream)
}
