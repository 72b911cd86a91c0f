package verdict

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var one = Flow{"tcp", netip.MustParseAddrPort("10.0.0.1:1234"), netip.MustParseAddrPort("10.0.0.2:80")}

const (
	forth = `"src_ip":"10.0.0.1","src_port":1234,"dest_ip":"10.0.0.2","dest_port":80,"proto":"TCP"`
	back  = `"src_ip":"10.0.0.2","src_port":80,"dest_ip":"10.0.0.1","dest_port":1234,"proto":"TCP"`
)

func read(t *testing.T, lines string) Events {
	t.Helper()
	path := filepath.Join(t.TempDir(), "eve.json")
	if err := os.WriteFile(path, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := ReadEvents(path, []Flow{one})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestEventsAreComparedByWhatTheySay(t *testing.T) {
	want := read(t, `{"event_type":"alert",`+forth+`,"flow_id":1,"alert":{"gid":1,"signature_id":7,"rev":1,"signature":"x"}}
{"event_type":"http",`+forth+`,"flow_id":1,"tx_id":0,"timestamp":"a","http":{"url":"/","length":3}}
{"event_type":"fileinfo",`+back+`,"http":{"url":"/","length":3},"fileinfo":{"filename":"/","sha256":"ab","tx_id":0}}
{"event_type":"flow",`+forth+`,"app_proto":"http"}
`)
	same := read(t, `{"event_type":"fileinfo",`+forth+`,"http":{"url":"/","length":9},"fileinfo":{"filename":"/","sha256":"ab","tx_id":4}}
{"event_type":"alert",`+forth+`,"flow_id":9,"alert":{"gid":1,"signature_id":7,"rev":1,"signature":"x"}}
{"event_type":"http",`+back+`,"flow_id":9,"tx_id":3,"timestamp":"b","vlan":[1],"ether":{},"http":{"url":"/","length":3}}
{"event_type":"flow",`+back+`,"app_proto":"http"}
{"event_type":"alert",`+forth+`,"alert":{"gid":1,"signature_id":2210058,"rev":1,"signature":"of TCP"}}
{"event_type":"http","src_ip":"10.9.9.9","src_port":1,"dest_ip":"10.0.0.2","dest_port":80,"proto":"TCP","http":{}}
`)
	if same.Excluded != 2 {
		t.Errorf("%d events were left out, want that of TCP and that of the other flow", same.Excluded)
	}
	same.Excluded = 0
	if diff := cmp.Diff(want, same); diff != "" {
		t.Errorf("the same was said, and differs:\n%s", diff)
	}
	other := read(t, `{"event_type":"alert",`+back+`,"alert":{"gid":1,"signature_id":7,"rev":1,"signature":"x"}}
{"event_type":"http",`+forth+`,"http":{"url":"/other","length":3}}
{"event_type":"fileinfo",`+back+`,"http":{"url":"/"},"fileinfo":{"filename":"/","sha256":"cd"}}
{"event_type":"flow",`+forth+`,"app_proto":"tls"}
`)
	for name, pair := range map[string][2]map[string]int{
		"alerts": {want.Alerts, other.Alerts}, "records": {want.Records, other.Records},
		"files": {want.Files, other.Files}, "applications": {want.Applications, other.Applications},
	} {
		if c, _, _ := Compare(pair[0], pair[1], false); c.Kept != 0 || c.Total == 0 || c.More != c.Total {
			t.Errorf("%s that differ: %+v, want none kept", name, c)
		}
	}
}

func TestCompareCounts(t *testing.T) {
	want, got := map[string]int{"a": 3, "b": 1}, map[string]int{"a": 1, "c": 2}
	if c, missed, more := Compare(want, got, false); c != (Count{Kept: 1, Total: 4, More: 2}) || !cmp.Equal(missed, []string{"a", "b"}) || !cmp.Equal(more, []string{"c"}) {
		t.Errorf("%+v, missed %v, more %v", c, missed, more)
	}
	if c, missed, _ := Compare(want, got, true); c != (Count{Kept: 1, Total: 2, More: 1}) || !cmp.Equal(missed, []string{"b"}) {
		t.Errorf("distinct: %+v, missed %v", c, missed)
	}
}

func TestExplained(t *testing.T) {
	list, err := ParseExplained("# a list\n\n* | alerts | one | x | because\nfifo | * | two | * | so\n")
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		feed, kind, capture, what string
		want                      bool
	}{
		{"tap", "alerts", "one", "a x b", true},
		{"tap", "alerts", "one", "y", false},
		{"tap", "records", "one", "x", false},
		{"fifo", "files", "two", "whatever", true},
		{"tap", "files", "two", "whatever", false},
	} {
		if _, ok := list.Why(test.feed, test.kind, test.capture, test.what); ok != test.want {
			t.Errorf("%+v: explained %v", test, ok)
		}
	}
	if left := list.Unused(); len(left) != 0 {
		t.Errorf("unused: %+v", left)
	}
	if _, err := ParseExplained("a | b | c |  | e"); err == nil {
		t.Error("a line that lacks a field was read")
	}
}
