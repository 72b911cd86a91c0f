//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"decoynet/deception"
	"decoynet/internal/archive"
	"decoynet/internal/frame"
)

// keep puts a packet of the session into the archive of a machine, as its feed
// would; the data directory's owner gets it.
func (o *office) keep(data, session string, at time.Time, uid int) {
	o.t.Helper()
	id, err := deception.ParseSessionID(session)
	check(o.t, err)
	dir := filepath.Join(data, "inspect", "pcap")
	a, err := archive.Open(archive.Config{Dir: dir, Limits: deception.PCAPLimits{MaxBytes: 1 << 20}})
	check(o.t, err)
	intruder, decoy := frame.Addresses(id.Key())
	// An EtherType for local experiments, and words.
	packet := append(append(decoy[:], intruder[:]...), 0x88, 0xb6)
	check(o.t, errors.Join(a.Frame(at.UnixNano(), append(packet, "of "+session...)), a.Close()))
	check(o.t, filepath.WalkDir(filepath.Dir(dir), func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, uid, uid))
	}))
}

// testPackets: decoynet pcap at the office finds a session's packets on the machine
// itself and on the agent, by the controller, and says who was asked where there are
// none.
func (b *branch) testPackets() {
	sessions, err := b.records()
	check(b.t, err)
	if len(sessions) < 3 {
		b.t.Fatalf("%d sessions", len(sessions))
	}
	here, there, nowhere := &sessions[0], &sessions[1], &sessions[2]
	b.keep(b.data, here.ID, here.Start, 0)
	b.keep(b.agentData, there.ID, there.Start, 65534)
	for _, s := range []*record{here, there} {
		path := filepath.Join(b.t.TempDir(), "f.pcap")
		out, err := b.decoynet("pcap", s.ID, "-w", path)
		check(b.t, err)
		text, err := b.Gateway.Run(b.t.Context(), "tshark", "-n", "-r", path, "-T", "fields", "-e", "frame.time_epoch", "-e", "data.data")
		check(b.t, err)
		want := fmt.Sprintf("%d.%09d\t%x", s.Start.Unix(), s.Start.Nanosecond(), "of "+s.ID)
		if !strings.Contains(text, want) || out != "" {
			b.t.Errorf("tshark sees %q; want %q (decoynet printed %q)", text, want, out)
		}
	}
	_, err = b.decoynet("pcap", nowhere.ID, "-w", filepath.Join(b.t.TempDir(), "f.pcap"))
	if err == nil || !strings.Contains(err.Error(), "crm-1: session "+nowhere.ID+": no packets of it are kept") {
		b.t.Errorf("of packets that nobody keeps: %v", err)
	}
	out, err := b.decoynet("get", "audit")
	if err != nil || strings.Count(out, "AdminService/GetPackets") != 2 || !strings.Contains(out, "bytes from node crm-1") {
		b.t.Errorf("the audit log, %v:\n%s", err, out)
	}
}
