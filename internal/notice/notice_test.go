package notice

import (
	"errors"
	"testing"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
)

func TestNoticeSurvivesTheWay(t *testing.T) {
	for _, n := range []Notice{
		{Node: "crm-1", Down: []Down{}},
		{Node: "crm-1", Down: []Down{{Segment: "host", Decoy: "crm", Transport: "tcp", First: 445, Last: 445}, {Segment: "host", Decoy: "crm", Transport: "udp", First: 1, Last: 65535, IPv6: true}}},
	} {
		got, err := Parse(n.Append(nil))
		if diff := cmp.Diff(n, got); diff != "" || err != nil {
			t.Errorf("%v %s", err, diff)
		}
	}
	if got := string((&Notice{Node: "a"}).Append(nil)); got != `{"node":"a","down":[]}` {
		t.Errorf("nothing is down: %s", got)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{
		"", "null", "[]", "{", `{"down":[]}`, `{"node":"a","down":[{}]}`, `{"node":"a","down":[{"transport":"tcp","first":2,"last":1}]}`,
		`{"node":"a","down":[{"transport":"sctp","first":1,"last":1}]}`, `{"node":"a","down":[{"transport":"tcp","first":1,"last":70000}]}`,
	} {
		if n, err := Parse([]byte(text)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q gave %+v, %v", text, n, err)
		}
	}
	if _, err := Parse([]byte(`{"node":"a","down":null,"more":1}`)); err != nil {
		t.Errorf("a field of a newer gateway: %v", err)
	}
}

func TestUp(t *testing.T) {
	n := Notice{Node: "a", Down: []Down{{Segment: "host", Decoy: "crm", Transport: "tcp", First: 8000, Last: 8010}}}
	for _, c := range []struct {
		segment, decoy string
		transport      deception.Transport
		port           uint16
		ipv6, up       bool
	}{
		{"host", "crm", deception.TCP, 8000, false, false},
		{"host", "crm", deception.TCP, 8010, false, false},
		{"host", "crm", deception.TCP, 8011, false, true},
		{"host", "crm", deception.TCP, 8000, true, true},
		{"host", "crm", deception.UDP, 8000, false, true},
		{"host", "erp", deception.TCP, 8000, false, true},
		{"dmz", "crm", deception.TCP, 8000, false, true},
	} {
		if got := n.Up(c.segment, c.decoy, c.transport, c.port, c.ipv6); got != c.up {
			t.Errorf("%+v: up is %v", c, got)
		}
	}
}
