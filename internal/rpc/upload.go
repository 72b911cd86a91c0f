package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/spool"

	"connectrpc.com/connect"
)

const (
	maxBatchRecords = 2000
	maxBatchBytes   = 1 << 20
)

// uploadLoop delivers what is in the spool. Records leave it only when a controller
// has said that they are committed; where that answer is lost they are delivered
// again, and the controller tells them by their identifiers.
func (c *Client) uploadLoop(ctx context.Context) {
	u := uploader{Client: c, limit: maxBatchRecords}
	for {
		pause, err := u.once(ctx)
		switch {
		case ctx.Err() != nil, errors.Is(err, spool.ErrClosed):
			return
		case err == nil:
			continue
		}
		u.failures++
		c.uploadFailed(err)
		if !sleep(ctx, pause, c.met) {
			return
		}
	}
}

// uploader is what the loop knows.
type uploader struct {
	*Client
	failures int // in a row
	limit    int // records in a batch
	given    int // records given up since something was delivered
}

// once delivers a batch. Where that fails, it returns the pause to make.
func (u *uploader) once(ctx context.Context) (pause time.Duration, err error) {
	batch, err := u.nextBatch(ctx, u.limit)
	if err != nil {
		return backoff(u.pace.first, u.pace.last, u.failures), err
	}
	url := u.pick(u.failures)
	err = u.upload(ctx, url, batch)
	n := len(batch.Records)
	switch code := connect.CodeOf(err); {
	case err == nil:
		u.failures, u.given, u.limit = 0, 0, min(2*u.limit, maxBatchRecords)
		return 0, nil
	case !connect.IsWireError(err):
		u.uploading.drop(url)
	case isDenied(err):
		pause = u.pace.denied/2 + backoff(u.pace.denied, u.pace.denied, 0)
	case code == connect.CodeInvalidArgument && n == 1:
		// One bad record must not hold up all others for ever; but where every
		// record is bad to a controller, the fault is hardly in the records.
		u.giveUp(batch, err)
		if u.given++; u.given == 1 {
			return 0, nil
		}
		pause = u.pace.last
	case code == connect.CodeInvalidArgument:
		u.limit = max(1, n/2) // to find the one that it is about
		return 0, nil
	case code == connect.CodeResourceExhausted:
		u.limit = max(1, n/2)
	}
	if pause == 0 {
		pause = backoff(u.pace.first, u.pace.last, u.failures/len(u.controllers()))
	}
	return pause, fmt.Errorf("controller %s: %s", url, explain(err))
}

// nextBatch waits for records, and a little longer for others to go with them.
func (c *Client) nextBatch(ctx context.Context, limit int) (spool.Batch, error) {
	batch, err := c.cfg.Spool.Next(ctx, limit, maxBatchBytes)
	if err != nil || len(batch.Records) >= limit/2 {
		return batch, err
	}
	if !sleep(ctx, c.pace.gather, nil) {
		return batch, ctx.Err()
	}
	return c.cfg.Spool.Next(ctx, limit, maxBatchBytes)
}

func (c *Client) upload(ctx context.Context, url string, batch spool.Batch) error {
	call, cancel := context.WithTimeoutCause(ctx, c.pace.upload, fmt.Errorf("%w for %v", errSilent, c.pace.upload))
	defer cancel()
	_, err := c.uploading.to(url).Upload(call, connect.NewRequest(&decoynetv1.UploadRequest{Boot: c.cfg.Boot, Records: batch.Records}))
	if err != nil {
		return orCause(call, err)
	}
	if err := c.cfg.Spool.Ack(batch); err != nil && !errors.Is(err, spool.ErrClosed) {
		c.log.Debug("what was delivered will be again after a restart", "error", err) // the spool's state tells too
	}
	c.mu.Lock()
	c.status.Uploaded += uint64(len(batch.Records))
	c.status.LastUpload, c.status.UploadErr = time.Now(), ""
	c.mu.Unlock()
	c.note(aboutUpload, "")
	return nil
}

// giveUp lets a record go that the controller cannot read, so that it does not
// hold up the others for ever.
func (c *Client) giveUp(batch spool.Batch, err error) {
	c.log.Error("a record is given up: the controller cannot read it", "bytes", len(batch.Records[0]), "error", explain(err))
	c.mu.Lock()
	c.status.Refused++
	c.mu.Unlock()
	if err := c.cfg.Spool.Ack(batch); err != nil {
		c.log.Warn("it will be tried again after a restart", "error", err)
	}
}

func (c *Client) uploadFailed(err error) {
	c.mu.Lock()
	c.status.UploadErr = err.Error()
	c.mu.Unlock()
	c.note(aboutUpload, err.Error())
}
