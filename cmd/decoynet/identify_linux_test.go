package main

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/store"
)

// A session is named by as much of its identifier as no other one has.
func TestSessionNames(t *testing.T) {
	data := t.TempDir()
	r, err := store.OpenRecorder(store.RecorderConfig{Path: databasePath(data)})
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-time.Hour)
	ids := []string{
		"01234567-89ab-7def-8123-456789abcdef", "01234567-89ab-7def-8123-456789abcdf0", // as nearly the same as can be
		"01234567-89ac-7def-8123-456789abcdef", "ffffffff-ffff-7fff-bfff-ffffffffffff",
	}
	for i, text := range ids {
		id, err := deception.ParseSessionID(text)
		if err != nil {
			t.Fatal(err)
		}
		r.Ended(&deception.Session{
			ID: id, Start: at, End: at.Add(time.Second), Decoy: "web", Transport: deception.TCP, Path: deception.PathRelay,
			Source: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.66"), uint16(40000+i)), Destination: netip.MustParseAddrPort("192.0.2.10:80"),
		})
		finding := deception.Finding{ID: deception.NewSessionID(at), Session: id, Time: at, Kind: "http", Document: []byte("{}")}
		r.Finding(&finding)
	}
	if err := r.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		ids[0]: ids[0], strings.ToUpper(ids[1]): ids[1], ids[0][:35]: ids[0], ids[1][:35]: ids[1], "01234567-89ac": ids[2],
		"01234567-89ac-": ids[2], "ffffffff": ids[3],
	} {
		for _, args := range [][]string{{"session", text, "-o", "json"}, {"get", "sessions", text, "-o", "json"}, {"get", "findings", "--session", text, "-o", "json"}} {
			out, _, err := command(append(args, "--data", data)...)
			if err != nil || !strings.Contains(out, want) || strings.Count(out, "192.0.2.66") > 2 {
				t.Errorf("%v: %q, %v; want %s", args, out, err, want)
			}
			for _, other := range ids {
				if other != want && strings.Contains(out, other) {
					t.Errorf("%v tells of %s", args, other)
				}
			}
		}
	}
	for text, says := range map[string]string{
		"01234567":           "more than one session's identifier begins with 01234567: " + ids[0] + ", " + ids[1] + "; give more of it",
		ids[0][:34]:          "more than one session's identifier",
		"01234567-89ab-8":    "no session's identifier begins with 01234567-89ab-8",
		"00000000":           "no session's identifier begins with 00000000",
		"0123456":            "bad session identifier",
		"01234567-89ab-7dez": "bad session identifier",
	} {
		for _, args := range [][]string{{"session", text}, {"pcap", text}, {"get", "sessions", text}, {"get", "alerts", "--session", text}} {
			if out, _, err := command(append(args, "--data", data)...); err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%v: %q, %v; want %s", args, out, err, says)
			}
		}
	}
	// Where there is no record, only a whole one is of use.
	if _, _, err := command("pcap", "01234567", "--data", t.TempDir()); err == nil || !strings.Contains(err.Error(), "its identifier is not whole") {
		t.Error(err)
	}
}
