package rpc

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/pki"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/spool"
)

var base = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)

// id makes the identifier of the n-th thing.
func id(n int) deception.SessionID {
	id := deception.SessionID{6: 0x70, 8: 0x80}
	binary.BigEndian.PutUint32(id[12:], uint32(n))
	return id
}

// event makes the n-th event.
func event(n int) *deception.Event {
	return &deception.Event{ID: id(n), Time: base, Kind: deception.EventPortInUse, Node: "crm-1", Message: fmt.Sprint("event ", n)}
}

// probe makes the n-th probe.
func probe(n int) *deception.Probe {
	return &deception.Probe{
		ID: id(n), Start: base, Last: base.Add(time.Second), Node: "crm-1", Segment: "office",
		Source: netip.MustParseAddr("192.0.2.1"), SourceMAC: "02:00:00:00:00:01", Sources: 1, Kind: deception.ScanPort,
		Contacts: [deception.ContactKinds]uint64{1, 2, 3, 4}, Addresses: 1, Ports: 3,
		First: netip.MustParseAddrPort("198.51.100.7:0"), Latest: netip.MustParseAddrPort("198.51.100.7:99"), Scanner: "audit",
	}
}

// finding makes the n-th finding, an alert.
func finding(n int) *deception.Finding {
	return &deception.Finding{
		ID: id(n), Session: id(n + 1000), Time: base, Node: "crm-1", Kind: deception.KindAlert, Transport: deception.TCP, Application: "smb",
		Source: netip.MustParseAddrPort("192.0.2.1:50000"), Destination: netip.MustParseAddrPort("198.51.100.7:445"),
		Document: []byte(`{"event_type":"alert"}`), FeedLost: 3, Partial: true, Scanner: "audit",
		Alert: &deception.Alert{GID: 1, SID: 2025649, Revision: 3, Signature: "ET EXPLOIT", Category: "A Network Trojan was detected", Severity: 1, ToService: true},
		Of:    deception.Place{Node: "crm-1", Segment: "host", Decoy: "crm", Service: "win"},
	}
}

// session makes the n-th session, ended.
func session(n int) *deception.Session {
	return &deception.Session{
		ID: id(n), Start: base.Add(time.Duration(n) * time.Millisecond), End: base.Add(time.Hour),
		Node: "crm-1", Segment: "host", Decoy: "crm", Service: "win", Transport: deception.TCP, Path: deception.PathRelay,
		Source:      netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(n)),
		Destination: netip.MustParseAddrPort("198.51.100.7:445"),
		SourceHead:  []byte("hello"), SourceBytes: uint64(n), Reason: deception.EndGateway,
	}
}

// checkStore checks that records 0 to total-1 are there, and which came twice.
func checkStore(t *testing.T, s *store, total int) (twice int) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range total {
		switch times := s.times[id(n)]; {
		case times == 0:
			t.Fatalf("record %d of %d is missing", n, total)
		case times > 1:
			twice++
			if !s.unsure[id(n)] {
				t.Fatalf("record %d came %d times, and its acknowledgement was not lost", n, times)
			}
		}
	}
	if len(s.times) != total {
		t.Errorf("%d records, %d were sent", len(s.times), total)
	}
	return twice
}

// An acknowledgement that is lost costs a repetition of its batch, of no other.
func TestLostAcknowledgement(t *testing.T) {
	a, s := newAuthority(t), newStore()
	c := startController(t, a, s)
	c.set(func() {
		c.onUpload = func(n int) fate {
			if n%3 == 1 {
				return loseAck
			}
			return commit
		}
	})
	n := startNode(t, a, c.url)
	const total = 10_000
	for i := range total {
		n.rec.Ended(session(i))
	}
	eventually(t, "all delivered", func() bool { return n.spool.Stats().Waiting == 0 }, n.Status)
	if twice := checkStore(t, s, total); twice == 0 {
		t.Error("no acknowledgement was lost")
	}
	if st := n.Status(); st.Uploaded != total || st.UploadErr != "" || st.LastUpload.IsZero() {
		t.Errorf("status %+v", st)
	}
}

// An upload that hangs, or a store that fails, holds up neither snapshots nor
// reports; what waited is delivered when it is over.
func TestUploadHangs(t *testing.T) {
	for name, what := range map[string]fate{"hangs": hang, "fails": breakdown} {
		t.Run(name, func(t *testing.T) {
			a, s := newAuthority(t), newStore()
			c := startController(t, a, s)
			c.set(func() { c.onUpload = func(int) fate { return what } })
			c.publish(snapshot(t, "r1"))
			n := startNode(t, a, c.url)
			n.wantApplied(t, "r1")
			for i := range 3000 {
				n.rec.Ended(session(i))
			}
			eventually(t, "an upload is under way", func() bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				return c.uploads > 0
			}, n.Status)
			c.publish(snapshot(t, "r2"))
			n.wantApplied(t, "r2")
			eventually(t, "reported", func() bool {
				r := c.lastReport()
				return r.GetRevision() == "r2" && r.GetSpool().GetWaiting() == 3000
			}, n.Status)
			eventually(t, "the failure is told", func() bool { return n.Status().UploadErr != "" }, n.Status)
			if what == breakdown && !strings.Contains(n.Status().UploadErr, `"the database is away"`) {
				t.Errorf("status %+v", n.Status())
			}
			if !n.Status().Connected {
				t.Error("not connected any more")
			}
			c.set(func() { c.onUpload = nil })
			eventually(t, "all delivered", func() bool { return n.spool.Stats().Waiting == 0 }, n.Status)
			checkStore(t, s, 3000)
		})
	}
}

func TestRestartDuringUpload(t *testing.T) {
	a, s := newAuthority(t), newStore()
	c := startController(t, a, s)
	c.set(func() { c.onUpload = func(int) fate { return slow } })
	n := startNode(t, a, c.url)
	const total = 10_000
	for i := range total {
		n.rec.Ended(session(i))
	}
	for range 3 {
		before := s.count()
		eventually(t, "some more delivered", func() bool { return s.count() > before || s.count() == total }, n.Status)
		c.stop()
		// An upload that was cut off may have been committed.
		s.mu.Lock()
		for _, batch := range s.batches[max(0, len(s.batches)-1):] {
			for _, id := range batch {
				s.unsure[id] = true
			}
		}
		s.mu.Unlock()
		c.restart(t)
	}
	eventually(t, "all delivered", func() bool { return n.spool.Stats().Waiting == 0 }, n.Status)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range total {
		if s.times[id(i)] == 0 {
			t.Fatalf("record %d is missing", i)
		}
	}
}

// One record that the controller cannot read is given up and told of; all others
// get through.
func TestUnreadableRecord(t *testing.T) {
	a, s := newAuthority(t), newStore()
	c := startController(t, a, s)
	n := startNode(t, a, c.url)
	for i := range 300 {
		n.rec.Ended(session(i))
		if i == 123 {
			n.spool.Put([]byte("what is this"))
		}
	}
	eventually(t, "all delivered", func() bool { return n.spool.Stats().Waiting == 0 }, n.Status)
	if twice := checkStore(t, s, 300); twice != 0 {
		t.Errorf("%d came twice", twice)
	}
	if st := n.Status(); st.Refused != 1 || st.Uploaded != 300 {
		t.Errorf("status %+v", st)
	}
	eventually(t, "reported", func() bool {
		r := c.lastReport()
		return len(r.GetProblems()) == 1 && strings.Contains(r.GetProblems()[0], "1 records could not be read")
	}, c.lastReport)
}

// What the spool had to give up becomes an event itself.
func TestDroppedRecordsAreTold(t *testing.T) {
	n := startNode(t, newAuthority(t), tarPit(t))
	n.spool.Put(make([]byte, spool.MaxRecord+1))
	eventually(t, "an event is there", func() bool { return n.spool.Stats().Waiting == 1 }, n.spool.Stats)
	b, err := n.spool.Next(context.Background(), 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	r, err := DecodeRecord(b.Records[0])
	if err != nil || r.Event == nil || r.Event.Kind != deception.EventSpoolDropped || r.Event.Node != "crm-1" || !strings.HasPrefix(r.Event.Message, "1 records") {
		t.Errorf("got %+v, %v", r.Event, err)
	}
}

// clientProcess is a node that records sessions and delivers them, until it is
// killed. It prints the number of sessions of which it knows that they are on disk.
func clientProcess(dir string) error {
	id, err := pki.LoadIdentity(dir)
	if err != nil {
		return err
	}
	s, err := spool.Open(spool.Config{Dir: dir + "/spool"})
	if err != nil {
		return err
	}
	c, err := NewClient(ClientConfig{
		Identity: id, Spool: s, Dir: dir, Version: "1.0", Boot: strconv.Itoa(os.Getpid()),
		Held:   func() string { return "" },
		Apply:  func(context.Context, *decoynetv1.Snapshot) {},
		Report: func() *decoynetv1.ReportRequest { return nil },
	})
	if err != nil {
		return err
	}
	c.pace = quickPace
	go c.Run(context.Background())
	r := NewRecorder(s)
	var first, count int
	if _, err := fmt.Sscan(os.Getenv("DECOYNET_RPC_TEST_SESSIONS"), &first, &count); err != nil {
		return err
	}
	for n := first; n < first+count; n++ {
		r.Ended(session(n))
	}
	for s.Stats().Queued > 0 {
		time.Sleep(time.Millisecond)
	}
	fmt.Println("written")
	select {}
}

// Ten thousand records, and the node is killed while it delivers them. The next
// process delivers the rest. Only what was on its way at that moment comes twice.
func TestKilledClient(t *testing.T) {
	a, s := newAuthority(t), newStore()
	c := startController(t, a, s)
	c.set(func() { c.onUpload = func(int) fate { return slow } })
	dir := t.TempDir()
	if err := a.identity(t, "crm-1", time.Hour, c.url).Save(dir); err != nil {
		t.Fatal(err)
	}
	const half = 5000
	for round := range 2 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), roleVar+"=client", dirVar+"="+dir,
			fmt.Sprintf("DECOYNET_RPC_TEST_SESSIONS=%d %d", round*half, half))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(60*time.Second, func() { cmd.Process.Kill() })
		defer kill.Stop()
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "written\n" {
			t.Fatalf("the client says %q, %v", line, err)
		}
		before := s.count()
		eventually(t, "some delivered", func() bool { return s.count() > before || s.count() == (round+1)*half }, s.count)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		eventually(t, "what was on its way is committed", func() bool { return c.uploading.Load() == 0 }, c.uploading.Load)
		s.mu.Lock()
		for _, id := range s.batches[len(s.batches)-1] {
			s.unsure[id] = true // nobody knows whether the answer got through
		}
		s.mu.Unlock()
	}
	c.set(func() { c.onUpload = nil })
	n := runNode(t, mustLoad(t, dir), dir, nil)
	eventually(t, "all delivered", func() bool { return s.count() == 2*half && n.spool.Stats().Waiting == 0 }, n.Status)
	t.Logf("%d came twice", checkStore(t, s, 2*half))
}

func mustLoad(t *testing.T, dir string) *pki.Identity {
	t.Helper()
	id, err := pki.LoadIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	return id
}
