package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"

	"decoynet/config"
	"decoynet/deception"
	"decoynet/internal/doctor"
	"decoynet/internal/suricata"
)

// kernelChecks looks at the kernel's roles of this machine: those of the document,
// or of the decoynet that runs; without either, at the machine only.
func kernelChecks(ctx context.Context, file, data string, dataGiven bool, how lookout) ([]doctor.Finding, error) {
	subject, err := doctorSubject(ctx, file, data, dataGiven)
	if err != nil {
		return nil, err
	}
	return examineKernel(ctx, subject, how)
}

// nodeKernelChecks looks at the kernel's roles that a controller gives this node. What
// the node's own checks say already is left out.
func nodeKernelChecks(ctx context.Context, data string, state *deception.State, running *status, how lookout) ([]doctor.Finding, error) {
	if !asked(state) {
		return nil, nil
	}
	s := doctor.Subject{State: state, Data: data, Database: databasePath(data), Socket: socketPath(data)}
	if running != nil {
		var segments []doctor.RunningSegment
		if err := json.Unmarshal(running.Segments, &segments); err != nil {
			return nil, fmt.Errorf("read status: %w", err)
		}
		s.Running = runningFacts(running, segments)
	}
	findings, err := examineKernel(ctx, s, how)
	return slices.DeleteFunc(findings, func(f doctor.Finding) bool { return f.Check == "data" || f.Check == "running" }), err
}

func examineKernel(ctx context.Context, s doctor.Subject, how lookout) ([]doctor.Finding, error) {
	s.Listen, s.Passive, s.Progress = how.listen, how.passive, how.progress
	facts, err := doctor.Read(ctx, s)
	if err != nil {
		return nil, err
	}
	return doctor.Judge(facts), nil
}

// doctorSubject finds out what is to be looked at: the document given, or that
// of the decoynet that runs on the data directory.
func doctorSubject(ctx context.Context, file, data string, dataGiven bool) (doctor.Subject, error) {
	var state *deception.State
	if file != "" {
		doc, err := config.Load(file)
		if err != nil {
			return doctor.Subject{}, &exitError{2, err}
		}
		state = &doc.State
		if !dataGiven && doc.Options.Data != "" {
			data = doc.Options.Data
		}
	}
	s := doctor.Subject{State: state, Data: data, Database: databasePath(data), Socket: socketPath(data)}
	body, err := ask(ctx, data, http.MethodGet, "/status")
	if err != nil {
		return s, nil // none runs there; what it left behind is looked for
	}
	var running status
	var segments []doctor.RunningSegment
	if err := errors.Join(json.Unmarshal(body, &running), json.Unmarshal(running.Segments, &segments)); err != nil {
		return s, fmt.Errorf("read status: %w", err)
	}
	s.Running = runningFacts(&running, segments)
	path := s.Running.Document
	if !filepath.IsAbs(path) { // as it was given in the directory that decoynet was started in
		path = filepath.Join(fmt.Sprintf("/proc/%d/cwd", running.PID), path)
	}
	doc, err := config.Load(path)
	if err != nil {
		s.Running.Broken = err.Error()
		return s, nil
	}
	s.Running.Stale = revision(path) != running.Revision
	if s.State == nil {
		s.State = &doc.State
	}
	return s, nil
}

// runningFacts is the part of a status that the doctor looks at.
func runningFacts(st *status, segments []doctor.RunningSegment) *doctor.Running {
	r := &doctor.Running{
		PID: st.PID, Document: st.Document, Ready: st.Ready, Problems: st.Problems, Segments: segments,
		Lost: st.Recording.Lost, Moved: st.Relay.MovedPorts,
	}
	if st.Recording.FailingSince != nil {
		r.Failing = st.Recording.LastError
	}
	var analysed struct{ Suricata *suricata.Status }
	if json.Unmarshal(st.Inspect, &analysed) == nil { // absent where nothing is analysed
		r.Suricata = analysed.Suricata
	}
	return r
}
