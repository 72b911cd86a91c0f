package capturetest

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"decoynet/deception"
)

// Dump writes what was fed, and what was recorded, into files of the directory.
func (r *Recordings) Dump(dir string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var sessions []deception.Session
	for _, s := range r.ended {
		sessions = append(sessions, s)
	}
	text, err := json.Marshal(sessions)
	if err != nil {
		return fmt.Errorf("write sessions: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sessions.json"), text, 0o600); err != nil {
		return fmt.Errorf("write sessions: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "fed.pcap"), slices.Clone(r.pcap), 0o600); err != nil {
		return fmt.Errorf("write packets: %w", err)
	}
	return nil
}

// Sessions reads the sessions that Dump wrote.
func Sessions(dir string) (map[deception.SessionID]deception.Session, error) {
	text, err := os.ReadFile(filepath.Join(dir, "sessions.json"))
	if err != nil {
		return nil, err
	}
	var list []deception.Session
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, err
	}
	out := map[deception.SessionID]deception.Session{}
	for _, s := range list {
		out[s.ID] = s
	}
	return out, nil
}

// Event is there so that Recordings are an agent's recorder, too.
func (r *Recordings) Event(*deception.Event) {}

// Probe likewise.
func (r *Recordings) Probe(*deception.Probe) {}
