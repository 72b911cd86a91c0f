// Package fleet simulates many agents in one process: each with the real client,
// certificate and spool of a node, and nothing behind them.
package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"decoynet/internal/pki"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"

	"connectrpc.com/connect"
)

// Config says where the controller is and how many agents there are.
type Config struct {
	Data   string // the controller's data directory, for its word and token
	Store  string // the file of the controller's sessions
	Dir    string // where the agents keep their data
	Agents int
}

// enrolling is how many agents are enrolled at a time.
const enrolling = 8

// callTimeout bounds one call of the controller's API.
const callTimeout = time.Minute

// Fleet is a controller's API and the agents.
type Fleet struct {
	cfg    Config
	server string
	pin    string
	api    decoynetv1connect.AdminServiceClient
	agents []*agent
	work   sync.WaitGroup
	// recorded counts all sessions that were handed to agents.
	recorded uint64
}

// Open finds the controller by what it left in its data directory.
func Open(cfg Config) (*Fleet, error) {
	text, err := os.ReadFile(filepath.Join(cfg.Data, "controller.json"))
	if err != nil {
		return nil, fmt.Errorf("find the controller: %w", err)
	}
	var word struct{ Server, Pin string }
	if err := json.Unmarshal(text, &word); err != nil {
		return nil, fmt.Errorf("read how to reach the controller: %w", err)
	}
	token, err := os.ReadFile(filepath.Join(cfg.Data, "admin.token"))
	if err != nil {
		return nil, fmt.Errorf("find the API token: %w", err)
	}
	transport := &http.Transport{TLSClientConfig: pki.PinnedTLS(word.Pin), ForceAttemptHTTP2: true}
	return &Fleet{
		cfg: cfg, server: word.Server, pin: word.Pin,
		api: decoynetv1connect.NewAdminServiceClient(&http.Client{Transport: transport, Timeout: callTimeout}, word.Server,
			connect.WithInterceptors(bearer(strings.TrimSpace(string(token))))),
	}, nil
}

// bearer puts the API token on every request.
func bearer(token string) connect.UnaryInterceptorFunc {
	return func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
			r.Header().Set("Authorization", "Bearer "+token)
			return next(ctx, r)
		}
	}
}

// Start applies a first document, enrols all agents and starts them. It returns
// how long the enrolment took, and then how long it was until all had converged.
func (f *Fleet) Start(ctx context.Context) (enrolled, converged time.Duration, err error) {
	if _, err := f.apply(ctx, 1); err != nil {
		return 0, 0, err
	}
	f.agents = make([]*agent, f.cfg.Agents)
	start := time.Now()
	if err := f.enrol(ctx); err != nil {
		return 0, 0, err
	}
	enrolled = time.Since(start)
	start = time.Now()
	for _, a := range f.agents {
		if err := a.start(ctx, &f.work); err != nil {
			return enrolled, 0, err
		}
	}
	err = f.await(ctx, nil)
	return enrolled, time.Since(start), err
}

func (f *Fleet) enrol(ctx context.Context) error {
	next := make(chan int, f.cfg.Agents)
	for i := range f.cfg.Agents {
		next <- i
	}
	close(next)
	var mu sync.Mutex // guards errs
	var errs []error
	var all sync.WaitGroup
	for range enrolling {
		all.Go(func() {
			for i := range next {
				a, err := f.enrolOne(ctx, i)
				f.agents[i] = a
				if err != nil {
					mu.Lock()
					errs = append(errs, fmt.Errorf("enrol %s: %w", nodeName(i), err))
					mu.Unlock()
					return
				}
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

func (f *Fleet) enrolOne(ctx context.Context, i int) (*agent, error) {
	token, err := f.api.CreateJoinToken(ctx, connect.NewRequest(&decoynetv1.CreateJoinTokenRequest{
		Node: nodeName(i), Ttl: int64(10 * time.Minute),
	}))
	if err != nil {
		return nil, err
	}
	return newAgent(ctx, f.server, token.Msg.GetToken(), f.pin, filepath.Join(f.cfg.Dir, nodeName(i)))
}

// Apply makes another document the desired state, which changes every agent's
// part, and returns how long it was from the call until all had converged.
func (f *Fleet) Apply(ctx context.Context, version int) (time.Duration, error) {
	before, err := f.nodes(ctx)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if _, err := f.apply(ctx, version); err != nil {
		return 0, err
	}
	err = f.await(ctx, before)
	return time.Since(start), err
}

func (f *Fleet) apply(ctx context.Context, version int) (revision string, err error) {
	answer, err := f.api.Apply(ctx, connect.NewRequest(&decoynetv1.ApplyRequest{
		Document: document(f.cfg.Agents, version), Name: "fleet.yaml",
	}))
	if err != nil {
		return "", fmt.Errorf("apply: %w", err)
	}
	return answer.Msg.GetRevision(), nil
}

// convergeWithin bounds the wait for all agents; lookEvery is how often the
// controller is asked.
const (
	convergeWithin = time.Minute
	lookEvery      = 50 * time.Millisecond
)

// await waits until the controller says of every agent that it has converged,
// on another revision than before.
func (f *Fleet) await(ctx context.Context, before map[string]*decoynetv1.NodeInfo) error {
	ctx, cancel := context.WithTimeout(ctx, convergeWithin)
	defer cancel()
	for {
		nodes, err := f.nodes(ctx)
		if err != nil {
			return err
		}
		left, example := 0, ""
		for _, a := range f.agents {
			n := nodes[a.name]
			if n.GetCondition() == "converged" && n.GetRevisionHeld() == n.GetRevisionWanted() && n.GetRevisionWanted() != before[a.name].GetRevisionWanted() {
				continue
			}
			left++
			example = fmt.Sprintf("%s: %s, holds %s, wanted %s %v", a.name, n.GetCondition(), n.GetRevisionHeld(), n.GetRevisionWanted(), a.client.Status().Err)
		}
		if left == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d agents of %d have not converged: %w; %s", left, len(f.agents), ctx.Err(), example)
		case <-time.After(lookEvery):
		}
	}
}

func (f *Fleet) nodes(ctx context.Context) (map[string]*decoynetv1.NodeInfo, error) {
	answer, err := f.api.ListNodes(ctx, connect.NewRequest(&decoynetv1.ListNodesRequest{}))
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	out := map[string]*decoynetv1.NodeInfo{}
	for _, n := range answer.Msg.GetNodes() {
		out[n.GetName()] = n
	}
	return out, nil
}

// Wait waits until nothing of the agents runs any more; the context that they
// were started with has to be done.
func (f *Fleet) Wait() error {
	f.work.Wait()
	var errs []error
	for _, a := range f.agents {
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		errs = append(errs, a.spool.Close(ctx))
		cancel()
	}
	return errors.Join(errs...)
}

func nodeName(i int) string { return fmt.Sprintf("agent-%03d", i+1) }

// document is one of a gateway and so many agents, each with a decoy of its own
// that is another in every version.
func document(agents, version int) []byte {
	var b strings.Builder
	b.WriteString("nodes:\n  - {name: hq}\n")
	for i := range agents {
		fmt.Fprintf(&b, "  - {name: %s}\n", nodeName(i))
	}
	b.WriteString(`gateways:
  - {name: gw1, node: hq, listen: 10.66.0.2:7444}
zones:
  - {name: linux, node: hq, subnet: 10.88.0.0/24, link: br-linux}
services:
  - {name: web, zone: linux, address: 10.88.0.2, ports: [80, 443]}
  - {name: ssh, zone: linux, address: 10.88.0.3, ports: [22]}
decoys:
`)
	for i := range agents {
		fmt.Fprintf(&b, `  - name: decoy-%03d
    segment: host
    node: %s
    addresses: [any]
    bind:
      - {ports: [80, 443], service: web}
      - {ports: [%d], service: ssh, target: 22}
`, i+1, nodeName(i), 2000+version)
	}
	return []byte(b.String())
}
