package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"decoynet/deception"
	"decoynet/internal/registry"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"

	"connectrpc.com/connect"
)

// enrolmentService makes machines nodes.
type enrolmentService struct{ c *Controller }

// Enrol exchanges a join token and a certificate request for a certificate.
func (s enrolmentService) Enrol(ctx context.Context, req *connect.Request[decoynetv1.EnrolRequest]) (*connect.Response[decoynetv1.EnrolResponse], error) {
	c, who := s.c, callerOf(ctx)
	if c.refusals.exhausted(time.Now(), who.peer.Addr()) {
		return nil, connect.NewError(connect.CodeResourceExhausted,
			fmt.Errorf("too many refused attempts from %s; try again in a minute", who.peer.Addr()))
	}
	var certificate []byte
	// The enrolment is over in a moment, and half of one would cost the token:
	// who hangs up does not undo it.
	work, cancel := context.WithTimeout(context.WithoutCancel(ctx), databaseTimeout)
	defer cancel()
	secret, err := registry.ParseSecret(registry.JoinSecret, strings.TrimSpace(req.Msg.GetToken()))
	if err != nil {
		return nil, s.refuse(who, "", "this is no join token; paste the whole command that `decoynet token create` printed")
	}
	by := registry.Entry{
		Role: "node", Method: methodName(decoynetv1connect.EnrolmentServiceEnrolProcedure), Peer: who.peer.String(),
		Detail: strings.TrimSpace(req.Msg.GetPlatform() + " " + req.Msg.GetVersion()),
	}
	var signing error
	node, generation, err := c.cfg.Registry.Enrol(work, registry.Enrolment{
		Token: secret, Now: time.Now(), By: by,
		Sign: func(node string, generation uint32) error {
			certificate, signing = c.ca.SignNode(req.Msg.GetCsr(), node, generation, c.cfg.CertificateTTL, time.Now())
			return signing
		},
	})
	switch {
	case err == nil:
	case errors.Is(err, registry.ErrTokenUnknown), errors.Is(err, registry.ErrTokenExpired), errors.Is(err, registry.ErrTokenUsed):
		return nil, s.refuse(who, node, refusalText(err))
	case signing != nil:
		e := entry(who, decoynetv1connect.EnrolmentServiceEnrolProcedure, node)
		e.Result, e.Detail = registry.ResultFailed, signing.Error()
		c.audit(e)
		return nil, connect.NewError(connect.CodeInvalidArgument, signing)
	default:
		return nil, c.unavailable(err)
	}
	c.presence.forget(node) // what was heard was another machine
	if err := c.hub.refresh(work); err != nil {
		c.log.Warn("look at the node that was enrolled", "node", node, "err", err)
	}
	c.log.Info("node enrolled", "node", node, "generation", generation, "peer", who.peer)
	c.event(deception.Event{
		Kind: deception.EventNodeEnrolled, Node: node, Source: who.peer,
		Message: fmt.Sprintf("a machine at %s became node %s (enrolment %d)", who.peer.Addr(), node, generation),
	})
	return connect.NewResponse(&decoynetv1.EnrolResponse{
		Node: node, Certificate: certificate, Ca: c.ca.Certificate().Raw, Controllers: c.urls(),
	}), nil
}

// refuse says no to who shows a bad token, and tells everybody else.
func (s enrolmentService) refuse(who *caller, node, why string) error {
	s.c.refused(who, decoynetv1connect.EnrolmentServiceEnrolProcedure, node, why)
	s.c.event(deception.Event{
		Kind: deception.EventEnrolRefused, Node: node, Source: who.peer,
		Message: fmt.Sprintf("a machine at %s was refused as a node: %s", who.peer.Addr(), why),
	})
	return connect.NewError(connect.CodePermissionDenied, errors.New(why))
}

// refusalText says what was wrong with a token, and what to do.
func refusalText(err error) string {
	why := strings.TrimPrefix(err.Error(), "enrol: ")
	switch {
	case errors.Is(err, registry.ErrTokenUnknown):
		return "the controller knows no such join token: it is mistyped, or of another controller, or long expired; make one with `decoynet token create`"
	case errors.Is(err, registry.ErrTokenUsed):
		return why + ": a token enrols one machine once; make another with `decoynet token create`, and find out who used this one if it was not you"
	}
	return why + "; make another with `decoynet token create`"
}

// unavailable is what callers are told where the registry or the store fails; what
// exactly failed is in the log.
func (c *Controller) unavailable(err error) error {
	if c.ctx.Err() == nil && !errors.Is(err, context.Canceled) {
		c.log.Error("the controller cannot do its work", "err", err)
	}
	return connect.NewError(connect.CodeUnavailable, fmt.Errorf("the controller cannot do that now: %w", err))
}
