package eve

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"decoynet/deception"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var asValues = cmp.Options{cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }), cmpopts.EquateEmpty()}

// What a line is becomes a finding of its session, whatever direction it has.
func TestFindings(t *testing.T) {
	sessions := roster{}
	s := sessions.add(session(1))
	at := time.Date(2026, 3, 4, 5, 6, 7, 9000, time.UTC)
	base := deception.Finding{Session: s.ID, Time: at, Node: "hq", Source: s.Source, Destination: s.Destination, Transport: deception.TCP}
	alert := deception.Alert{GID: 1, SID: 2100498, Revision: 7, Signature: `GPL "root"`, Category: "Bad", Severity: 2, ToService: true}
	back := alert
	back.ToService = false
	head := `{"event_type":"%","src_ip":"10.9.0.1","src_port":40001,"dest_ip":"192.168.32.100","dest_port":80,"proto":"TCP","flow_id":9,`
	for name, test := range map[string]struct {
		kind, ether, extra string
		back               bool
		application        string
		alert              *deception.Alert
		document           string
	}{
		"alert": {
			kind: "alert", ether: "packet", extra: alertMember + `,"packet":"AAAA","stream":1`, application: "http", alert: &alert,
			document: `"pkt_src":"wire/pcap","community_id":"1:x="` + alertMember,
		},
		"alert of the way back": {
			kind: "alert", ether: "packet", extra: alertMember, back: true, application: "http", alert: &back,
			document: `"pkt_src":"wire/pcap","community_id":"1:x="` + alertMember,
		},
		"file of the way back": {
			kind: "fileinfo", ether: "packet", extra: `,"app_proto":"smb","fileinfo":{"size":1}`, back: true, application: "smb",
			document: `"pkt_src":"wire/pcap","community_id":"1:x=","app_proto":"smb","fileinfo":{"size":1}`,
		},
		"flow": {
			kind: "flow", ether: "flow", extra: `,"app_proto":"failed","flow":{"age":1},"tcp":{"syn":true}`,
			document: `"community_id":"1:x=","app_proto":"failed","flow":{"age":1}`,
		},
		"flow of the way back": {kind: "netflow", ether: "flow", back: true, document: `"community_id":"1:x="`},
		"record":               {kind: "ssh", ether: "packet", application: "ssh", document: `"pkt_src":"wire/pcap","community_id":"1:x="`},
		"second version": {
			kind: "http", ether: "packet", extra: `,"http":{"version":"2"}`, application: "http2",
			document: `"pkt_src":"wire/pcap","community_id":"1:x=","http":{"version":"2"}`,
		},
		"addresses within": {
			kind: "http", ether: "packet", extra: `,"flow":{"src_ip":"1.1.1.1","age":3,"dest_ip":"2.2.2.2","src_port":1,"dest_port":2}`, application: "http",
			document: `"pkt_src":"wire/pcap","community_id":"1:x=","flow":{"age":3}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			f, k := newFolder(t), newSink()
			f.write(t, "eve.json", record(&s, test.kind, 9, test.back, test.ether, test.extra)+"\n")
			r := start(t, f.config(sessions, k))
			drive(t, r, time.Now())
			want := base
			want.Kind, want.Application, want.Alert = test.kind, test.application, test.alert
			want.Document = []byte(head[:15] + test.kind + head[16:] + test.document + "}")
			got := k.all()
			if len(got) != 1 {
				t.Fatalf("%d findings; %+v", len(got), r.Stats())
			}
			if id := got[0].ID; id[6]>>4 != 7 || id[8]>>6 != 2 || binary.BigEndian.Uint64(id[:8])>>16 != uint64(at.UnixMilli()) {
				t.Errorf("identifier %s", id)
			}
			got[0].ID = deception.SessionID{}
			if diff := cmp.Diff(want, got[0], asValues); diff != "" {
				t.Errorf("(-want +got):\n%s\n%s\n%s", diff, want.Document, got[0].Document)
			}
		})
	}
}
