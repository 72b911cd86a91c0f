package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"decoynet/internal/outbound"
	"decoynet/internal/pki"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"
)

// access says how the controller is reached: by flags, by the environment, or,
// on the controller's own machine, by what it left in its data directory.
type access struct {
	data, server, pin, tokenFile, proxy string
}

// accessFile is where a controller leaves word for the commands on its machine.
const accessFile = "controller.json"

// accessWord is the content of accessFile.
type accessWord struct {
	Server string `json:"server"` // URL
	Pin    string `json:"pin"`    // of the CA's certificate
}

// adminTokenFile holds the token of the first API user.
const adminTokenFile = "admin.token"

func (a *access) flags(c *cobra.Command) {
	dataFlag(c, &a.data)
	f := c.Flags()
	f.StringVar(&a.server, "server", "", "the controller, as https://hq.example:7443 (or DECOYNET_SERVER; default: the one of --data)")
	f.StringVar(&a.pin, "pin", "", "fingerprint of the controller's CA, as sha256:... (or DECOYNET_PIN)")
	f.StringVar(&a.tokenFile, "token-file", "", "file with the API token (or the token itself in DECOYNET_TOKEN)")
	f.StringVar(&a.proxy, "proxy", "", "HTTP proxy on the way, as http://user:password@proxy:3128 (or HTTPS_PROXY)")
}

// client returns a client of the controller's API.
func (a *access) client() (decoynetv1connect.AdminServiceClient, error) {
	server, pin, token, err := a.resolve()
	if err != nil {
		return nil, &exitError{2, err}
	}
	proxy := a.proxy
	if proxy == "" {
		proxy = outbound.FromEnvironment(server)
	}
	dialer, err := outbound.New(proxy)
	if err != nil {
		return nil, &exitError{2, err}
	}
	if pin, err = pki.ParsePin(pin); err != nil {
		return nil, &exitError{2, err}
	}
	transport := &http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: pki.PinnedTLS(pin),
		ForceAttemptHTTP2: true, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: time.Minute,
	}
	return decoynetv1connect.NewAdminServiceClient(
		&http.Client{Transport: transport}, server, connect.WithInterceptors(bearer(token)),
	), nil
}

// resolve finds out where the controller is and who asks.
func (a *access) resolve() (server, pin, token string, err error) {
	server, pin = a.server, a.pin
	if server == "" {
		server = os.Getenv("DECOYNET_SERVER")
	}
	if pin == "" {
		pin = os.Getenv("DECOYNET_PIN")
	}
	if server == "" || pin == "" {
		word, err := a.localWord()
		if err != nil {
			return "", "", "", err
		}
		if server == "" {
			server = word.Server
		}
		if pin == "" {
			pin = word.Pin
		}
	}
	token, err = a.token()
	return strings.TrimSuffix(server, "/"), pin, token, err
}

func (a *access) localWord() (word accessWord, err error) {
	path := filepath.Join(a.data, accessFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return word, fmt.Errorf("no controller has run on data directory %s; name it with --data, or name another machine's with --server, --pin and --token-file", a.data)
	}
	if err != nil {
		return word, fmt.Errorf("read how to reach the controller: %w", err)
	}
	if err := json.Unmarshal(text, &word); err != nil {
		return word, fmt.Errorf("read %s: %w; the controller writes it anew at its start", path, err)
	}
	return word, nil
}

func (a *access) token() (string, error) {
	path := a.tokenFile
	if path == "" {
		if token := os.Getenv("DECOYNET_TOKEN"); token != "" {
			return token, nil
		}
		path = filepath.Join(a.data, adminTokenFile)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read the API token: %w; name its file with --token-file", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// bearer puts the API token on every request.
type bearer string

func (b bearer) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		r.Header().Set("Authorization", "Bearer "+string(b))
		return next(ctx, r)
	}
}

func (b bearer) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		conn := next(ctx, spec)
		conn.RequestHeader().Set("Authorization", "Bearer "+string(b))
		return conn
	}
}

func (b bearer) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// refusal turns the controller's answer into words for the console.
func refusal(err error) error {
	if err == nil {
		return nil
	}
	var e *connect.Error
	if !errors.As(err, &e) {
		return errors.New(pki.Explain(err))
	}
	switch e.Code() {
	case connect.CodeUnavailable, connect.CodeUnknown, connect.CodeDeadlineExceeded:
		if cause := errors.Unwrap(e); cause != nil {
			return fmt.Errorf("reach the controller: %s", pki.Explain(cause))
		}
	case connect.CodeInvalidArgument:
		return &exitError{2, errors.New(e.Message())}
	}
	return errors.New(e.Message())
}
