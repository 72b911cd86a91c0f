package controller

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"decoynet/controller/openapi"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"

	"connectrpc.com/connect"
	"golang.org/x/net/netutil"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// Bounds of the port.
const (
	headerTimeout = 10 * time.Second // also of the TLS handshake
	bodyTimeout   = time.Minute      // for a request's body
	sendTimeout   = 20 * time.Second // for one message of a stream to be taken
	idleTimeout   = 2 * time.Minute
	shutdownTime  = 3 * time.Second
	// maxConnections is far above any number of nodes, and below what takes the
	// machine's memory.
	maxConnections = 10000
	// Greatest messages. A document in JSON grows by a third (base64).
	maxEnrolBytes = 64 << 10
	maxNodeBytes  = 8 << 20
	maxAdminBytes = 24 << 20
	maxHeader     = 64 << 10
	// uploads is how many are read at the same time: after an hour without a
	// controller every node has much to tell at once.
	uploads = 32
)

// Handler returns the controller's services and three pages that everybody may read:
// the API's description, the CA's certificate (which each handshake shows anyway) and
// the controller's health. It expects TLS with the configuration that Serve uses.
func (c *Controller) Handler() http.Handler {
	services := http.NewServeMux()
	options := func(max int) connect.HandlerOption {
		return connect.WithHandlerOptions(
			connect.WithReadMaxBytes(max),
			connect.WithCodec(strictJSON{"json"}), connect.WithCodec(strictJSON{"json; charset=utf-8"}),
			connect.WithInterceptors(&failures{c}),
			connect.WithRecover(c.recovered),
		)
	}
	services.Handle(decoynetv1connect.NewEnrolmentServiceHandler(enrolmentService{c}, options(maxEnrolBytes)))
	services.Handle(decoynetv1connect.NewNodeServiceHandler(nodeService{c}, options(maxNodeBytes)))
	services.Handle(decoynetv1connect.NewAdminServiceHandler(adminService{c}, options(maxAdminBytes)))

	mux := http.NewServeMux()
	for _, service := range []string{
		decoynetv1connect.EnrolmentServiceName, decoynetv1connect.NodeServiceName, decoynetv1connect.AdminServiceName,
	} {
		mux.Handle("/"+service+"/", c.admit(c.bounded(services)))
	}
	mux.HandleFunc("GET /openapi.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oai.openapi+json;version=3.1")
		_, _ = w.Write(openapi.Document)
	})
	mux.HandleFunc("GET /ca.pem", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/x-pem-file")
		_ = pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: c.ca.Certificate().Raw})
	})
	mux.HandleFunc("GET /healthz", c.health)
	return mux
}

// strictJSON refuses fields that are not in a message. Connect's own codec drops them,
// and with them what somebody who mistyped a name wanted.
type strictJSON struct{ name string }

func (c strictJSON) Name() string { return c.name }

func (strictJSON) Marshal(m any) ([]byte, error) {
	p, ok := m.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is no message", m)
	}
	return protojson.Marshal(p)
}

func (strictJSON) Unmarshal(b []byte, m any) error {
	p, ok := m.(proto.Message)
	if !ok {
		return fmt.Errorf("%T is no message", m)
	}
	if len(b) == 0 {
		return errors.New("an empty body is no JSON object; as {}")
	}
	return protojson.Unmarshal(b, p)
}

// recovered turns a panic of one call into an error of that call.
func (c *Controller) recovered(_ context.Context, spec connect.Spec, _ http.Header, p any) error {
	c.log.Error("a call went wrong in a way that it must not", "method", spec.Procedure, "panic", p)
	return connect.NewError(connect.CodeInternal, errors.New("internal error of the controller; its log says more"))
}

type controlKey struct{}

// bounded gives each call limited time to send its request, and streams the means to
// limit the time for each of their messages.
func (c *Controller) bounded(next http.Handler) http.Handler {
	slots := make(chan struct{}, uploads)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		if r.URL.Path == decoynetv1connect.NodeServiceUploadProcedure {
			select {
			case slots <- struct{}{}:
				defer func() { <-slots }()
			case <-r.Context().Done():
				return
			}
		}
		// In HTTP/1.1 the deadline is the connection's, and would end a stream.
		if r.ProtoMajor >= 2 || !isStream(r.URL.Path) {
			_ = control.SetReadDeadline(time.Now().Add(bodyTimeout))
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), controlKey{}, control)))
		if r.ProtoMajor < 2 {
			_ = control.SetReadDeadline(time.Time{})
			_ = control.SetWriteDeadline(time.Time{})
		}
	})
}

func isStream(path string) bool {
	switch path {
	case decoynetv1connect.NodeServiceWatchProcedure,
		decoynetv1connect.AdminServiceListSessionsProcedure, decoynetv1connect.AdminServiceListEventsProcedure,
		decoynetv1connect.AdminServiceListProbesProcedure, decoynetv1connect.AdminServiceListFindingsProcedure,
		decoynetv1connect.AdminServiceGetPacketsProcedure, decoynetv1connect.NodeServiceSendPacketsProcedure:
		return true
	}
	return false
}

type streamsKey struct{}

// stopping is closed when the call's port is to be closed.
func (c *Controller) stopping(ctx context.Context) <-chan struct{} {
	if streams, ok := ctx.Value(streamsKey{}).(context.Context); ok {
		return streams.Done()
	}
	return c.ctx.Done()
}

// errStopping is what streams end with then.
var errStopping = connect.NewError(connect.CodeUnavailable, errors.New("the controller stops; another one, or this one in a moment, will answer"))

// send sends one message of a stream. A receiver that does not take it within
// sendTimeout loses the stream: what it holds of our memory is bounded.
func send[T any](ctx context.Context, s *connect.ServerStream[T], m *T) error {
	if control, ok := ctx.Value(controlKey{}).(*http.ResponseController); ok {
		_ = control.SetWriteDeadline(time.Now().Add(sendTimeout))
	}
	return s.Send(m)
}

func (c *Controller) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	w.Header().Set("Content-Type", "application/json")
	if err := c.cfg.Registry.Ping(ctx); err != nil {
		c.log.Warn("health", "err", err)
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = fmt.Fprintln(w, `{"status":"the registry does not answer"}`)
		return
	}
	if c.ctx.Err() != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = fmt.Fprintln(w, `{"status":"closing"}`)
		return
	}
	_, _ = fmt.Fprintln(w, `{"status":"ok"}`)
}

// Serve answers calls on the listener, with TLS, until ctx is done or the controller
// closes. Then running calls have a few seconds to end; streams end at once. It
// closes the listener.
func (c *Controller) Serve(ctx context.Context, ln net.Listener) error {
	http2 := &http.HTTP2Config{
		MaxConcurrentStreams:          128,
		MaxReceiveBufferPerConnection: 2 << 20,
		MaxReceiveBufferPerStream:     1 << 20,
		SendPingTimeout:               c.timing.ping,
		PingTimeout:                   c.timing.pong,
		WriteByteTimeout:              sendTimeout,
	}
	// Streams end with the port; other calls have shutdownTime.
	streams, end := context.WithCancel(c.ctx)
	defer end()
	base := context.WithValue(context.Background(), streamsKey{}, streams)
	srv := &http.Server{
		Handler:           c.Handler(),
		TLSConfig:         c.ca.ControllerTLS(c.cfg.URLs),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		HTTP2:             http2,
		BaseContext:       func(net.Listener) context.Context { return base },
		// What strangers cause (failed handshakes, broken frames) is no warning.
		ErrorLog: slog.NewLogLogger(c.log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.ServeTLS(netutil.LimitListener(ln, maxConnections), "", "") }()
	select {
	case err := <-served:
		return fmt.Errorf("serve on %s: %w", ln.Addr(), err)
	case <-ctx.Done():
	case <-c.ctx.Done():
	}
	end()
	// Not ctx, which is done.
	wait, cancel := context.WithTimeout(context.Background(), shutdownTime)
	defer cancel()
	if err := srv.Shutdown(wait); err != nil {
		_ = srv.Close()
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve on %s: %w", ln.Addr(), err)
	}
	return nil
}
