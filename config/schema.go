package config

import "strings"

// want is what a key's value must be.
type want uint8

const (
	wantText       want = iota
	wantNumber          // an integer
	wantBool            // true or false
	wantList            // a list; scalars are refused
	wantTextOrList      // one text, or a list of them
	wantMap             // a mapping with a shape of its own
)

var wantNames = [...]string{"text", "a number", "true or false", "a list", "text or a list of texts", "a mapping"}

func (w want) String() string { return wantNames[w] }

// key is one key that an object of the document may have.
type key struct {
	name     string
	want     want
	required bool
	example  string // value that would be right, as written in the document
}

// shape is the keys of one kind of object.
type shape struct {
	what string // as it stands in messages: "segment"
	path string // as it stands in the reference: "segments[]"
	keys []key
	open bool // further keys are let pass: later versions define them
	// foreign are keys of other objects that people look for here, each with
	// what to do instead.
	foreign map[string]string
}

// inside names the place of a key in messages.
func (s *shape) inside() string {
	switch {
	case s == documentShape:
		return "the document"
	case !strings.HasSuffix(s.path, "[]"):
		return s.what
	case strings.ContainsRune("aeiou", rune(s.what[0])):
		return "an " + s.what
	}
	return "a " + s.what
}

func (s *shape) names() []string {
	out := make([]string, len(s.keys))
	for i, k := range s.keys {
		out[i] = k.name
	}
	return out
}

func (s *shape) key(name string) *key {
	for i := range s.keys {
		if s.keys[i].name == name {
			return &s.keys[i]
		}
	}
	return nil
}

// The grammar of the document. A test holds docs/document.md against it.
var (
	documentShape = &shape{what: "document", path: "", keys: []key{
		{"node", wantText, false, "hq"},
		{"data", wantText, false, "/var/lib/decoynet"},
		{"recording", wantMap, false, "{retention: 90d}"},
		{"segments", wantList, false, "[{name: office, parent: eth0, subnets: [{prefix: 192.0.2.0/24}]}]"},
		{"zones", wantList, false, "[{name: linux, subnet: 10.1.0.0/24, link: br-linux}]"},
		{"services", wantList, false, "[{name: web, zone: linux, address: 10.1.0.2, ports: [80]}]"},
		{"decoys", wantList, false, "[{name: office-web, segment: office, addresses: [192.0.2.10], bind: [{ports: [80], service: web}]}]"},
		{"nodes", wantList, false, "[{name: hq}]"},
		{"gateways", wantList, false, "[{name: gw1, node: hq, listen: 0.0.0.0:7444}]"},
		{"controller", wantMap, false, "{node: hq, listen: 0.0.0.0:7443}"},
		{"scanners", wantList, false, "[{name: audit, from: [192.0.2.10]}]"},
		{"inspect", wantMap, false, "{suricata: managed}"},
	}}
	recordingShape = &shape{what: "recording", path: "recording", keys: []key{
		{"retention", wantText, false, "90d"},
		{"heads", wantBool, false, "true"},
	}}
	segmentShape = &shape{what: "segment", path: "segments[]", keys: []key{
		{"name", wantText, true, "office"},
		{"parent", wantText, true, "eth0"},
		{"subnets", wantList, true, "[{prefix: 192.0.2.0/24, gateway: 192.0.2.1}]"},
		{"exclude", wantList, false, "[192.0.2.1-192.0.2.20]"},
		{"steering", wantText, false, "auto"},
		{"claim", wantText, false, "probe"},
		{"vlan", wantNumber, false, "110"},
		{"vxlan", wantMap, false, "{vni: 10010}"},
		{"node", wantText, false, "hq"},
	}}
	vxlanShape = &shape{what: "vxlan", path: "segments[].vxlan", open: true, keys: []key{
		{"vni", wantNumber, true, "10010"},
	}}
	subnetShape = &shape{what: "subnet", path: "segments[].subnets[]", keys: []key{
		{"prefix", wantText, true, "192.0.2.0/24"},
		{"gateway", wantText, false, "192.0.2.1"},
	}}
	zoneShape = &shape{what: "zone", path: "zones[]", keys: []key{
		{"name", wantText, true, "linux"},
		{"subnet", wantTextOrList, true, "10.1.0.0/24"},
		{"link", wantText, true, "br-linux"},
		{"allow", wantList, false, "[{to: 10.1.0.1, ports: [53/udp]}]"},
		{"egress", wantMap, false, "{node: vm1, listen: 172.16.23.2:7445}"},
		{"node", wantText, false, "hq"},
	}}
	allowShape = &shape{what: "allow entry", path: "zones[].allow[]", keys: []key{
		{"to", wantText, true, "10.1.0.1"},
		{"ports", wantList, true, "[53/udp]"},
	}}
	egressShape = &shape{what: "egress", path: "zones[].egress", keys: []key{
		{"node", wantText, true, "vm1"},
		{"listen", wantText, true, "172.16.23.2:7445"},
		{"from", wantTextOrList, false, "[172.16.23.0/24]"},
	}}
	serviceShape = &shape{what: "service", path: "services[]", keys: []key{
		{"name", wantText, true, "web"},
		{"zone", wantText, true, "linux"},
		{"address", wantTextOrList, true, "10.1.0.2"},
		{"ports", wantList, true, "[80, 443, 161/udp]"},
		{"aliases", wantTextOrList, false, "10.3.0.0/24"},
		{"netns", wantText, false, "web"},
	}, foreign: map[string]string{"node": "drop it, a service is where its zone is"}}
	decoyShape = &shape{what: "decoy", path: "decoys[]", keys: []key{
		{"name", wantText, true, "office-web"},
		{"segment", wantText, true, "office"},
		{"addresses", wantList, true, "[192.0.2.100-192.0.2.150, 192.0.2.200]"},
		{"bind", wantList, true, "[{ports: [80, 443], service: web}]"},
		{"path", wantText, false, "relay"},
		{"idle", wantText, false, "30m"},
		{"mac", wantText, false, "vendor:dell"},
		{"personality", wantText, false, "windows"},
		{"node", wantText, false, "hq"},
	}}
	bindShape = &shape{what: "binding", path: "decoys[].bind[]", keys: []key{
		{"ports", wantList, true, "[80, 443]"},
		{"service", wantText, true, "web"},
		{"target", wantNumber, false, "22"},
	}}
	nodeShape = &shape{what: "node", path: "nodes[]", keys: []key{
		{"name", wantText, true, "hq"},
	}}
	gatewayShape = &shape{what: "gateway", path: "gateways[]", keys: []key{
		{"name", wantText, true, "gw1"},
		{"node", wantText, false, "hq"},
		{"listen", wantText, true, "0.0.0.0:7444"},
		{"addresses", wantTextOrList, false, "[hq.example.com:7444]"},
	}}
	controllerShape = &shape{what: "controller", path: "controller", keys: []key{
		{"node", wantText, false, "hq"},
		{"listen", wantText, true, "0.0.0.0:7443"},
		{"urls", wantTextOrList, false, `["https://hq.example.com:7443"]`},
	}}
	scannerShape = &shape{what: "scanner", path: "scanners[]", keys: []key{
		{"name", wantText, true, "audit"},
		{"from", wantTextOrList, true, "[192.0.2.10]"},
		{"ports", wantList, false, "[443, 161/udp]"},
		{"until", wantText, false, "2027-01-31"},
	}}
	inspectShape = &shape{what: "inspect", path: "inspect", keys: []key{
		{"suricata", wantText, false, "managed"},
		{"eve", wantText, false, "/var/log/suricata/eve.json"},
		{"feeds", wantTextOrList, false, "[fifo, tap]"},
		{"tap", wantText, false, "vtap0"},
		{"depth", wantText, false, "16MB"},
		{"rules", wantTextOrList, false, "[/etc/decoynet/rules]"},
		{"system-rules", wantBool, false, "true"},
		{"capture", wantList, false, "[{interface: br-gw}]"},
		{"pcap", wantMap, false, "{size: 1GB, age: 7d}"},
		{"nodes", wantTextOrList, false, "[hq]"},
	}}
	captureShape = &shape{what: "capture", path: "inspect.capture[]", keys: []key{
		{"interface", wantText, true, "br-gw"},
		{"ports", wantList, false, "[7445]"},
	}}
	pcapShape = &shape{what: "pcap", path: "inspect.pcap", keys: []key{
		{"size", wantText, false, "1GB"},
		{"age", wantText, false, "7d"},
		{"session", wantText, false, "16MB"},
	}}

	shapes = []*shape{
		documentShape, recordingShape, segmentShape, vxlanShape, subnetShape, zoneShape, allowShape, egressShape,
		serviceShape, decoyShape, bindShape, nodeShape, gatewayShape, controllerShape,
		scannerShape, inspectShape, captureShape, pcapShape,
	}
)
