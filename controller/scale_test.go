package controller

import (
	"context"
	"fmt"
	"testing"
	"time"

	"decoynet/internal/pki"
	"decoynet/internal/registry"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"

	"connectrpc.com/connect"
)

// Many nodes, each with a connection of its own, converge together.
func TestManyNodesConverge(t *testing.T) {
	const nodes = 200
	slow := usualTiming
	slow.grace = time.Hour
	slow.lostAfter = time.Hour // these nodes report when they have something new only
	s := newSite(t, options{timing: &slow})
	s.apply(t, manyNodes(nodes, 80))
	ctx, cancel := context.WithCancel(context.Background())
	var running []chan struct{}
	defer func() {
		cancel()
		for _, done := range running {
			<-done
		}
	}()
	for i := range nodes {
		id := enrolled(t, s, fmt.Sprintf("n%d", i))
		c := s.node(t, id)
		done := make(chan struct{})
		running = append(running, done)
		go func() {
			defer close(done)
			obey(ctx, c)
		}()
	}
	if err := s.refresh(within(t)); err != nil {
		t.Fatal(err)
	}
	converged := func() bool {
		time.Sleep(50 * time.Millisecond) // leave the processors to the nodes
		list, err := s.Controller.nodes(within(t), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range list {
			if n.GetName() != "hq" && n.GetCondition() != conditionConverged {
				return false
			}
		}
		return true
	}
	eventually(t, "all nodes converge for the first time", converged)
	begun := time.Now()
	s.apply(t, manyNodes(nodes, 8080))
	eventually(t, "all nodes converge", converged)
	t.Logf("%d nodes converged %v after apply", nodes, time.Since(begun))
}

// enrolled makes a node the short way: in the registry and in memory.
func enrolled(t testing.TB, s *site, node string) *pki.Identity {
	t.Helper()
	generation, err := s.cfg.Registry.EnrolLocal(within(t), node, func(uint32) error { return nil }, registry.Entry{})
	if err != nil {
		t.Fatal(err)
	}
	return identity(t, s, node, generation)
}

// obey is a node that does what it is told, and says so. As a real one, it begins anew
// where a connection fails.
func obey(ctx context.Context, c decoynetv1connect.NodeServiceClient) {
	for ctx.Err() == nil {
		obeyOnce(ctx, c)
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func obeyOnce(ctx context.Context, c decoynetv1connect.NodeServiceClient) {
	stream, err := c.Watch(ctx, connect.NewRequest(&decoynetv1.WatchRequest{}))
	if err != nil {
		return
	}
	defer stream.Close()
	for stream.Receive() {
		s := stream.Msg().GetSnapshot()
		if s == nil {
			continue
		}
		if _, err := c.Report(ctx, connect.NewRequest(&decoynetv1.ReportRequest{
			Revision: s.GetRevision(), State: decoynetv1.ReportRequest_STATE_CONVERGED,
		})); err != nil {
			return
		}
	}
}
