package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"decoynet/deception"
	"decoynet/internal/rpc/decoynetv1"

	"connectrpc.com/connect"
)

// Packets writes what a machine keeps of a session's packets, as a pcap file. A zero
// end stands for a session that runs, or whose end is not known. Where nothing is
// kept, nothing is written and the error says why. capped: the session had reached
// the limit of its packets.
type Packets func(ctx context.Context, id deception.SessionID, start, end time.Time, w io.Writer) (capped bool, err error)

const (
	// maxAsked is how many wishes for packets wait at a node.
	maxAsked = 4
	// sendTime bounds the time that one of them takes.
	sendTime = 10 * time.Minute
	// pieceBytes is how much of a file one message holds.
	pieceBytes = 256 << 10
)

// asked is a wish for packets, and who wants them.
type asked struct {
	url  string
	wish *decoynetv1.PacketsWish
}

// ask notes that a controller wants packets. It never waits: what is too much gets no
// answer, and whoever wants it asks again.
func (c *Client) ask(url string, wish *decoynetv1.PacketsWish) {
	select {
	case c.asked <- asked{url, wish}:
	default:
		c.log.Warn("packets are asked for faster than they can be sent; one wish is left out")
	}
}

// packetsLoop sends packets that are wanted, of one session at a time.
func (c *Client) packetsLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-c.asked:
			if err := c.sendPackets(ctx, a); err != nil && ctx.Err() == nil {
				c.log.Warn("send the packets of a session to the controller", "error", explain(err))
			}
		}
	}
}

// sendPackets answers a wish.
func (c *Client) sendPackets(ctx context.Context, a asked) error {
	ctx, cancel := context.WithTimeoutCause(ctx, sendTime, fmt.Errorf("%w within %v", errSilent, sendTime))
	defer cancel()
	w := &pieces{stream: c.sending.to(a.url).SendPackets(ctx), wish: a.wish.GetId()}
	capped, err := c.packets(ctx, a.wish, w)
	last := &decoynetv1.SendPacketsRequest{Wish: a.wish.GetId(), Capped: capped}
	switch {
	case w.err != nil: // the answer says why
	case err != nil:
		last.Missing = validText(err.Error())
		_ = w.stream.Send(last) // likewise
	default:
		_ = w.stream.Send(last)
	}
	if _, err := w.stream.CloseAndReceive(); err != nil && connect.CodeOf(err) != connect.CodeAborted {
		return orCause(ctx, err)
	}
	return nil // aborted: nobody waits for it any more
}

func (c *Client) packets(ctx context.Context, m *decoynetv1.PacketsWish, w io.Writer) (capped bool, err error) {
	if len(m.GetSession()) != len(deception.SessionID{}) {
		return false, errors.New("the wish names no session")
	}
	if c.cfg.Packets == nil {
		return false, errors.New("this machine keeps no packets")
	}
	end := time.Time{}
	if m.GetEnd() != 0 {
		end = time.Unix(0, m.GetEnd())
	}
	return c.cfg.Packets(ctx, deception.SessionID(m.GetSession()), time.Unix(0, m.GetStart()), end, w)
}

// pieces sends a file in messages.
type pieces struct {
	stream *connect.ClientStreamForClient[decoynetv1.SendPacketsRequest, decoynetv1.SendPacketsResponse]
	wish   []byte
	err    error
}

func (p *pieces) Write(b []byte) (n int, err error) {
	for part := range slices.Chunk(b, pieceBytes) {
		if p.err = p.stream.Send(&decoynetv1.SendPacketsRequest{Wish: p.wish, Data: part}); p.err != nil {
			return n, p.err
		}
		n += len(part)
	}
	return n, nil
}
