package fleet

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"decoynet/deception"
	"decoynet/internal/pki"
	"decoynet/internal/rpc"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/spool"
)

// version is what the agents say they run.
const version = "bench"

// agent is one simulated node.
type agent struct {
	name     string
	dir      string
	identity *pki.Identity
	spool    *spool.Spool
	recorder *rpc.Recorder
	client   *rpc.Client
	held     atomic.Pointer[string]
}

// newAgent enrols a node.
func newAgent(ctx context.Context, server, token, pin, dir string) (*agent, error) {
	id, err := rpc.Enrol(ctx, rpc.EnrolConfig{URL: server, Token: token, Pin: pin, Dir: dir, Version: version})
	if err != nil {
		return nil, err
	}
	a := &agent{name: id.Node(), dir: dir, identity: id}
	a.held.Store(new(string))
	return a, nil
}

// start lets the node talk to the controller until ctx is done. It takes every
// snapshot for applied at once.
func (a *agent) start(ctx context.Context, work *sync.WaitGroup) (err error) {
	if a.spool, err = spool.Open(spool.Config{Dir: filepath.Join(a.dir, "spool")}); err != nil {
		return fmt.Errorf("open the spool of %s: %w", a.name, err)
	}
	a.recorder = rpc.NewRecorder(a.spool)
	a.client, err = rpc.NewClient(rpc.ClientConfig{
		Identity: a.identity, Spool: a.spool, Dir: a.dir, Version: version, Boot: deception.NewSessionID(time.Now()).String(),
		Held: func() string { return *a.held.Load() },
		Apply: func(_ context.Context, s *decoynetv1.Snapshot) {
			revision := s.GetRevision()
			a.held.Store(&revision)
		},
		Report: func() *decoynetv1.ReportRequest {
			return &decoynetv1.ReportRequest{State: decoynetv1.ReportRequest_STATE_CONVERGED, Revision: *a.held.Load()}
		},
	})
	if err != nil {
		return fmt.Errorf("make the client of %s: %w", a.name, err)
	}
	work.Go(func() { a.client.Run(ctx) })
	return nil
}
