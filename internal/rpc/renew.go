package rpc

import (
	"context"
	"fmt"
	"time"

	"decoynet/internal/pki"
	"decoynet/internal/rpc/decoynetv1"

	"connectrpc.com/connect"
)

// renewLoop renews the certificate when it is time, also one that expired while
// the machine was off. Nobody else does, so it never ends trying.
func (c *Client) renewLoop(ctx context.Context) {
	failures := 0
	for {
		wait := time.Until(c.cfg.Identity.RenewAt())
		if failures > 0 {
			wait = max(wait, backoff(c.pace.first, c.pace.renew, failures/len(c.controllers())))
		}
		// Not all at once: the clock may be set meanwhile.
		if !sleep(ctx, min(max(wait, 0), time.Minute), nil) {
			return
		}
		if wait > time.Minute {
			continue
		}
		url := c.pick(failures)
		err := c.renew(ctx, url)
		if ctx.Err() != nil {
			return
		}
		text := ""
		if err != nil {
			failures++
			if at, connected := c.current(); !connect.IsWireError(err) && (!connected || at != url) {
				c.watching.drop(url)
			}
			text = fmt.Sprintf("controller %s: %s", url, explain(err))
		} else {
			failures = 0
		}
		c.mu.Lock()
		c.status.RenewErr = text
		c.mu.Unlock()
		c.note(aboutRenewal, text)
	}
}

func (c *Client) renew(ctx context.Context, url string) error {
	csr, err := c.cfg.Identity.Request()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.pace.call, fmt.Errorf("%w for %v", errSilent, c.pace.call))
	defer cancel()
	answer, err := c.watching.to(url).Renew(ctx, connect.NewRequest(&decoynetv1.RenewRequest{Csr: csr}))
	if err != nil {
		return orCause(ctx, err)
	}
	if ca := answer.Msg.GetCa(); len(ca) > 0 && pki.Pin(ca) != c.cfg.Identity.Pin() {
		return fmt.Errorf("the controller has another CA now (%s): enrol this machine again with the command that `decoynet token create` prints", pki.Pin(ca))
	}
	before, _ := c.cfg.Identity.Certificate()
	err = c.cfg.Identity.Update(answer.Msg.GetCertificate())
	if after, expires := c.cfg.Identity.Certificate(); after != before {
		c.log.Info("certificate renewed", "expires", expires)
		// The stream, too, has to show the new one before the old one expires.
		c.mu.Lock()
		close(c.renewed)
		c.renewed = make(chan struct{})
		c.mu.Unlock()
	}
	return err
}
