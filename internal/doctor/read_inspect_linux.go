package doctor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"decoynet/deception"
	"decoynet/internal/frame"
	"decoynet/internal/suricata"

	"golang.org/x/sys/unix"
)

// inspectTimeout bounds the test of rules; it is many thousand where the system's
// are wanted.
const inspectTimeout = 2 * time.Minute

// readInspect looks at Suricata as decoynet would start it. The rules are tested in a
// directory of their own; what runs is only asked.
func (r *reader) readInspect(ctx context.Context) {
	if r.State == nil || r.State.Inspect == nil || !r.State.Inspect.Enabled() {
		return
	}
	want := r.State.Inspect
	f := &InspectFacts{Dir: filepath.Join(r.Data, "inspect")}
	r.facts.Inspect = f
	for dir := f.Dir; ; dir = filepath.Dir(dir) { // what is not there yet will be on the same file system
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err == nil {
			f.FreeBytes, f.AllBytes = st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
			break
		} else if dir == "/" || !errors.Is(err, unix.ENOENT) {
			r.unread("inspect", dir, fmt.Errorf("ask for free space: %w", err))
			break
		}
	}
	switch want.Suricata {
	case deception.SuricataManaged:
		f.readManaged(ctx, want, r.Suricata)
	case deception.SuricataExternal:
		if want.EVE != "" {
			f.readEVE(want.EVE)
		}
	}
}

func (f *InspectFacts) readManaged(ctx context.Context, want *deception.Inspect, program string) {
	ctx, stop := context.WithTimeout(ctx, inspectTimeout)
	defer stop()
	b, err := suricata.Find(ctx, program)
	f.Version = b.Version
	if err != nil {
		f.Missing = err
		return
	}
	f.Rules, err = suricata.Check(ctx, program, want)
	switch {
	case errors.Is(err, suricata.ErrRules) || errors.Is(err, suricata.ErrUnreadable):
		f.RulesErr = err
	default:
		f.Refused = err
	}
}

// eveTail is how much of the end of a file of events is looked at.
const eveTail = 256 << 10

// readEVE looks at the last events of an external Suricata: do they have what ties
// them to sessions?
func (f *InspectFacts) readEVE(path string) {
	f.EVE = path
	file, err := os.Open(path)
	if err != nil {
		f.EVEErr = fmt.Errorf("read Suricata's events: %w", err)
		return
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		f.EVEErr = errors.Join(err, fmt.Errorf("read Suricata's events: %s is no regular file", path))
		return
	}
	text := make([]byte, min(info.Size(), eveTail))
	n, err := file.ReadAt(text, info.Size()-int64(len(text)))
	if n == 0 && len(text) > 0 {
		f.EVEErr = fmt.Errorf("read Suricata's events: %w", err)
		return
	}
	for line := range bytes.Lines(text[:n]) {
		var e struct {
			Type  string `json:"event_type"`
			ID    string `json:"community_id"`
			Ether *struct {
				Source      string `json:"src_mac"`
				Destination string `json:"dest_mac"`
			} `json:"ether"`
		}
		if json.Unmarshal(line, &e) != nil || e.Type == "" || e.Type == "stats" {
			continue // the first is cut, the last perhaps half written
		}
		f.Events++
		if e.ID != "" {
			f.WithID++
		}
		if e.Ether == nil {
			continue
		}
		f.WithMAC++
		a, errA := frame.ParseMAC(e.Ether.Source)
		b, errB := frame.ParseMAC(e.Ether.Destination)
		if _, _, ok := frame.Key(a, b); ok && errA == nil && errB == nil {
			f.OurEvents++
		}
	}
}
