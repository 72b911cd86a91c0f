package main

import (
	"context"
	"errors"
	"iter"
	"os"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"decoynet/deception"
	"decoynet/internal/rpc"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"
	"decoynet/internal/store"
)

// record is where sessions and findings are read: this machine's store, or a
// controller's by its API.
type record interface {
	Sessions(ctx context.Context, f store.Filter) iter.Seq2[deception.Session, error]
	Findings(ctx context.Context, f store.FindingFilter) iter.Seq2[deception.Finding, error]
	WatchFindings(ctx context.Context, f store.FindingFilter) iter.Seq2[deception.Finding, error]
	Close() error
}

// recordAccess says which record is read.
type recordAccess struct {
	access
	store string
}

func (a *recordAccess) flags(c *cobra.Command) {
	a.access.flags(c)
	storeFlag(c, &a.store)
	c.MarkFlagsMutuallyExclusive("server", "store")
	c.Flag("server").Usage = "read the record of this controller, as https://hq.example:7443 (or DECOYNET_SERVER), not the one of --data"
}

// open opens the record; documents says whether findings are wanted whole.
func (a *recordAccess) open(documents bool) (record, error) {
	if a.store != "" || a.server == "" && os.Getenv("DECOYNET_SERVER") == "" {
		return openReader(a.data, a.store)
	}
	client, err := a.client()
	if err != nil {
		return nil, err
	}
	return &remoteRecord{client, documents}, nil
}

// remoteRecord is a controller's record.
type remoteRecord struct {
	client    decoynetv1connect.AdminServiceClient
	documents bool
}

func (*remoteRecord) Close() error { return nil }

func (r *remoteRecord) Sessions(ctx context.Context, f store.Filter) iter.Seq2[deception.Session, error] {
	m := &decoynetv1.ListSessionsRequest{
		Segment: f.Segment, Decoy: f.Decoy, Service: f.Service, Scanner: f.Scanner, Unknown: f.Unknown, Limit: uint32(f.Limit),
	}
	if !f.ID.IsZero() {
		m.Id = f.ID[:]
	}
	if !f.After.IsZero() {
		m.After = f.After[:]
	}
	if !f.Since.IsZero() {
		m.Since = f.Since.UnixNano()
	}
	if f.Source.IsValid() {
		m.Source = f.Source.String()
	}
	return received(func() (*connect.ServerStreamForClient[decoynetv1.ListSessionsResponse], error) {
		return r.client.ListSessions(ctx, connect.NewRequest(m))
	}, func(m *decoynetv1.ListSessionsResponse) (deception.Session, error) {
		return rpc.DecodeSession(m.GetSession())
	})
}

func (r *remoteRecord) Findings(ctx context.Context, f store.FindingFilter) iter.Seq2[deception.Finding, error] {
	return r.findings(ctx, f, false)
}

func (r *remoteRecord) WatchFindings(ctx context.Context, f store.FindingFilter) iter.Seq2[deception.Finding, error] {
	return r.findings(ctx, f, true)
}

func (r *remoteRecord) findings(ctx context.Context, f store.FindingFilter, watch bool) iter.Seq2[deception.Finding, error] {
	m := &decoynetv1.ListFindingsRequest{
		Segment: f.Segment, Decoy: f.Decoy, Service: f.Service, Node: f.Node, Kind: f.Kind, Alerts: f.Alerts, Sid: f.SID,
		Severity: uint32(f.Severity), Scanner: f.Scanner, Unknown: f.Unknown, Limit: uint32(f.Limit), Documents: r.documents, Watch: watch,
	}
	if !f.Session.IsZero() {
		m.Session = f.Session[:]
	}
	if !f.Since.IsZero() {
		m.Since = f.Since.UnixNano()
	}
	if f.Source.IsValid() {
		m.Source = f.Source.String()
	}
	return received(func() (*connect.ServerStreamForClient[decoynetv1.ListFindingsResponse], error) {
		return r.client.ListFindings(ctx, connect.NewRequest(m))
	}, func(m *decoynetv1.ListFindingsResponse) (deception.Finding, error) {
		return rpc.DecodeFinding(m.GetFinding())
	})
}

// received yields what a stream of the controller's brings.
func received[M, T any](call func() (*connect.ServerStreamForClient[M], error), read func(*M) (T, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		stream, err := call()
		if err != nil {
			yield(none, refusal(err))
			return
		}
		defer stream.Close()
		for stream.Receive() {
			v, err := read(stream.Msg())
			if !yield(v, err) || err != nil {
				return
			}
		}
		if err := stream.Err(); err != nil && !errors.Is(err, context.Canceled) {
			yield(none, refusal(err))
		}
	}
}
