package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"decoynet/config"
	"decoynet/deception"
	"decoynet/internal/doctor"
)

// doctorTimeout bounds all of the doctor's questions; on a machine with a few
// segments they take some seconds.
const doctorTimeout = 2 * time.Minute

func doctorCommand() *cobra.Command {
	var file, data, output string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Name the cause of what does not work here, and the command that mends it",
		Long: "Name the cause of what does not work here, and the command that mends it.\n" +
			"Looks at the kernel and its settings, asks the LAN whether frames pass and whether decoy addresses are free, and\n" +
			"asks every service as an intruder would. Nothing is changed, and no server gets a connection to log.\n" +
			"With the document of the decoynet that runs, or that of -c; without either, at the machine only.\n" +
			"Exits with 1 where there is a problem.",
		Args: cobra.NoArgs,
	}
	c.Flags().StringVarP(&file, "config", "c", "", "the document (default: that of the decoynet that runs)")
	dataFlag(c, &data)
	outputFlag(c, &output, "text", "json")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		subject, err := doctorSubject(cmd.Context(), file, data, cmd.Flags().Changed("data"))
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), doctorTimeout)
		defer cancel()
		facts, err := doctor.Read(ctx, subject)
		if err != nil {
			return err
		}
		findings := doctor.Judge(facts)
		write := doctor.WriteText
		if output == "json" {
			write = doctor.WriteJSON
		}
		if err := write(cmd.OutOrStdout(), findings); err != nil {
			return err
		}
		if doctor.Problems(findings) > 0 {
			return &exitError{1, errors.New("")} // all is said
		}
		return nil
	}
	return c
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
	return r
}
