package rpc

import (
	"bytes"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/rpc/decoynetv1"

	"github.com/google/go-cmp/cmp"
)

// wholeState has every field set that a state has.
func wholeState() *deception.State {
	prefix := netip.MustParsePrefix
	return &deception.State{
		Node:  "hq",
		Nodes: []deception.Node{{Name: "hq"}},
		Gateways: []deception.Gateway{{
			Name: "gw1", Node: "hq", Listen: netip.MustParseAddrPort("0.0.0.0:7444"), Addresses: []string{"gw.example.com:7444"},
		}},
		Segments: []deception.Segment{{
			Name: "office", Node: "hq", Parent: "eth0", Steering: deception.SteeringAuto,
			Subnets: []deception.Subnet{
				{Prefix: prefix("192.168.32.0/24"), Gateway: netip.MustParseAddr("192.168.32.1")},
				{Prefix: prefix("2001:db8::/64")},
			},
			Exclude: []deception.AddrRange{{From: netip.MustParseAddr("192.168.32.7"), To: netip.MustParseAddr("192.168.32.9")}},
		}},
		Zones: []deception.Zone{{
			Name: "linux", Node: "vm1", Subnets: []netip.Prefix{prefix("10.1.0.0/24")}, Link: "br-linux",
			Egress: &deception.Egress{Node: "vm1", Listen: netip.MustParseAddrPort("172.16.23.2:7445"), From: []netip.Prefix{prefix("172.16.23.0/24")}},
			Allow:  []deception.Allow{{To: prefix("10.1.0.1/32"), Ports: []deception.PortRange{{Transport: deception.UDP, First: 53, Last: 53}}}},
		}},
		Services: []deception.Service{{
			Name: "web", Zone: "linux", Addr4: netip.MustParseAddr("10.1.0.2"), Addr6: netip.MustParseAddr("fd00::2"),
			Ports: []deception.PortRange{deception.Port(deception.TCP, 80)}, Aliases: []netip.Prefix{prefix("10.9.0.0/16")}, Netns: "web",
		}},
		Decoys: []deception.Decoy{{
			Name: "office-web", Segment: "office", Node: "hq", Path: deception.PathRelay, Idle: 10 * time.Minute,
			Addresses: []deception.AddrRange{{From: netip.MustParseAddr("192.168.32.100"), To: netip.MustParseAddr("192.168.32.150")}},
			Bind:      []deception.Binding{{Ports: []deception.PortRange{deception.Port(deception.TCP, 8080)}, Service: "web", Target: 80}},
		}, {
			Name: "crm", Segment: "host", Node: "hq", Any: true, Path: deception.PathRelay,
		}},
		Scanners: []deception.Scanner{{
			Name: "audit", From: []netip.Prefix{prefix("192.168.40.0/28"), prefix("2001:db8:40::1/128")},
			Ports: []deception.PortRange{deception.Port(deception.UDP, 161)}, Until: time.Date(2027, 2, 1, 0, 0, 0, 0, time.UTC),
		}},
	}
}

func TestStateRoundTrip(t *testing.T) {
	want := wholeState()
	b, err := EncodeState(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeState(&decoynetv1.Snapshot{State: b}, "1.0")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, same); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	again, err := EncodeState(got)
	if err != nil || !bytes.Equal(b, again) {
		t.Errorf("written again:\n%s\n%s\n%v", b, again, err)
	}
}

// Nodes of versions that know no scanners read the states of documents without.
func TestStateWithoutScanners(t *testing.T) {
	s := wholeState()
	s.Scanners = nil
	if b, err := EncodeState(s); err != nil || bytes.Contains(b, []byte("Scanners")) {
		t.Errorf("%s: %v", b, err)
	}
}

func TestStateOfAnotherVersion(t *testing.T) {
	s := &decoynetv1.Snapshot{Revision: "r7", Version: "2.0", State: []byte(`{"Decoys":[{"Name":"a","Sticky":true}]}`)}
	_, err := DecodeState(s, "1.0")
	want := `revision r7: json: unknown field "Sticky": the controller runs 2.0, this node 1.0: upgrade this node`
	if !errors.Is(err, ErrUpgrade) || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	s.Version = ""
	if _, err := DecodeState(s, "1.0"); !strings.Contains(err.Error(), "runs an unknown version") {
		t.Errorf("got %v", err)
	}
}

func TestBadStates(t *testing.T) {
	for text, want := range map[string]string{
		``:         "revision r: read desired state: EOF",
		`{"Node":`: "revision r: read desired state: unexpected EOF",
		`{} {}`:    "revision r: read desired state: something follows it",
		`{"Decoys":[{"Name":"d","Addresses":[{"From":"192.0.2.9","To":"192.0.2.1"}]}]}`:         "decoy d: bad address range",
		`{"Decoys":[{"Name":"d","Addresses":[{"From":"192.0.2.9","To":"2001:db8::1"}]}]}`:       "decoy d: bad address range",
		`{"Decoys":[{"Name":"d","Addresses":[{"From":"","To":""}]}]}`:                           "decoy d: bad address range",
		`{"Decoys":[{"Name":"d","Bind":[{"Ports":[{"Transport":6,"First":9,"Last":8}]}]}]}`:     "decoy d: bad port range",
		`{"Decoys":[{"Name":"d","Bind":[{"Ports":[{"Transport":6,"First":9,"Last":70000}]}]}]}`: "cannot unmarshal number 70000",
		`{"Decoys":[{"Name":"d","Idle":-1}]}`:                                                   "decoy d: idle timeout",
		`{"Services":[{"Name":"s","Ports":[{"Transport":1,"First":1,"Last":1}]}]}`:              "service s: bad port range",
		`{"Services":[{"Name":"s","Addr4":"::1"}]}`:                                             "service s: ::1 is no IPv4 address",
		`{"Services":[{"Name":"s","Addr6":"192.0.2.1"}]}`:                                       "service s: 192.0.2.1 is no IPv6 address",
		`{"Segments":[{"Name":"g","Subnets":[{"Prefix":""}]}]}`:                                 "segment g: bad subnet",
		`{"Scanners":[{"Name":"k","From":["::ffff:192.0.2.1/120"]}]}`:                           "scanner k: bad network",
		`{"Scanners":[{"Name":"k","From":[""]}]}`:                                               "scanner k: bad network",
		`{"Scanners":[{"Name":"k","Ports":[{"Transport":6,"First":0,"Last":1}]}]}`:              "scanner k: bad port range",
		`{"Zones":[{"Name":"z","Egress":{"Listen":"nowhere"}}]}`:                                "read desired state",
	} {
		_, err := DecodeState(&decoynetv1.Snapshot{Revision: "r", State: []byte(text)}, "1.0")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", text, err, want)
		}
	}
}
