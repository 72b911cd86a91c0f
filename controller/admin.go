package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"decoynet/config"
	"decoynet/deception"
	"decoynet/internal/registry"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"

	"connectrpc.com/connect"
)

// Lifetimes of join tokens.
const (
	defaultTokenTTL = 10 * time.Minute
	maxTokenTTL     = 7 * 24 * time.Hour
)

// adminService is what people and scripts ask. Who may ask what is in access.go.
type adminService struct{ c *Controller }

// Diff shows what a document would change.
func (s adminService) Diff(ctx context.Context, req *connect.Request[decoynetv1.DiffRequest]) (*connect.Response[decoynetv1.DiffResponse], error) {
	document, err := parseRequest(req.Msg.GetName(), req.Msg.GetDocument())
	if err != nil {
		return nil, err
	}
	if err := s.c.refresh(ctx); err != nil {
		return nil, err
	}
	now := s.c.hub.present()
	return connect.NewResponse(&decoynetv1.DiffResponse{Changes: changes(now.document, document), Revision: now.revision}), nil
}

// Apply makes a document the desired state.
func (s adminService) Apply(ctx context.Context, req *connect.Request[decoynetv1.ApplyRequest]) (*connect.Response[decoynetv1.ApplyResponse], error) {
	by := entry(callerOf(ctx), decoynetv1connect.AdminServiceApplyProcedure, "")
	revision, changed, err := s.c.apply(ctx, req.Msg.GetName(), req.Msg.GetDocument(), req.Msg.GetExpectRevision(), by)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&decoynetv1.ApplyResponse{Revision: revision, Changes: changed}), nil
}

// parseRequest reads a document that somebody sent. What is wrong with it comes back
// whole, one fault a line.
func parseRequest(name string, source []byte) (*config.Document, error) {
	document, err := parse(name, source)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	return document, nil
}

// apply makes the document the desired state. Its errors are *connect.Error.
func (c *Controller) apply(ctx context.Context, name string, source []byte, expect string, by registry.Entry) (revision string, changed []*decoynetv1.Change, err error) {
	document, err := parseRequest(name, source)
	if err != nil {
		return "", nil, err
	}
	if err := c.refresh(ctx); err != nil {
		return "", nil, err
	}
	before := c.hub.present()
	changed = changes(before.document, document)
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	by.Detail = summary(changed)
	machine := ""
	if len(document.State.Nodes) == 0 {
		machine = document.State.Node
	}
	stored, err := c.cfg.Registry.Apply(ctx, registry.Document{Name: name, Source: source, Machine: machine}, expect, by)
	switch {
	case errors.Is(err, registry.ErrRevision):
		return "", nil, connect.NewError(connect.CodeAborted, fmt.Errorf("%w; look at `decoynet diff` and apply again", err))
	case err != nil:
		return "", nil, c.unavailable(err)
	}
	if err := c.refresh(ctx); err != nil {
		c.log.Warn("look at the document that was applied", "err", err) // hub.follow tries again
	}
	if stored.Revision != before.revision {
		c.log.Info("document applied", "revision", stored.Revision, "by", by.Actor)
		c.event(deception.Event{
			Kind:    deception.EventApplied,
			Message: fmt.Sprintf("%s applied document %s: %s", by.Actor, stored.Revision, by.Detail),
		})
	}
	return stored.Revision, changed, nil
}

// summary counts changes.
func summary(changes []*decoynetv1.Change) string {
	nodes := map[string]bool{}
	for _, c := range changes {
		nodes[c.GetNode()] = true
	}
	if len(changes) == 0 {
		return "nothing changes on any node"
	}
	return fmt.Sprintf("%d changes on %d nodes", len(changes), len(nodes))
}

// refresh looks at the registry now rather than in a moment.
func (c *Controller) refresh(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	if err := c.hub.refresh(ctx); err != nil {
		return c.unavailable(err)
	}
	return nil
}

// GetDocument returns the document that is the desired state.
func (s adminService) GetDocument(ctx context.Context, _ *connect.Request[decoynetv1.GetDocumentRequest]) (*connect.Response[decoynetv1.GetDocumentResponse], error) {
	d, err := s.c.cfg.Registry.Document(ctx)
	switch {
	case errors.Is(err, registry.ErrNoDocument):
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("%w; `decoynet apply -f FILE` does", err))
	case err != nil:
		return nil, s.c.unavailable(err)
	}
	return connect.NewResponse(&decoynetv1.GetDocumentResponse{
		Document: d.Source, Revision: d.Revision, AppliedBy: d.AppliedBy, AppliedAt: d.AppliedAt.UnixNano(),
	}), nil
}

// CreateJoinToken makes a single-use token for a node to enrol with. The node is one
// of the document's; before there is a document of several machines, any name will do,
// so that machines can be enrolled first.
func (s adminService) CreateJoinToken(ctx context.Context, req *connect.Request[decoynetv1.CreateJoinTokenRequest]) (*connect.Response[decoynetv1.CreateJoinTokenResponse], error) {
	c, node := s.c, req.Msg.GetNode()
	ttl := time.Duration(cmp.Or(req.Msg.GetTtl(), int64(defaultTokenTTL)))
	switch {
	case !nodeName.MatchString(node) || len(node) > maxNameBytes:
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("bad node name %q; a host name, as crm-1", node))
	case ttl <= 0 || ttl > maxTokenTTL:
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("a join token cannot last %v; up to 7 days", ttl))
	}
	if err := c.refresh(ctx); err != nil {
		return nil, err
	}
	if d := c.hub.present().document; d != nil && len(d.State.Nodes) > 0 && !slices.Contains(documentNodes(&d.State), node) {
		return nil, connect.NewError(connect.CodeFailedPrecondition,
			fmt.Errorf("the document names no node %s; add it to the document's nodes and apply that first (its nodes: %s)", node, some(documentNodes(&d.State))))
	}
	secret := registry.NewSecret(registry.JoinSecret)
	expires := time.Now().Add(ttl)
	by := entry(callerOf(ctx), decoynetv1connect.AdminServiceCreateJoinTokenProcedure, node)
	by.Detail = "token " + secret.ID + ", until " + expires.UTC().Format(time.RFC3339)
	if err := c.cfg.Registry.CreateToken(ctx, node, expires, secret, by); err != nil {
		return nil, c.unavailable(err)
	}
	return connect.NewResponse(&decoynetv1.CreateJoinTokenResponse{
		Token: secret.Text, Pin: c.ca.Pin(), Controllers: c.urls(), Expires: expires.UnixNano(),
		Command: fmt.Sprintf("decoynet join %s --token %s --pin %s", c.cfg.URLs[0], secret.Text, c.ca.Pin()),
	}), nil
}

// some lists a few of many names.
func some(names []string) string {
	if len(names) > 10 {
		return strings.Join(names[:10], ", ") + fmt.Sprintf(" and %d more", len(names)-10)
	}
	return strings.Join(names, ", ")
}

// maxNameBytes is that of a host name (RFC 1035, section 2.3.4).
const maxNameBytes = 253

// nodeName is a host name (RFC 1123), as in the document.
var nodeName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)

// RevokeNode cuts a node off.
func (s adminService) RevokeNode(ctx context.Context, req *connect.Request[decoynetv1.RevokeNodeRequest]) (*connect.Response[decoynetv1.RevokeNodeResponse], error) {
	c, node := s.c, req.Msg.GetNode()
	by := entry(callerOf(ctx), decoynetv1connect.AdminServiceRevokeNodeProcedure, node)
	err := c.cfg.Registry.Revoke(ctx, node, time.Now(), by)
	switch {
	case errors.Is(err, registry.ErrNoNode):
		return nil, connect.NewError(connect.CodeNotFound, err)
	case err != nil:
		return nil, c.unavailable(err)
	}
	// The new plan ends the node's streams and tells the ingress gateways.
	if err := c.refresh(ctx); err != nil {
		c.log.Warn("look at the node that was revoked", "node", node, "err", err)
	}
	c.presence.forget(node)
	c.log.Info("node revoked", "node", node, "by", by.Actor)
	c.event(deception.Event{
		Kind: deception.EventNodeRevoked, Node: node,
		Message: fmt.Sprintf("%s revoked node %s; it takes a new join token to come back", by.Actor, node),
	})
	return connect.NewResponse(&decoynetv1.RevokeNodeResponse{}), nil
}

// userName allows for names of people, scripts and machines.
var userName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$`)

// CreateUser makes an API user and returns its token.
func (s adminService) CreateUser(ctx context.Context, req *connect.Request[decoynetv1.CreateUserRequest]) (*connect.Response[decoynetv1.CreateUserResponse], error) {
	name, role := req.Msg.GetName(), parseRole(req.Msg.GetRole())
	switch {
	case !userName.MatchString(name):
		return nil, connect.NewError(connect.CodeInvalidArgument,
			fmt.Errorf("bad user name %q; letters, digits, dots, dashes, underscores and @, at most 64", name))
	case role == nobody:
		return nil, connect.NewError(connect.CodeInvalidArgument,
			fmt.Errorf("unknown role %q; viewer, operator or admin", req.Msg.GetRole()))
	}
	secret := registry.NewSecret(registry.UserSecret)
	by := entry(callerOf(ctx), decoynetv1connect.AdminServiceCreateUserProcedure, name)
	by.Detail = "role " + role.String()
	err := s.c.cfg.Registry.CreateUser(ctx, name, role.String(), secret, by)
	switch {
	case errors.Is(err, registry.ErrUserExists):
		return nil, connect.NewError(connect.CodeAlreadyExists, err)
	case err != nil:
		return nil, s.c.unavailable(err)
	}
	return connect.NewResponse(&decoynetv1.CreateUserResponse{Token: secret.Text}), nil
}

// DeleteUser makes a user's token void.
func (s adminService) DeleteUser(ctx context.Context, req *connect.Request[decoynetv1.DeleteUserRequest]) (*connect.Response[decoynetv1.DeleteUserResponse], error) {
	by := entry(callerOf(ctx), decoynetv1connect.AdminServiceDeleteUserProcedure, req.Msg.GetName())
	err := s.c.cfg.Registry.DeleteUser(ctx, req.Msg.GetName(), by)
	switch {
	case errors.Is(err, registry.ErrNoUser):
		return nil, connect.NewError(connect.CodeNotFound, err)
	case errors.Is(err, registry.ErrLastAdmin):
		return nil, connect.NewError(connect.CodeFailedPrecondition, err)
	case err != nil:
		return nil, s.c.unavailable(err)
	}
	return connect.NewResponse(&decoynetv1.DeleteUserResponse{}), nil
}

// failures is the interceptor that writes failed changes into the audit log; those
// that succeed are written with the change itself, refusals by admit.
type failures struct{ c *Controller }

// WrapUnary sees every call that is no stream.
func (f *failures) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		res, err := next(ctx, req)
		if err != nil && rules[req.Spec().Procedure].changes {
			e := entry(callerOf(ctx), req.Spec().Procedure, objectOf(req.Any()))
			e.Result, e.Detail = registry.ResultFailed, err.Error()
			f.c.audit(e)
		}
		return res, err
	}
}

// WrapStreamingClient is for clients only.
func (f *failures) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler leaves streams alone: none changes anything, and GetPackets
// writes its own entry.
func (f *failures) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// objectOf says what a request would have changed.
func objectOf(m any) string {
	switch m := m.(type) {
	case interface{ GetNode() string }:
		return m.GetNode()
	case interface{ GetName() string }:
		return m.GetName()
	}
	return ""
}
