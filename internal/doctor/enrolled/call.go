package enrolled

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"decoynet/internal/outbound"
	"decoynet/internal/pki"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"
)

// controllerURI is the name in a controller's certificate, see package pki.
const controllerURI = "decoynet://controller"

// caller calls controllers.
type caller struct {
	identity *pki.Identity
	own      *outbound.Dialer
	other    *outbound.Dialer // tried where own does not reach anybody; may be nil
	now      func() time.Time
}

// call calls one controller twice: first as a stranger, and whatever the clock
// says, to learn who answers and what time it is there; then as the node.
func (c *caller) call(ctx context.Context, url string) Controller {
	out := Controller{URL: url, Address: addressOf(url)}
	way := c.own
	if out.Stage, out.Err = c.meet(ctx, way, &out); out.Stage == StageReach && c.other != nil {
		seen := out
		if stage, err := c.meet(ctx, c.other, &seen); stage != StageReach {
			out, way = seen, c.other
			out.Stage, out.Err, out.Environment = stage, err, true
		}
	}
	if out.Stage != StageDone {
		return out
	}
	out.Stage, out.Err = c.ask(ctx, way, &out)
	return out
}

// strangerError is that somebody else's certificate was shown.
type strangerError struct {
	issuer     string
	controller bool
}

func (e *strangerError) Error() string { return "a certificate by " + e.issuer + " is shown" }

// meet finds out whether a controller of the node's CA answers, and its time. No
// certificate's time counts in that: where the clock is wrong, all of them are.
func (c *caller) meet(ctx context.Context, way *outbound.Dialer, out *Controller) (Stage, error) {
	cfg := &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Checked in VerifyConnection, on each handshake: the CA is the node's, the
		// name a controller's.
		InsecureSkipVerify: true,
		VerifyConnection:   func(state tls.ConnectionState) error { return c.known(state.PeerCertificates) },
	}
	var stranger *strangerError
	sent := c.now()
	answer, stage, err := call(ctx, way, cfg, out, http.MethodGet, "/healthz", nil)
	trip := c.now().Sub(sent)
	switch {
	case errors.As(err, &stranger):
		out.Stranger, out.OtherController = stranger.issuer, stranger.controller
		return StageTLS, err
	case err != nil:
		return stage, err
	}
	// RFC 9110, section 6.6.1: in whole seconds, cut off.
	if at, err := http.ParseTime(answer.header.Get("Date")); err == nil {
		out.OffsetKnown, out.Slack = true, trip/2+time.Second/2
		out.Offset = sent.Add(trip / 2).Sub(at.Add(time.Second / 2))
	}
	return StageDone, nil
}

func (c *caller) known(chain []*x509.Certificate) error {
	if len(chain) == 0 {
		return pki.ErrNoCertificate
	}
	leaf, ca := chain[0], chain[len(chain)-1]
	controller := len(leaf.URIs) == 1 && leaf.URIs[0].String() == controllerURI
	if pki.Pin(ca.Raw) != c.identity.Pin() || leaf.CheckSignatureFrom(ca) != nil {
		issuer := leaf.Issuer.CommonName
		if issuer == "" {
			issuer = leaf.Issuer.String()
		}
		return &strangerError{issuer, controller}
	}
	if !controller {
		return pki.ErrNotController
	}
	return nil
}

// ask calls as the node, with a request that no controller can read: whether the
// node may call at all it says before that, and it takes it for no sign of life.
// Renewals are what an expired certificate may be used for, too.
func (c *caller) ask(ctx context.Context, way *outbound.Dialer, out *Controller) (Stage, error) {
	answer, stage, err := call(ctx, way, c.identity.ControllerTLS(), out, http.MethodPost, decoynetv1connect.NodeServiceRenewProcedure, []byte("{"))
	if err != nil {
		return stage, err
	}
	var said struct{ Code, Message string }
	if err := json.Unmarshal(answer.body, &said); err != nil || said.Code == "" {
		return StageAnswer, fmt.Errorf("it answers %q, which no controller does", answer.status)
	}
	switch said.Code {
	case "permission_denied", "unauthenticated":
		out.Denied = said.Message
		return StageDenied, errors.New(said.Message)
	case "invalid_argument":
		return StageDone, nil
	}
	return StageAnswer, fmt.Errorf("it answers %q (%s)", said.Message, said.Code)
}

type answer struct {
	status string
	header http.Header
	body   []byte
}

// call makes one request on a connection of its own.
func call(ctx context.Context, way *outbound.Dialer, cfg *tls.Config, out *Controller, method, path string, body []byte) (answer, Stage, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	raw, err := way.DialContext(ctx, "tcp", out.Address)
	if err != nil {
		return answer{}, StageReach, err
	}
	conn := tls.Client(pki.KeepAlert(raw), cfg)
	defer conn.Close()
	if err := conn.HandshakeContext(ctx); err != nil {
		return answer{}, StageTLS, err
	}
	t := &http.Transport{
		DisableKeepAlives: true,
		DialTLSContext:    func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(out.URL, "/")+path, bytes.NewReader(body))
	if err != nil {
		return answer{}, StageReach, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := t.RoundTrip(req)
	if err != nil {
		return answer{}, failedAt(err), err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return answer{}, StageAnswer, err
	}
	return answer{resp.Status, resp.Header, text}, StageDone, nil
}

// failedAt returns the stage at which a request failed. With TLS 1.3 a client is done
// with the handshake before the server has looked at its certificate (RFC 8446,
// section 2): what is wrong with that meets the request.
func failedAt(err error) Stage {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" { // crypto/tls: an alert
		return StageTLS
	}
	return StageAnswer
}
