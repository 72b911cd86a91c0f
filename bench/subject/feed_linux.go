package subject

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"decoynet/bench/load"
)

// Feed is one way of analysing what a gateway relays.
type Feed struct {
	Name     string
	Suricata bool   // one that reads the feed by a FIFO
	Rules    bool   // with the rules of /etc/suricata/rules besides decoynet's own
	Stopped  bool   // it was sent SIGSTOP as soon as it read
	Depth    uint64 // bytes of each direction of a flow that are fed; 0: no limit
}

// usualDepth is the document's default for inspect.depth.
const usualDepth = 16_000_000

// Feeds lists what is compared. The first feeds nobody.
var Feeds = []Feed{
	{Name: "off"},
	{Name: "on", Suricata: true, Depth: usualDepth},
	{Name: "whole", Suricata: true},
	{Name: "rules", Suricata: true, Rules: true, Depth: usualDepth},
	{Name: "stopped", Suricata: true, Stopped: true, Depth: usualDepth},
}

// FedSpec is what the role "fed" is started with, as JSON: the gateway's relay, its
// feed and the Suricata that reads it, and nothing else of decoynet.
type FedSpec struct {
	Link    string       // towards the service
	Zone    netip.Prefix // behind it
	Service netip.Addr
	From    netip.Addr // the first and the last decoy
	To      netip.Addr
	Ports   []int
	Dir     string // of Suricata, which reads the feed; empty: no feed
	CPU     int    // that Suricata has for itself
	Rules   string // a file of them, besides decoynet's own
	System  bool   // the system's rules as well
	Depth   uint64
	Stats   string // the file into which FedStats are written several times a second
}

// FedStats are what the feed of the role says of itself.
type FedStats struct {
	Flows, Lost, Frames uint64
	Queued              int64
	Reading             bool   // there is somebody at the FIFO
	PID                 int    // of Suricata
	Problem             string // with it
}

// PortMixed is where the service of mixed flows listens.
const PortMixed = 8000

// SuricataCPU is the processor that Suricata has for itself; everything else runs
// on the first one.
const SuricataCPU = 1

// Fed is a gateway that feeds a Suricata. self is this program's file.
func Fed(self string, f Feed) Subject {
	return Subject{
		Name: f.Name,
		Prepare: func(s *Site) Setup {
			// Every decoy is the machine's own without being configured.
			return Setup{Gateway: []string{"ip route add local " + s.DecoyPrefix.String() + " dev lo"}}
		},
		Run: func(ctx context.Context, s *Site, start Start) error { return f.run(ctx, self, s, start) },
	}
}

func (f Feed) run(ctx context.Context, self string, s *Site, start Start) error {
	spec := FedSpec{
		Link: zoneLink, Zone: s.Zone, Service: s.ServiceAddr, Ports: append([]int{PortMixed}, load.Ports...),
		From: s.targets[0], To: s.targets[len(s.targets)-1], Depth: f.Depth, Stats: fedFile(s, "stats.json"),
	}
	if f.Suricata {
		spec.Dir, spec.CPU, spec.Rules, spec.System = fedFile(s, "inspect"), SuricataCPU, fedFile(s, "bench.rules"), f.Rules
		if err := os.WriteFile(spec.Rules, []byte(suricataRules), 0o644); err != nil {
			return fmt.Errorf("write rules: %w", err)
		}
	}
	text, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("encode what is to be fed: %w", err)
	}
	if _, err := start(s.Gateway, self, "fed", string(text)); err != nil {
		return err
	}
	if err := await(ctx, func() error { _, err := StatsOf(s); return err }); err != nil || !f.Suricata {
		return err
	}
	var st FedStats
	err = await(ctx, func() (err error) {
		if st, err = StatsOf(s); err == nil && !st.Reading {
			err = fmt.Errorf("nobody reads the feed: %s", st.Problem)
		}
		return err
	})
	if err == nil && f.Stopped {
		err = syscall.Kill(st.PID, syscall.SIGSTOP)
	}
	return err
}

// await tries until it works or ctx ends.
func await(ctx context.Context, try func() error) error {
	for {
		err := try()
		if err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// StatsOf reads what the feed of a site said last.
func StatsOf(s *Site) (FedStats, error) {
	var st FedStats
	text, err := os.ReadFile(fedFile(s, "stats.json"))
	if err == nil {
		err = json.Unmarshal(text, &st)
	}
	if err != nil {
		return st, fmt.Errorf("read what the feed says: %w", err)
	}
	return st, nil
}

// EventsOf is where Suricata writes what it finds at a site.
func EventsOf(s *Site) string { return fedFile(s, "inspect/suricata/eve.json") }

func fedFile(s *Site, name string) string { return filepath.Join(s.Gateway.Dir(), name) }

// The rules that fire once a flow: on its question and on the end of the answer.
const (
	AskedSID, AnsweredSID = 1, 2
	AskedMark             = "BENCH-ASKED"
	AnsweredMark          = "BENCH-ANSWERED"
)

var suricataRules = fmt.Sprintf(`alert tcp any any -> any any (msg:"asked"; flow:to_server,established; content:"%s"; sid:%d;)
alert tcp any any -> any any (msg:"answered"; flow:to_client,established; content:"%s"; sid:%d;)
`, AskedMark, AskedSID, AnsweredMark, AnsweredSID)
