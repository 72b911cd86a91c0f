package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"decoynet/agent"
	"decoynet/deception"
	"decoynet/internal/suricata"
)

// status is what `decoynet status -o json` prints.
type status struct {
	Ready     bool            `json:"ready"`
	Revision  string          `json:"revision"` // of the document that is applied
	Node      string          `json:"node"`
	Version   string          `json:"version"`
	PID       int             `json:"pid"`
	Started   time.Time       `json:"started"`
	Document  string          `json:"document"`
	Segments  json.RawMessage `json:"segments"`
	Zones     json.RawMessage `json:"zones"`
	Services  []serviceStatus `json:"services"`
	Decoys    []decoyStatus   `json:"decoys"`
	Relay     relayStatus     `json:"relay"`
	Sensing   json.RawMessage `json:"sensing,omitempty"`
	Inspect   json.RawMessage `json:"inspect,omitempty"`
	Recording recordingStatus `json:"recording"`
	// Listen is about decoys at the machine's own addresses, Gateways about the
	// ingress gateways on other nodes that flows leave by, Controller about who
	// says what is desired.
	Listen     agent.ListenStatus  `json:"listen"`
	Carried    agent.CourierStatus `json:"carried"` // to gateways on other nodes
	Gateways   []linkStatus        `json:"gateways,omitempty"`
	Ingress    json.RawMessage     `json:"ingress,omitempty"`
	Egress     json.RawMessage     `json:"egress,omitempty"`
	Egresses   json.RawMessage     `json:"egresses,omitempty"` // on other machines
	Controller *controllerStatus   `json:"controller,omitempty"`
	Problems   []string            `json:"problems,omitempty"`
}

// linkStatus is an ingress gateway as this node, or the controller, sees it.
type linkStatus struct {
	Name            string  `json:"name"`
	Address         string  `json:"address,omitempty"`
	Connected       bool    `json:"connected"`
	RoundTripMillis float64 `json:"round_trip_ms,omitempty"`
	Flows           int     `json:"flows,omitempty"`
	Error           string  `json:"error,omitempty"`
}

type controllerStatus struct {
	URL                string     `json:"url"`
	Connected          bool       `json:"connected"`
	Since              *time.Time `json:"since,omitempty"`
	RoundTripMillis    float64    `json:"round_trip_ms,omitempty"`
	ClockOffsetSeconds float64    `json:"clock_offset_s"` // that this machine's clock is ahead
	CertificateExpires *time.Time `json:"certificate_expires,omitempty"`
	Error              string     `json:"error,omitempty"`
}

type decoyStatus struct {
	Name      string   `json:"name"`
	Segment   string   `json:"segment"`
	Addresses []string `json:"addresses"` // as in the document
	Count     uint64   `json:"count"`     // of addresses
	Ports     []string `json:"ports"`
	Services  []string `json:"services"`
	Path      string   `json:"path"`
}

type serviceStatus struct {
	Name  string       `json:"name"`
	Zone  string       `json:"zone"`
	Ports []portStatus `json:"ports"`
}

type portStatus struct {
	Port  string    `json:"port"`
	At    string    `json:"at"`
	Up    bool      `json:"up"`
	Since time.Time `json:"since"`
	Error string    `json:"error,omitempty"`
}

type relayStatus struct {
	Flows      int64  `json:"flows"`
	UDPFlows   int64  `json:"udp_flows"`
	Accepted   uint64 `json:"accepted"`
	Refused    uint64 `json:"refused"`
	Overload   uint64 `json:"overload"`
	Retries    uint64 `json:"retries"`
	MovedPorts uint64 `json:"moved_ports"`
	Spliced    uint64 `json:"spliced"`
	Truncated  uint64 `json:"udp_truncated"`
}

func statusCommand() *cobra.Command {
	var data, output string
	c := &cobra.Command{
		Use:   "status",
		Short: "What is really true on this machine now",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body, err := ask(cmd.Context(), data, http.MethodGet, "/status")
			if err != nil {
				return err
			}
			if output == "json" {
				_, err = cmd.OutOrStdout().Write(body)
				return err
			}
			return printStatus(cmd.OutOrStdout(), body)
		},
	}
	dataFlag(c, &data)
	outputFlag(c, &output, "text", "json")
	return c
}

// ask sends a request to the decoynet that runs on a data directory.
func ask(ctx context.Context, data, method, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return askPatiently(ctx, data, method, path)
}

// askPatiently waits for an answer as long as ctx does.
func askPatiently(ctx context.Context, data, method, path string) ([]byte, error) {
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socketPath(data))
		},
	}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://decoynet"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("ask decoynet: %w", err)
	}
	resp, err := client.Do(req)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, fmt.Errorf("no decoynet runs on data directory %s; start one with `decoynet up -c FILE --data %s`, or name another with --data", data, data)
	}
	if err != nil {
		return nil, fmt.Errorf("ask decoynet on %s: %w", data, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read decoynet's answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(strings.TrimSpace(string(body)))
	}
	return body, nil
}

// printStatus writes the status for a person.
func printStatus(w io.Writer, body []byte) error {
	var s struct {
		status
		Segments []struct {
			Name, Parent, Steering string
			VLAN                   uint16
			Ready                  bool
			Decoys                 int
			Addresses, Claimed     uint64
			Claiming               uint64
			OpenPorts              int `json:"open_ports"`
			Problems, Warnings     []string
			Conflicts              []string
		} `json:"segments"`
		Zones []struct {
			Name, Link    string
			Contained     bool
			DeniedPackets uint64 `json:"denied_packets"`
			Problems      []string
		} `json:"zones"`
		Sensing *struct{ Sensed, Dropped uint64 } `json:"sensing"`
		Inspect *struct {
			Feed     struct{ Flows, Lost uint64 }
			Suricata *struct {
				State, Version string
				Rules          struct{ Rules int }
				Loading        *suricata.Loading
			}
			Events *struct {
				Alerts      uint64
				BehindBytes int64  `json:"behind_bytes"`
				Missed      uint64 `json:"missed_files"`
			}
			Packets *struct{ Bytes uint64 }
		} `json:"inspect"`
	}
	if err := json.Unmarshal(body, &s); err != nil {
		return fmt.Errorf("read status: %w", err)
	}
	word := "ready"
	if !s.Ready {
		word = "NOT READY"
	}
	fmt.Fprintf(w, "%s  node %s  revision %s  %s  since %s\n", word, s.Node, s.Revision, s.Document, s.Started.Format(time.RFC3339))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "\nSEGMENT\tPARENT\tSTEERING\tDECOYS\tADDRESSES\tCLAIMED\tOPEN PORTS\tSTATE")
	var problems []string
	for _, g := range s.Segments {
		parent := g.Parent
		if g.VLAN != 0 {
			parent += fmt.Sprintf(" vlan %d", g.VLAN)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\n", g.Name, parent, g.Steering, g.Decoys, g.Addresses, g.Claimed, g.OpenPorts, state(g.Ready, "ready", state(g.Claiming > 0 && len(g.Problems) == 0, "claiming", "failed")))
		problems = slices.Concat(problems, g.Problems, g.Warnings, g.Conflicts)
	}
	fmt.Fprintln(t, "\nZONE\tLINK\tDENIED PACKETS\tSTATE")
	for _, z := range s.Zones {
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\n", z.Name, z.Link, z.DeniedPackets, state(z.Contained, "contained", "NOT CONTAINED"))
		problems = append(problems, z.Problems...)
	}
	fmt.Fprintln(t, "\nSERVICE\tZONE\tPORT\tAT\tSTATE")
	for _, v := range s.Services {
		for _, p := range v.Ports {
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", v.Name, v.Zone, p.Port, p.At, state(p.Up, "up", "down: "+p.Error))
		}
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	r := s.Recording
	fmt.Fprintf(w, "\nflows %d (UDP %d), accepted %d, moved ports %d, overload %d\n", s.Relay.Flows, s.Relay.UDPFlows, s.Relay.Accepted, s.Relay.MovedPorts, s.Relay.Overload)
	if v := s.Sensing; v != nil {
		fmt.Fprintf(w, "frames sensed %d, dropped %d; probes LOST %d\n", v.Sensed, v.Dropped, r.LostProbes)
	}
	if v := s.Inspect; v != nil {
		fmt.Fprintf(w, "flows shown to sensors %d, LOST %d", v.Feed.Flows, v.Feed.Lost)
		if v.Suricata != nil {
			fmt.Fprintf(w, "; suricata %s %s, rules %d", v.Suricata.Version, v.Suricata.State, v.Suricata.Rules.Rules)
			if l := v.Suricata.Loading; l != nil {
				fmt.Fprintf(w, " (%v)", l)
			}
		}
		if v.Events != nil {
			fmt.Fprintf(w, "; alerts %d, unread events %d bytes", v.Events.Alerts, v.Events.BehindBytes)
			if v.Events.Missed > 0 {
				fmt.Fprintf(w, ", files MISSED %d", v.Events.Missed)
			}
		}
		if v.Packets != nil {
			fmt.Fprintf(w, "; packets kept %d bytes", v.Packets.Bytes)
		}
		fmt.Fprintln(w)
	}
	r.print(w, s.Controller != nil)
	for _, p := range append(problems, s.Problems...) {
		fmt.Fprintln(w, "!", p)
	}
	return nil
}

func state(ok bool, yes, no string) string {
	if ok {
		return yes
	}
	return no
}

func countAddresses(s *deception.State) uint64 {
	var n uint64
	for i := range s.Decoys {
		for _, r := range s.Decoys[i].Addresses {
			n += r.Len()
		}
	}
	return n
}
