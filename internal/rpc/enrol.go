package rpc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"decoynet/internal/outbound"
	"decoynet/internal/pki"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"

	"connectrpc.com/connect"
)

// EnrolConfig is what the command that `decoynet token create` prints holds, and
// where the identity goes.
type EnrolConfig struct {
	URL     string // of a controller
	Token   string
	Pin     string // fingerprint of the controller's CA
	Proxy   string // towards controllers and gateways, empty for none
	Dir     string // data directory
	Version string // of this program
}

const enrolTimeout = 30 * time.Second

// Enrol makes this machine a node and saves what makes it one in the data
// directory. The server must show the pinned CA before anything is sent to it. Its
// errors are for the person at the console; those of a controller that refuses the
// token hold the controller's reason.
func Enrol(ctx context.Context, cfg EnrolConfig) (*pki.Identity, error) {
	pin, err := pki.ParsePin(cfg.Pin)
	if err != nil {
		return nil, err
	}
	dialer, err := outbound.New(cfg.Proxy)
	if err != nil {
		return nil, err
	}
	// The token is good for one time: nothing may fail afterwards that can be
	// known before.
	if err := tryDir(cfg.Dir); err != nil {
		return nil, fmt.Errorf("the identity cannot be saved, so the token was not used: %w", err)
	}
	key, csr, err := pki.NewRequest()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, enrolTimeout, fmt.Errorf("%w for %v", errSilent, enrolTimeout))
	defer cancel()
	t := newTransport(pki.PinnedTLS(pin), dialer.DialContext)
	defer t.CloseIdleConnections()
	client := decoynetv1connect.NewEnrolmentServiceClient(&http.Client{Transport: t}, strings.TrimSuffix(cfg.URL, "/"),
		connect.WithReadMaxBytes(maxMessage))
	answer, err := client.Enrol(ctx, connect.NewRequest(&decoynetv1.EnrolRequest{
		Token: cfg.Token, Csr: csr, Version: cfg.Version, Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}))
	if err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", cfg.URL, &explained{explainEnrol(orCause(ctx, err)), err})
	}
	m := answer.Msg
	if got := pki.Pin(m.GetCa()); got != pin {
		return nil, fmt.Errorf("enrol at %s: the controller handed out the CA %s, pinned is %s", cfg.URL, got, pin)
	}
	urls := m.GetControllers()
	if len(urls) == 0 {
		urls = []string{cfg.URL}
	}
	id, err := pki.NewIdentity(pki.IdentityConfig{
		Key: key, Certificate: m.GetCertificate(), CA: m.GetCa(), Controllers: urls, Proxy: cfg.Proxy,
	})
	if err != nil {
		return nil, fmt.Errorf("enrol at %s: what the controller handed out is unusable: %w", cfg.URL, err)
	}
	if id.Node() != m.GetNode() {
		return nil, fmt.Errorf("enrol at %s: the controller says node %q and certifies %q", cfg.URL, m.GetNode(), id.Node())
	}
	if err := id.Save(cfg.Dir); err != nil {
		return nil, fmt.Errorf("the token is used, but the identity is not saved (make another token): %w", err)
	}
	return id, nil
}

// explained is an error with words for the person at the console.
type explained struct {
	text string
	err  error
}

func (e *explained) Error() string { return e.text }
func (e *explained) Unwrap() error { return e.err }

func explainEnrol(err error) string {
	var answer *connect.Error
	if isDenied(err) && errors.As(err, &answer) {
		return fmt.Sprintf("the controller refuses the token: %s", answer.Message())
	}
	return explain(err)
}

// tryDir finds out whether files can be made in the directory, making it.
func tryDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, "enrol.*")
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 4096))
	return errors.Join(err, f.Close(), os.Remove(f.Name()))
}
