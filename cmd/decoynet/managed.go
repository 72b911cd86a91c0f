package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"decoynet/deception"
	"decoynet/internal/pki"
	"decoynet/internal/rpc"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/spool"
)

// upManaged runs what the controller says, and what it said last while it
// cannot be reached.
func upManaged(ctx context.Context, o upOptions) error {
	if o.store != "" {
		return &exitError{2, errors.New("--store is for the machine of a controller, or for one with a document of its own; this one's sessions go to its controller")}
	}
	identity, err := pki.LoadIdentity(o.data)
	if errors.Is(err, pki.ErrNoIdentity) {
		return &exitError{2, fmt.Errorf("%w; or name a document with -c", err)}
	}
	if err != nil {
		return err
	}
	lock, err := lockData(o.data)
	if err != nil {
		return err
	}
	defer lock.release()
	queue, err := spool.Open(spool.Config{Dir: spoolPath(o.data), Kind: rpc.KindOf})
	if err != nil {
		return fmt.Errorf("open the spool: %w", err)
	}
	n, err := newNode(nodeConfig{
		name: identity.Node(), data: o.data, origin: "the controller", recorder: rpc.NewRecorder(queue),
		recording: spoolStatus(queue), identity: identity, log: o.log,
	})
	if err != nil {
		return errors.Join(err, queue.Close(context.Background()))
	}
	m := &managed{node: n, wants: make(chan desired, 1)}
	if last, err := rpc.LoadSnapshot(o.data); err == nil {
		m.offer(ctx, last)
	} else if !errors.Is(err, rpc.ErrNoSnapshot) {
		o.log.Warn("the last snapshot cannot be used; waiting for the controller", "error", err)
	}
	client, err := rpc.NewClient(rpc.ClientConfig{
		Identity: identity, Spool: queue, Dir: o.data, Version: version, Boot: deception.NewSessionID(time.Now()).String(),
		Held: n.held, Apply: m.offer, Report: n.report, Packets: keptPackets(o.data), Log: o.log,
	})
	if err != nil {
		return errors.Join(err, n.close(context.Background()), queue.Close(context.Background()))
	}
	n.mu.Lock()
	n.uplink = client.Status
	n.mu.Unlock()

	var work sync.WaitGroup
	// The client outlives the node's end for a moment, so that the last sessions
	// and reports get through.
	talking, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	work.Go(func() { client.Run(talking) })
	err = n.run(ctx, source{wants: m.wants, reload: m.reload, applied: client.ReportSoon})
	flush(queue, farewell)
	hangUp()
	work.Wait()
	return errors.Join(err, closeRecords(queue))
}

// farewell bounds the wait for the last records to be acknowledged.
const farewell = 2 * time.Second

// flush waits until the controller has everything, or for so long.
func flush(queue *spool.Spool, d time.Duration) {
	for deadline := time.Now().Add(d); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if queue.Stats().Waiting == 0 {
			return
		}
	}
}

// managed takes snapshots to the node, the newest only.
type managed struct {
	node  *node
	wants chan desired
}

// offer hands a snapshot to the node's loop, in place of one that it has not
// taken yet.
func (m *managed) offer(_ context.Context, s *decoynetv1.Snapshot) {
	want, err := desiredOf(s)
	if err != nil {
		m.node.cfg.log.Error("the controller's snapshot cannot be used; what runs goes on", "revision", s.GetRevision(), "error", err)
		m.node.refuse(err)
		return
	}
	select {
	case <-m.wants:
	default:
	}
	m.wants <- want
}

func (m *managed) reload(context.Context) error {
	return errors.New("this machine is told by its controller what to run: `decoynet apply -f FILE` there")
}

// refuse notes that what is desired cannot be understood.
func (n *node) refuse(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.problem = err
}

// held returns the revision that was applied last.
func (n *node) held() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.now.revision
}

func desiredOf(s *decoynetv1.Snapshot) (desired, error) {
	state, err := rpc.DecodeState(s, version)
	if err != nil {
		return desired{}, err
	}
	want := desired{revision: s.GetRevision(), state: *state, heads: s.GetHeads(), peers: map[string]uint32{}}
	for _, p := range s.GetPeers() {
		want.peers[p.GetNode()] = p.GetGeneration()
	}
	return want, nil
}

func spoolPath(data string) string { return filepath.Join(data, "spool") }

func spoolStatus(q *spool.Spool) func() recordingStatus {
	return func() recordingStatus {
		s := q.Stats()
		lost := &s.DroppedKinds
		out := recordingStatus{
			Queued: s.Queued, Written: s.Written, Waiting: s.Waiting, WaitingBytes: s.WaitingBytes, FileBytes: s.FileBytes,
			Lost: s.Dropped, LostSessions: lost[rpc.KindSession], LostStarts: lost[rpc.KindStart], LostSeen: lost[rpc.KindSourceSeen],
			LostEvents: lost[rpc.KindEvent], LostProbes: lost[rpc.KindProbe], LostFindings: lost[rpc.KindFinding],
			LostUnknown: lost[rpc.KindUnknown],
		}
		if s.LastError != nil {
			out.LastError = s.LastError.Error()
		}
		if !s.FailingSince.IsZero() {
			out.FailingSince = &s.FailingSince
		}
		return out
	}
}

// identityIfAny returns nil on a machine that belongs to no controller.
func identityIfAny(data string) (*pki.Identity, error) {
	identity, err := pki.LoadIdentity(data)
	if errors.Is(err, pki.ErrNoIdentity) {
		return nil, nil
	}
	return identity, err
}
