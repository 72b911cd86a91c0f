package pump

import (
	"errors"

	"decoynet/deception"
	"decoynet/internal/tunnel"
)

// NewTunnel returns the Stream of a stream of the tunnel. It is no io.Closer:
// closing a tunnel's stream resets it unless everything was said in both
// directions, and a FIN may still be on its way when the pump is done.
func NewTunnel(s *tunnel.Stream) Stream { return tunnelled{s} }

type tunnelled struct{ stream *tunnel.Stream }

func (t tunnelled) Read(b []byte) (int, error) {
	n, err := t.stream.Read(b)
	return n, explained(err)
}

func (t tunnelled) WaitRead() error { return explained(t.stream.WaitRead()) }

func (t tunnelled) Write(b []byte) (int, error) {
	n, err := t.stream.Write(b)
	return n, explained(err)
}

func (t tunnelled) CloseWrite() error { return explained(t.stream.CloseWrite()) }

func (t tunnelled) Reset(reason deception.EndReason) { t.stream.Reset(reason) }

// reasoned is an error of which it is known how the flow ended.
type reasoned struct {
	error
	reason deception.EndReason
}

func (r reasoned) Unwrap() error                  { return r.error }
func (r reasoned) EndReason() deception.EndReason { return r.reason }

// explained says of a reset of the tunnel what its reason was.
func explained(err error) error {
	var reset *tunnel.ResetError
	if errors.As(err, &reset) {
		return reasoned{err, reset.Reason}
	}
	return err
}
