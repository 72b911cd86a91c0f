package subject

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"decoynet/deception"
	"decoynet/internal/lab"
)

// The names of decoynet's nodes on the two machines of a chain.
const (
	frontNode   = "front"
	gatewayNode = "back"
)

// The ports of decoynet's own doors between the two machines.
const (
	controllerPort = 7443
	ingressPort    = 7444
	egressPort     = 7445
)

type chainData struct {
	documentData
	Node                   string // of the machine that reads the document
	Front, Gateway         string // the nodes
	FrontAddr, GatewayAddr string
	Controller, Ingress    int
	Egress                 int
}

func (s *Site) chain(node string) chainData {
	v := Variant{Steering: deception.SteeringAuto, Path: deception.PathRelay}
	return chainData{
		documentData: v.data(s, ""), Node: node, Front: frontNode, Gateway: gatewayNode,
		FrontAddr: s.FrontAddr.String(), GatewayAddr: s.GatewayAddr.String(),
		Controller: controllerPort, Ingress: ingressPort, Egress: egressPort,
	}
}

// tunnelDocument: an agent on a server of the intruder's network, the ingress
// and the controller where the services are.
var tunnelDocument = template.Must(template.New("tunnel").Parse(`node: {{.Node}}
nodes: [{name: {{.Gateway}}}, {name: {{.Front}}}]
controller: {node: {{.Gateway}}, listen: {{.GatewayAddr}}:{{.Controller}}, urls: ["https://{{.GatewayAddr}}:{{.Controller}}"]}
gateways:
  - {name: gw1, node: {{.Gateway}}, listen: {{.GatewayAddr}}:{{.Ingress}}}
zones:
  - {name: linux, node: {{.Gateway}}, subnet: {{.Zone}}, link: {{.ZoneLink}}}
services:
  - {name: bench, zone: linux, address: {{.Service}}, ports: [{{.Ports}}]}
decoys:
  - name: bench
    segment: host
    node: {{.Front}}
    addresses: [any]
    bind: [{ports: [{{.Ports}}], service: bench}]
`))

// Tunnel is two hops with TLS between them: decoynet as an agent in listen mode
// and as ingress gateway. The agent is enrolled as an administrator does it.
func Tunnel(binary string) Subject {
	return Subject{
		Name: "tunnel", Ours: true, Layout: Layout{Front: true, Own: true},
		Prepare: func(*Site) Setup { return Setup{} },
		Run: func(ctx context.Context, s *Site, start Start) error {
			path, err := writeConfig(s.Gateway, "decoynet.yaml", tunnelDocument, s.chain(gatewayNode))
			if err != nil {
				return err
			}
			if _, err := start(s.Gateway, binary, "up", "-c", path, "--data", dataOf(s.Gateway)); err != nil {
				return err
			}
			if err := awaitStatus(ctx, binary, s.Gateway); err != nil {
				return err
			}
			if err := s.enrol(ctx, binary); err != nil {
				return err
			}
			if _, err := start(s.Front, binary, "up", "--data", dataOf(s.Front)); err != nil {
				return err
			}
			return awaitStatus(ctx, binary, s.Front)
		},
	}
}

// enrol makes the front machine a node, with the command that the controller
// prints, unless it is one.
func (s *Site) enrol(ctx context.Context, binary string) error {
	if _, err := os.Stat(filepath.Join(dataOf(s.Front), "identity.json")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := s.Gateway.Run(ctx, binary, "token", "create", "--node", frontNode, "--data", dataOf(s.Gateway), "-o", "json")
	if err != nil {
		return err
	}
	var token struct{ Command string }
	if err := json.Unmarshal([]byte(out), &token); err != nil {
		return fmt.Errorf("read the join token: %w", err)
	}
	words := strings.Fields(token.Command)
	if len(words) < 3 || words[1] != "join" {
		return fmt.Errorf("the command to paste on the node is %q", token.Command)
	}
	_, err = s.Front.Run(ctx, binary, append(words[1:], "--data", dataOf(s.Front))...)
	return err
}

// hopDocument: decoys and ingress on the front machine, the zone's egress on the
// other. The controller is there for the gateway's certificate.
var hopDocument = template.Must(template.New("hop").Parse(`node: {{.Node}}
nodes: [{name: {{.Gateway}}}, {name: {{.Front}}}]
controller: {node: {{.Front}}, listen: {{.FrontAddr}}:{{.Controller}}, urls: ["https://{{.FrontAddr}}:{{.Controller}}"]}
gateways:
  - {name: gw1, node: {{.Front}}, listen: {{.FrontAddr}}:{{.Ingress}}}
segments:
  - name: {{.Segment}}
    node: {{.Front}}
    parent: {{.Parent}}
    subnets: [{prefix: {{.Subnet}}}]
    steering: {{.Steering}}
zones:
  - name: linux
    subnet: {{.Zone}}
    link: {{.ZoneLink}}
    egress: {node: {{.Gateway}}, listen: {{.GatewayAddr}}:{{.Egress}}, from: {{.FrontAddr}}}
services:
  - {name: bench, zone: linux, address: {{.Service}}, ports: [{{.Ports}}]}
decoys:
  - name: bench
    segment: {{.Segment}}
    addresses: [{{.From}}-{{.To}}]
    bind: [{ports: [{{.Ports}}], service: bench}]
`))

// Hop is two hops without TLS: decoynet as ingress gateway with decoys of its
// own, and as egress gateway.
func Hop(binary string) Subject {
	return Subject{
		Name: "hop", Ours: true, Layout: Layout{Front: true},
		Prepare: func(*Site) Setup { return Setup{} },
		Run: func(ctx context.Context, s *Site, start Start) error {
			for _, m := range s.chained() {
				path, err := writeConfig(m.machine, "decoynet.yaml", hopDocument, s.chain(m.node))
				if err != nil {
					return err
				}
				if _, err := start(m.machine, binary, "up", "-c", path, "--data", dataOf(m.machine)); err != nil {
					return err
				}
			}
			for _, m := range s.chained() {
				if err := awaitStatus(ctx, binary, m.machine); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// chained is one machine of a chain and its node.
type chained struct {
	machine *lab.Machine
	node    string
}

// chained lists the machines of a chain, the service's gateway first.
func (s *Site) chained() []chained {
	return []chained{{s.Gateway, gatewayNode}, {s.Front, frontNode}}
}
