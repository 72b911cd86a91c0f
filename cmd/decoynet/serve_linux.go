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
)

// serve answers `decoynet status` and `decoynet reload` on a socket in the data
// directory, which is for its owner only.
func (n *node) serve() (*http.Server, error) {
	path := socketPath(n.data)
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
		if err := n.reload(context.Background()); err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		fmt.Fprintf(w, "applied revision %s\n", n.status(context.Background()).Revision)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(listener) }() // returns when the server is shut down
	return server, nil
}

// status collects what is really true.
func (n *node) status(ctx context.Context) status {
	n.mu.Lock()
	doc, revision, problem, applied := n.doc, n.revision, n.problem, n.applied
	n.mu.Unlock()
	segments, zones := n.agent.Status(), n.zones.Status(ctx)
	s := status{
		Ready: applied && problem == nil, Revision: revision, Node: doc.State.Node, Version: version,
		PID: os.Getpid(), Started: n.started, Document: n.file,
		Services: n.serviceStatus(), Decoys: decoyStatuses(doc.State.Decoys), Relay: n.relayStatus(), Recording: n.recordingStatus(),
	}
	for _, g := range segments {
		s.Ready = s.Ready && g.Ready
	}
	for _, z := range zones {
		s.Ready = s.Ready && z.Contained
	}
	s.Segments, _ = json.Marshal(segments) // plain structs: cannot fail
	s.Zones, _ = json.Marshal(zones)
	if problem != nil {
		s.Problems = strings.Split(problem.Error(), "\n")
	}
	if r := s.Recording; r.FailingSince != nil {
		s.Problems = append(s.Problems, fmt.Sprintf("sessions cannot be written since %s: %s", r.FailingSince.Format(time.RFC3339), r.LastError))
	}
	return s
}

func (n *node) serviceStatus() []serviceStatus {
	n.mu.Lock()
	services := n.doc.State.Services
	n.mu.Unlock()
	states := n.checker.States()
	ports := map[string][]portStatus{}
	for p, st := range states {
		name := fmt.Sprintf("%d/%s", p.Address.Port(), p.Transport)
		if p.Range {
			name += " (range)"
		}
		ports[p.Service] = append(ports[p.Service], portStatus{
			Port: name, At: p.Address.Addr().String(), Up: st.Up, Since: st.Since, Error: st.Err,
		})
	}
	out := make([]serviceStatus, 0, len(services))
	for _, v := range services {
		list := ports[v.Name]
		slices.SortFunc(list, func(a, b portStatus) int { return strings.Compare(a.At+" "+a.Port, b.At+" "+b.Port) })
		out = append(out, serviceStatus{Name: v.Name, Zone: v.Zone, Ports: list})
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

func (n *node) relayStatus() relayStatus {
	r := n.engine.Stats()
	return relayStatus{
		Flows: r.Active, UDPFlows: r.ActiveUDP, Accepted: r.Accepted, Refused: r.Refused, Overload: r.Overload,
		Retries: r.Retries, MovedPorts: n.gateway.MovedPorts(), Spliced: r.Spliced, Truncated: r.Truncated,
	}
}

func (n *node) recordingStatus() recordingStatus {
	r := n.recorder.Stats()
	out := recordingStatus{
		Queued: r.Queued, Written: r.Written, Lost: r.Lost, LostStarts: r.LostStarts, LostHeads: r.LostHeads,
		FileBytes: r.FileBytes,
	}
	if r.LastError != nil {
		out.LastError = r.LastError.Error()
	}
	if !r.FailingSince.IsZero() {
		out.FailingSince = &r.FailingSince
	}
	return out
}
