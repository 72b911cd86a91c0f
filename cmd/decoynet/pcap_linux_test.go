package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/archive"
	"decoynet/internal/frame"
	"decoynet/internal/store"
)

// keptSession makes an archive with the packets of a session, and its record.
func keptSession(t *testing.T, data string, recorded bool) deception.SessionID {
	t.Helper()
	s := deception.Session{
		ID: deception.NewSessionID(time.Now()), Start: time.Now(), Node: "hq", Segment: "office", Decoy: "web", Service: "web", Transport: deception.UDP,
		Source: netip.MustParseAddrPort("192.0.2.66:40000"), Destination: netip.MustParseAddrPort("192.0.2.10:161"),
	}
	a, err := archive.Open(archive.Config{Dir: packetsPath(data), Limits: deception.PCAPLimits{MaxBytes: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	intruder, decoy := frame.Addresses(s.ID.Key())
	packet, err := hex.DecodeString("0800" + "45000020000140004011b6b8c0000242c000020a" + "9c4000a1000c0000deadbeef")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Frame(time.Now().UnixNano(), append(append(decoy[:], intruder[:]...), packet...)), a.Close()); err != nil {
		t.Fatal(err)
	}
	if !recorded {
		return s.ID
	}
	r, err := store.OpenRecorder(store.RecorderConfig{Path: databasePath(data)})
	if err != nil {
		t.Fatal(err)
	}
	r.Started(&s)
	s.End, s.Reason = time.Now(), deception.EndIdle
	r.Ended(&s)
	if err := r.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	return s.ID
}

// command runs decoynet with the arguments.
func command(args ...string) (out, notes string, err error) {
	var stdout, stderr bytes.Buffer
	c := rootCommand()
	c.SetArgs(args)
	c.SetOut(&stdout)
	c.SetErr(&stderr)
	err = c.Execute()
	return stdout.String(), stderr.String(), err
}

func TestPcapCommand(t *testing.T) {
	for _, recorded := range []bool{true, false} { // false: a controller has the record
		data := t.TempDir()
		id := keptSession(t, data, recorded)
		out, notes, err := command("pcap", id.String(), "--data", data)
		if err != nil || notes != "" {
			t.Fatalf("recorded %v: %q, %v", recorded, notes, err)
		}
		if recorded {
			if again, _, err := command("pcap", id.String()[:20], "--data", data); err != nil || again != out {
				t.Errorf("by the beginning of its identifier: %d bytes, %v", len(again), err)
			}
		}
		path := filepath.Join(t.TempDir(), "f.pcap")
		if text, _, err := command("pcap", id.String(), "--data", data, "-w", path); err != nil || text != "" {
			t.Fatalf("%q, %v", text, err)
		}
		if text, err := os.ReadFile(path); err != nil || string(text) != out {
			t.Errorf("the file differs from what came out (%v)", err)
		}
		lines, err := exec.CommandContext(t.Context(), "tshark", "-n", "-r", path, "-T", "fields", "-e", "ip.src", "-e", "udp.dstport", "-e", "data").Output()
		if err != nil || string(lines) != "192.0.2.66\t161\tdeadbeef\n" {
			t.Errorf("tshark sees %q, %v", lines, err)
		}
	}
}

func TestPcapCommandSaysWhatIsWrong(t *testing.T) {
	data := t.TempDir()
	keptSession(t, data, true)
	other := deception.NewSessionID(time.Now()).String()
	path := filepath.Join(t.TempDir(), "f.pcap")
	for _, tt := range []struct {
		args []string
		says string
	}{
		{[]string{"pcap"}, "accepts 1 arg"},
		{[]string{"pcap", "0123"}, "bad session identifier"},
		{[]string{"pcap", other, "--data", data, "-w", path}, "no session of that identifier is on record in " + databasePath(data)},
		{[]string{"pcap", other, "--data", t.TempDir(), "-w", path}, "this machine keeps no packets"},
	} {
		if out, _, err := command(tt.args...); err == nil || !strings.Contains(err.Error(), tt.says) || out != "" {
			t.Errorf("%v: %v; want %s", tt.args, err, tt.says)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file is left: %v", err)
	}
}

func TestPcapIsNotForATerminal(t *testing.T) {
	// script(1) runs a command on a terminal of its own.
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for out, want := range map[string]string{"": "console", "> /dev/null": "", "| cat >/dev/null": ""} {
		cmd := exec.CommandContext(t.Context(), "script", "-qec", exe+" -test.run '^TestConsoleRole$' 2>&1 "+out, "/dev/null")
		cmd.Env = append(os.Environ(), consoleVar+"="+filepath.Join(t.TempDir(), "verdict"))
		text, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		verdict, err := os.ReadFile(strings.TrimPrefix(cmd.Env[len(cmd.Env)-1], consoleVar+"="))
		if err != nil || string(verdict) != want {
			t.Errorf("with %q: %q, %v", out, verdict, err)
		}
	}
}

const consoleVar = "DECOYNET_TEST_CONSOLE"

// TestConsoleRole says, in a process of its own, what its standard output is.
func TestConsoleRole(t *testing.T) {
	path := os.Getenv(consoleVar)
	if path == "" {
		return
	}
	verdict := ""
	if isConsole(os.Stdout) {
		verdict = "console"
	}
	if err := os.WriteFile(path, []byte(verdict), 0o600); err != nil {
		t.Fatal(err)
	}
}
