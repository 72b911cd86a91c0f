package controller

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"decoynet/internal/pki"
	"decoynet/internal/registry"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"

	"connectrpc.com/connect"
)

// role is what an API user may do; each holds what the former may.
type role int

const (
	nobody role = iota
	viewer
	operator
	admin
)

var roleNames = []string{"nobody", "viewer", "operator", registry.RoleAdmin}

func (r role) String() string { return roleNames[r] }

// parseRole returns nobody for a name that is no role.
func parseRole(name string) role {
	for r := viewer; r <= admin; r++ {
		if r.String() == name {
			return r
		}
	}
	return nobody
}

// rule says who may call a method.
type rule struct {
	open    bool // whoever; the request carries its own proof
	node    bool // nodes, by certificate
	expired bool // ... also one that expired a short while ago
	role    role // API users of at least this role
	changes bool // failures are worth an audit entry
}

// rules holds every method that may be called at all. What is not in it is refused,
// a method that somebody adds to the protocol included.
var rules = map[string]rule{
	decoynetv1connect.EnrolmentServiceEnrolProcedure: {open: true},

	decoynetv1connect.NodeServiceWatchProcedure:  {node: true},
	decoynetv1connect.NodeServiceReportProcedure: {node: true},
	decoynetv1connect.NodeServiceUploadProcedure: {node: true},
	decoynetv1connect.NodeServiceRenewProcedure:  {node: true, expired: true},

	decoynetv1connect.NodeServiceSendPacketsProcedure: {node: true},

	decoynetv1connect.AdminServiceDiffProcedure:            {role: viewer},
	decoynetv1connect.AdminServiceApplyProcedure:           {role: operator, changes: true},
	decoynetv1connect.AdminServiceGetDocumentProcedure:     {role: viewer},
	decoynetv1connect.AdminServiceListNodesProcedure:       {role: viewer},
	decoynetv1connect.AdminServiceCreateJoinTokenProcedure: {role: operator, changes: true},
	decoynetv1connect.AdminServiceRevokeNodeProcedure:      {role: operator, changes: true},
	decoynetv1connect.AdminServiceCreateUserProcedure:      {role: admin, changes: true},
	decoynetv1connect.AdminServiceDeleteUserProcedure:      {role: admin, changes: true},
	decoynetv1connect.AdminServiceListUsersProcedure:       {role: admin},
	decoynetv1connect.AdminServiceListAuditProcedure:       {role: admin},
	decoynetv1connect.AdminServiceListSessionsProcedure:    {role: viewer},
	decoynetv1connect.AdminServiceListEventsProcedure:      {role: viewer},
	decoynetv1connect.AdminServiceListProbesProcedure:      {role: viewer},
	decoynetv1connect.AdminServiceListFindingsProcedure:    {role: viewer},
	decoynetv1connect.AdminServiceGetPacketsProcedure:      {role: viewer},
}

// caller is who makes a call.
type caller struct {
	peer netip.AddrPort
	// Of a node: what its certificate says. In the process itself, generation is 0.
	node       string
	generation uint32
	expires    time.Time
	// Of an API user.
	user   string
	role   role
	secret registry.Secret
}

// name is who stands in the audit log.
func (c *caller) name() string {
	switch {
	case c.user != "":
		return c.user
	case c.node != "":
		return c.node
	}
	return c.peer.Addr().String()
}

// roleName is what stands beside it.
func (c *caller) roleName() string {
	switch {
	case c.user != "":
		return c.role.String()
	case c.node != "":
		return "node"
	}
	return ""
}

type callerKey struct{}

// callerOf returns who made the call; admit put it there.
func callerOf(ctx context.Context) *caller {
	c, ok := ctx.Value(callerKey{}).(*caller)
	if !ok {
		return &caller{}
	}
	return c
}

// admit lets calls through to the services that their callers may make, before a
// byte of the request's body is read.
func (c *Controller) admit(next http.Handler) http.Handler {
	errorWriter := connect.NewErrorWriter()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := &caller{peer: peerOf(r)}
		if err := c.identify(r, who); err != nil {
			var e *connect.Error
			if errors.As(err, &e) && e.Code() != connect.CodeUnavailable {
				c.refused(who, r.URL.Path, "", e.Message())
			}
			if errorWriter.IsSupported(r) {
				_ = errorWriter.Write(w, r, err)
				return
			}
			http.Error(w, err.Error(), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, who)))
	})
}

// identify finds out who calls and whether it may. Its errors are *connect.Error.
func (c *Controller) identify(r *http.Request, who *caller) error {
	var cert *x509.Certificate
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		cert = r.TLS.PeerCertificates[0] // verified in the handshake
		var err error
		if who.node, who.generation, err = pki.NodeOf(cert); err != nil {
			return connect.NewError(connect.CodePermissionDenied, err)
		}
		who.expires = cert.NotAfter
	}
	rule, known := rules[r.URL.Path]
	switch {
	case !known:
		return connect.NewError(connect.CodePermissionDenied, errors.New("nobody may call this method"))
	case rule.open:
		return nil
	case rule.node:
		if cert == nil {
			return connect.NewError(connect.CodeUnauthenticated,
				errors.New("this call is for nodes: it takes the certificate that a machine gets when it joins"))
		}
		if pki.Expired(cert, time.Now()) && !rule.expired {
			return connect.NewError(connect.CodePermissionDenied, fmt.Errorf(
				"the certificate of node %s expired at %s; all that it may do is renew it", who.node, cert.NotAfter.UTC().Format(time.RFC3339)))
		}
		return c.nodeAllowed(r.Context(), who)
	}
	return c.userAllowed(r, who, rule.role)
}

func (c *Controller) userAllowed(r *http.Request, who *caller, least role) error {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "bearer") {
		if who.node != "" {
			return connect.NewError(connect.CodePermissionDenied,
				fmt.Errorf("node %s may not call this: it takes an API user's token", who.node))
		}
		return connect.NewError(connect.CodeUnauthenticated,
			errors.New("this call takes an API user's token, as Authorization: Bearer TOKEN"))
	}
	secret, err := registry.ParseSecret(registry.UserSecret, strings.TrimSpace(token))
	if err == nil {
		err = c.lookUp(r.Context(), who, secret)
	}
	switch {
	case errors.Is(err, registry.ErrSecret), errors.Is(err, registry.ErrNoUser):
		return connect.NewError(connect.CodeUnauthenticated, errors.New("the API token is not valid (any more)"))
	case err != nil:
		return connect.NewError(connect.CodeUnavailable, err)
	case who.role < least:
		return connect.NewError(connect.CodePermissionDenied,
			fmt.Errorf("%s may not call this: it takes the role %s, and %s has the role %s", who.user, least, who.user, who.role))
	}
	return nil
}

func (c *Controller) lookUp(ctx context.Context, who *caller, secret registry.Secret) error {
	ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
	defer cancel()
	user, err := c.cfg.Registry.UserOf(ctx, secret)
	if err != nil {
		return err
	}
	who.user, who.role, who.secret = user.Name, parseRole(user.Role), secret
	return nil
}

// whileAllowed returns a context that ends when the user of a long call is deleted,
// or the port closes. The returned function ends it.
func (c *Controller) whileAllowed(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancel(parent)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer cancel()
		tick := time.NewTicker(c.timing.recheck)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-c.stopping(ctx):
				return
			case <-tick.C:
			}
			if err := c.lookUp(ctx, &caller{}, callerOf(ctx).secret); errors.Is(err, registry.ErrNoUser) {
				return
			}
		}
	}()
	return ctx, func() {
		cancel()
		<-ended
	}
}

// nodeAllowed tells whether the certificate is the one that the node has now.
func (c *Controller) nodeAllowed(ctx context.Context, who *caller) error {
	allowed, known := c.nodeStanding(who)
	if !known {
		// Another controller may have enrolled it a moment ago.
		ctx, cancel := context.WithTimeout(ctx, databaseTimeout)
		defer cancel()
		if err := c.hub.refresh(ctx); err != nil {
			return connect.NewError(connect.CodeUnavailable, err)
		}
		allowed, _ = c.nodeStanding(who)
	}
	if allowed != nil {
		return connect.NewError(connect.CodePermissionDenied, allowed)
	}
	return nil
}

// nodeStanding judges by the present plan; known is false where a newer one may judge
// otherwise.
func (c *Controller) nodeStanding(who *caller) (refusal error, known bool) {
	const again = "enrol it again, with the command that `decoynet token create --node %s` prints"
	p := c.hub.node(who.node)
	switch {
	case p == nil || p.enrolled == nil:
		return fmt.Errorf("this controller knows no node %s; "+again, who.node, who.node), false
	case who.generation > p.enrolled.Generation:
		return fmt.Errorf("node %s has a certificate of a generation that is not there yet; "+again, who.node, who.node), false
	case !p.enrolled.Revoked.IsZero():
		return fmt.Errorf("node %s was revoked at %s; "+again, who.node, p.enrolled.Revoked.UTC().Format(time.RFC3339), who.node), true
	case who.generation != p.enrolled.Generation:
		return fmt.Errorf("the certificate of node %s is void since %s, when a machine was enrolled under that name; "+again,
			who.node, p.enrolled.Enrolled.UTC().Format(time.RFC3339), who.node), true
	}
	return nil, true
}

// refused writes a refusal into the audit log. Of very many from one address it
// writes some, which say how many there were.
func (c *Controller) refused(who *caller, path, object, why string) {
	skipped, ok := c.refusals.take(time.Now(), who.peer.Addr())
	if !ok {
		return
	}
	if skipped > 0 {
		why += fmt.Sprintf(" (%d more refusals of calls from this address were not logged before this one)", skipped)
	}
	e := entry(who, path, object)
	e.Result, e.Detail = registry.ResultDenied, why
	c.audit(e)
}

// entry begins an audit entry.
func entry(who *caller, path, object string) registry.Entry {
	e := registry.Entry{Actor: who.name(), Role: who.roleName(), Method: methodName(path), Object: object}
	if who.peer.IsValid() {
		e.Peer = who.peer.String()
	}
	return e
}

// methodName turns /decoynet.v1.AdminService/Apply into AdminService/Apply.
func methodName(path string) string {
	return strings.TrimPrefix(strings.TrimPrefix(path, "/"), "decoynet.v1.")
}

// audit writes an entry that no change of the registry goes with. The caller does not
// learn whether that worked, having been refused or failed already.
func (c *Controller) audit(e registry.Entry) {
	// Not the call's context: who hangs up stands in the log all the same.
	ctx, cancel := context.WithTimeout(context.Background(), databaseTimeout)
	defer cancel()
	if err := c.cfg.Registry.Audit(ctx, e); err != nil {
		c.log.Error("write the audit log", "err", err, "actor", e.Actor, "method", e.Method, "result", e.Result, "detail", e.Detail)
	}
}

func peerOf(r *http.Request) netip.AddrPort {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
