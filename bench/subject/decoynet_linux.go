package subject

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"text/template"
	"time"

	"decoynet/deception"
	"decoynet/internal/lab"
)

// Variant is one way of running decoynet.
type Variant struct {
	Name     string
	Path     deception.Path
	Steering deception.Steering
	// Aliases gives the service an address for every decoy.
	Aliases bool
}

// Variants lists what is measured of decoynet.
var Variants = []Variant{
	{Name: "kernel", Path: deception.PathKernel, Steering: deception.SteeringAuto},
	{Name: "kernel-aliases", Path: deception.PathKernel, Steering: deception.SteeringAuto, Aliases: true},
	{Name: "sk_lookup", Path: deception.PathRelay, Steering: deception.SteeringSKLookup},
	{Name: "tproxy", Path: deception.PathRelay, Steering: deception.SteeringTPROXY},
	{Name: "relay-aliases", Path: deception.PathRelay, Steering: deception.SteeringAuto, Aliases: true},
}

type documentData struct {
	Segment, Parent, Subnet, Steering string
	Zone, ZoneLink                    string
	Service, Ports, Aliases, Netns    string
	From, To, Path                    string
}

var document = template.Must(template.New("document").Parse(`segments:
  - name: {{.Segment}}
    parent: {{.Parent}}
    subnets: [{prefix: {{.Subnet}}}]
    steering: {{.Steering}}
zones:
  - name: linux
    subnet: {{.Zone}}
    link: {{.ZoneLink}}
services:
  - name: bench
    zone: linux
    address: {{.Service}}
    ports: [{{.Ports}}]
{{- if .Aliases}}
    aliases: {{.Aliases}}
    netns: {{.Netns}}
{{- end}}
decoys:
  - name: bench
    segment: {{.Segment}}
    addresses: [{{.From}}-{{.To}}]
    bind:
      - {ports: [{{.Ports}}], service: bench}
    path: {{.Path}}
`))

// Decoynet is this project's binary, on a gateway machine that is not tuned for
// it: what it needs beyond a kernel's defaults, it has to see to by itself.
func Decoynet(binary string, v Variant) Subject {
	return Subject{
		Name: v.Name, Ours: true,
		Prepare: func(*Site) Setup { return Setup{Gateway: v.prepare()} },
		Run: func(ctx context.Context, s *Site, start Start) error {
			path, err := writeConfig(s.Gateway, "decoynet.yaml", document, v.data(s, s.Service.NetnsPath()))
			if err != nil {
				return err
			}
			if _, err := start(s.Gateway, binary, "up", "-c", path, "--data", dataOf(s.Gateway)); err != nil {
				return err
			}
			return awaitStatus(ctx, binary, s.Gateway)
		},
	}
}

// prepare makes the machine a router where the kernel path asks for one.
func (v Variant) prepare() []string {
	if v.Path == deception.PathKernel {
		return []string{"sysctl -qw net.ipv4.ip_forward=1"}
	}
	return nil
}

// dataOf returns the data directory of decoynet on a machine.
func dataOf(m *lab.Machine) string { return filepath.Join(m.Dir(), "data") }

func (v Variant) data(s *Site, netns string) documentData {
	targets := decoysIn(s.DecoyPrefix)
	d := documentData{
		Segment: "bench", Parent: uplink, Subnet: "10.77.0.0/16", Steering: string(v.Steering),
		Zone: s.Zone.String(), ZoneLink: zoneLink,
		Service: s.ServiceAddr.String(), Ports: portList(),
		From: targets[0].String(), To: targets[len(targets)-1].String(), Path: string(v.Path),
	}
	if v.Aliases {
		d.Aliases = s.Aliases.String()
		d.Netns = netns
	}
	return d
}

func portList() string {
	ranges := make([]deception.PortRange, len(peerPorts))
	for i, p := range peerPorts {
		ranges[i] = deception.Port(deception.TCP, uint16(p))
	}
	return deception.JoinPorts(ranges)
}

// awaitStatus waits for the word of the decoynet on a machine.
func awaitStatus(ctx context.Context, binary string, m *lab.Machine) error {
	for {
		out, err := m.Command(ctx, binary, "status", "--data", dataOf(m), "-o", "json").Output()
		var status struct {
			Ready bool `json:"ready"`
		}
		if err == nil {
			err = json.Unmarshal(out, &status)
		}
		if err == nil && status.Ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("decoynet on %s is not ready: %w (last: %v %s %s)", m, ctx.Err(), err, said(err), out)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func said(err error) string {
	if e, ok := err.(*exec.ExitError); ok {
		return string(e.Stderr)
	}
	return ""
}
