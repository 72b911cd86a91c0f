package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"decoynet/deception"
	"decoynet/internal/rpc"
	"decoynet/internal/rpc/decoynetv1"
)

// serve answers `decoynet status` and `decoynet reload` on a socket in the data
// directory, which is for its owner only.
func (n *node) serve(reload func(context.Context) error) (*http.Server, error) {
	path := socketPath(n.cfg.data)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the last run's status socket: %w", err)
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open status socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect status socket: %w", err), listener.Close())
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		_ = encoder.Encode(n.status(r.Context())) // the client may have gone
	})
	mux.HandleFunc("POST /reload", func(w http.ResponseWriter, _ *http.Request) {
		// Not the request's context: a reload is not left half done because
		// somebody pressed Ctrl-C.
		if err := reload(context.Background()); err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		fmt.Fprintf(w, "applied revision %s\n", n.status(context.Background()).Revision)
	})
	mux.HandleFunc("POST /rules/reload", func(w http.ResponseWriter, r *http.Request) {
		report, err := n.local.reloadRules(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(report) // the client may have gone
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(listener) }() // returns when the server is shut down
	return server, nil
}

// status collects what is really true.
func (n *node) status(ctx context.Context) status {
	n.mu.Lock()
	now, problem, applied, uplink := n.now, n.problem, n.applied, n.uplink
	n.mu.Unlock()
	s := status{
		Ready: applied && problem == nil, Revision: now.revision, Node: n.cfg.name, Version: version,
		PID: os.Getpid(), Started: n.started, Document: n.cfg.origin,
		Segments: emptyList, Zones: emptyList, Services: []serviceStatus{},
		Decoys: decoyStatuses(ownDecoys(&now.state)), Recording: n.cfg.recording(),
		Listen: n.listen.Status(), Carried: n.courier.Status(),
	}
	n.local.status(ctx, &s)
	if n.links != nil {
		for _, l := range n.links.Status() {
			s.Gateways = append(s.Gateways, linkStatus{
				Name: l.Gateway, Address: l.Address, Connected: l.Connected, RoundTripMillis: float64(l.RoundTrip) / 1e6, Flows: l.Streams, Error: l.Err,
			})
		}
	}
	if uplink != nil {
		u := uplink()
		s.Controller = controllerStatusOf(u)
		if !u.Connected && u.Err != "" {
			s.Problems = append(s.Problems, "controller: "+u.Err)
		}
		s.Problems = append(s.Problems, u.Problems()...)
	}
	if problem != nil {
		s.Problems = append(s.Problems, strings.Split(problem.Error(), "\n")...)
	}
	s.addProblems()
	return s
}

// addProblems puts what the parts say is wrong where a person looks first. What
// hinders the work also takes the node's readiness.
func (s *status) addProblems() {
	if r := s.Recording; r.FailingSince != nil {
		s.Problems = append(s.Problems, fmt.Sprintf("sessions cannot be written since %s: %s", r.FailingSince.Format(time.RFC3339), r.LastError))
	}
	connected := len(s.Gateways) == 0
	for _, g := range s.Gateways {
		connected = connected || g.Connected
		if !g.Connected {
			s.Problems = append(s.Problems, fmt.Sprintf("gateway %s at %s: %s", g.Name, g.Address, g.Error))
		}
	}
	s.Ready = s.Ready && connected
	s.Problems = append(s.Problems, s.Listen.Problems...)
}

var emptyList = json.RawMessage("[]")

// ownDecoys leaves out what a gateway knows of other nodes.
func ownDecoys(s *deception.State) []deception.Decoy {
	return slices.DeleteFunc(slices.Clone(s.Decoys), func(d deception.Decoy) bool { return d.Node != "" && d.Node != s.Node })
}

func controllerStatusOf(u rpc.Status) *controllerStatus {
	c := &controllerStatus{
		URL: u.URL, Connected: u.Connected, Error: u.Err, RoundTripMillis: float64(u.RoundTrip) / 1e6, ClockOffsetSeconds: u.ClockOffset.Seconds(),
	}
	if !u.Since.IsZero() {
		c.Since = &u.Since
	}
	if !u.CertificateExpires.IsZero() {
		c.CertificateExpires = &u.CertificateExpires
	}
	return c
}

// report is the status in the controller's terms.
func (n *node) report() *decoynetv1.ReportRequest {
	s := n.status(context.Background())
	n.mu.Lock()
	broken := n.broken
	n.mu.Unlock()
	r := &decoynetv1.ReportRequest{
		Version: version, Platform: platform, Revision: s.Revision, Problems: s.Problems,
		State: decoynetv1.ReportRequest_STATE_CONVERGED, Addresses: machineAddresses(),
		Spool: &decoynetv1.Spool{Waiting: s.Recording.Waiting, WaitingBytes: s.Recording.WaitingBytes, Dropped: s.Recording.Lost},
		Flows: uint64(max(0, s.Relay.Flows)) + uint64(s.Carried.Flows),
	}
	switch {
	case !s.Ready && broken:
		r.State = decoynetv1.ReportRequest_STATE_DRIFTED
	case !s.Ready || len(s.Listen.Problems) > 0:
		r.State = decoynetv1.ReportRequest_STATE_FAILED
	}
	for _, g := range s.Gateways {
		r.Gateways = append(r.Gateways, &decoynetv1.GatewayLink{
			Name: g.Name, Connected: g.Connected, RoundTrip: int64(g.RoundTripMillis * 1e6), Error: g.Error,
		})
	}
	r.Status, _ = json.Marshal(s) // plain structs: cannot fail
	return r
}

// machineAddresses are those that others may see this machine at.
func machineAddresses() []string {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	var out []string
	for _, a := range all {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() {
			out = append(out, ip.IP.String())
		}
	}
	return out
}

func decoyStatuses(decoys []deception.Decoy) []decoyStatus {
	out := make([]decoyStatus, 0, len(decoys))
	for _, d := range decoys {
		st := decoyStatus{Name: d.Name, Segment: d.Segment, Path: string(d.Path)}
		for _, r := range d.Addresses {
			st.Addresses = append(st.Addresses, r.String())
			st.Count += r.Len()
		}
		if d.Any {
			st.Addresses = append(st.Addresses, "any")
		}
		for _, b := range d.Bind {
			for _, p := range b.Ports {
				st.Ports = append(st.Ports, p.String())
			}
			if !slices.Contains(st.Services, b.Service) {
				st.Services = append(st.Services, b.Service)
			}
		}
		out = append(out, st)
	}
	return out
}
