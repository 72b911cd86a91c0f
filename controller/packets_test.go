package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/pki"
	"decoynet/internal/registry"
	"decoynet/internal/rpc"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/rpc/decoynetv1/decoynetv1connect"
	"decoynet/internal/spool"
	"decoynet/internal/store"

	"connectrpc.com/connect"
)

// recorded is a site with a record that holds one session, which crm-1 took and the
// gateway at hq relayed.
func recorded(t *testing.T, o options) (*site, *deception.Session) {
	t.Helper()
	path := filepath.Join(t.TempDir(), store.FileName)
	recorder, err := store.OpenRecorder(store.RecorderConfig{Path: path, Flush: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := recorder.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	v := session(1, "crm-1", "crm")
	v.Start = time.Now().Truncate(time.Millisecond) // an old one expires
	v.ID, v.End = deception.NewSessionID(v.Start), v.Start.Add(time.Second)
	if err := recorder.Commit(within(t), store.Batch{Node: "hq", Sessions: []deception.Session{*v}}); err != nil {
		t.Fatal(err)
	}
	reader, err := store.OpenReader(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close() })
	o.store, o.reader = recorder, reader
	s := newSite(t, o)
	s.apply(t, office)
	return s, v
}

// run runs a node's client, which has these packets.
func (s *site) run(t *testing.T, id *pki.Identity, packets rpc.Packets) {
	t.Helper()
	dir := t.TempDir()
	queue, err := spool.Open(spool.Config{Dir: filepath.Join(dir, "spool")})
	if err != nil {
		t.Fatal(err)
	}
	c, err := rpc.NewClient(rpc.ClientConfig{
		Identity: id, Spool: queue, Dir: dir, Version: "test", Boot: id.Node(), Packets: packets,
		Held: func() string { return "" }, Apply: func(context.Context, *decoynetv1.Snapshot) {},
		Report: func() *decoynetv1.ReportRequest { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
		if err := queue.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	eventually(t, id.Node()+" is connected", func() bool { return c.Status().Connected })
}

// fetched is what GetPackets has told.
type fetched struct {
	text   []byte
	node   string
	capped bool
}

func fetch(t *testing.T, c decoynetv1connect.AdminServiceClient, session string) (f fetched, err error) {
	t.Helper()
	stream, err := c.GetPackets(within(t), connect.NewRequest(&decoynetv1.GetPacketsRequest{Session: session}))
	if err != nil {
		return f, err
	}
	defer stream.Close()
	for stream.Receive() {
		m := stream.Msg()
		f.text = append(f.text, m.GetData()...)
		f.node, f.capped = m.GetNode(), m.GetCapped()
	}
	return f, stream.Err()
}

// keeps has the packets of one session.
func keeps(v *deception.Session, text []byte) rpc.Packets {
	return func(_ context.Context, id deception.SessionID, start, end time.Time, w io.Writer) (bool, error) {
		if id != v.ID || !start.Equal(v.Start) || !end.Equal(v.End) {
			return false, fmt.Errorf("asked for %s from %v to %v", id, start, end)
		}
		_, err := w.Write(text)
		return true, err
	}
}

func keepsNone(context.Context, deception.SessionID, time.Time, time.Time, io.Writer) (bool, error) {
	return false, errors.New("they expired long ago")
}

// pcap is larger than what the connections between hold.
func pcap() []byte {
	text := make([]byte, 6<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(text) // cannot be compressed
	return text
}

// The packets come from the node that has them, whole, and the audit log says who
// got them.
func TestPacketsComeFromTheirNode(t *testing.T) {
	s, v := recorded(t, options{})
	text := pcap()
	hq, _ := s.join(t, "hq")
	agent, _ := s.join(t, "crm-1")
	other, _ := s.join(t, "crm-2")
	s.run(t, hq, keeps(v, text))
	s.run(t, agent, keepsNone)
	s.run(t, other, func(context.Context, deception.SessionID, time.Time, time.Time, io.Writer) (bool, error) {
		t.Error("a node was asked that has nothing to do with the session")
		return false, errors.New("nothing")
	})
	vera, name := s.user(t, "viewer")
	for range 3 {
		f, err := fetch(t, vera, v.ID.String())
		if err != nil || !bytes.Equal(f.text, text) || f.node != "hq" || !f.capped {
			t.Fatalf("%d bytes of %d from %q, capped %v, %v", len(f.text), len(text), f.node, f.capped, err)
		}
	}
	e := s.lastAudit(t, 1)[0]
	if e.Actor != name || e.Role != "viewer" || e.Method != "AdminService/GetPackets" || e.Object != v.ID.String() ||
		e.Result != registry.ResultOK || e.Detail != fmt.Sprintf("%d bytes from node hq", len(text)) {
		t.Errorf("audit entry %v", e)
	}
}

// Where nobody has them, each node says why, also that it cannot be asked.
func TestPacketsThatNobodyHas(t *testing.T) {
	s, v := recorded(t, options{})
	agent, _ := s.join(t, "crm-1")
	s.run(t, agent, keepsNone)
	_, err := fetch(t, s.admin(t), v.ID.String())
	refusedWith(t, err, connect.CodeNotFound, "crm-1: they expired long ago", "hq: it is not connected to this controller; `decoynet pcap "+v.ID.String())
	if e := s.lastAudit(t, 1)[0]; e.Result != registry.ResultFailed || !strings.Contains(e.Detail, "0 bytes were sent") {
		t.Errorf("audit entry %v", e)
	}
	hq, _ := s.join(t, "hq")
	s.run(t, hq, nil)
	_, err = fetch(t, s.admin(t), v.ID.String())
	refusedWith(t, err, connect.CodeNotFound, "hq: this machine keeps no packets")
	_, err = fetch(t, s.admin(t), deception.NewSessionID(time.Now()).String())
	refusedWith(t, err, connect.CodeNotFound, "no session")
	_, err = fetch(t, s.admin(t), "nonsense")
	refusedWith(t, err, connect.CodeInvalidArgument, "bad session identifier")
}

// A node that breaks off is told of, and so is one that says nothing; a reader that
// goes away leaves the node free for the next.
func TestPacketsBreakOff(t *testing.T) {
	short := quick
	short.packets = 300 * time.Millisecond
	s, v := recorded(t, options{timing: &short})
	text := pcap()
	fail, free := make(chan bool, 1), make(chan error, 1)
	hq, node := s.join(t, "hq")
	mute := watch(t, node, "")
	mute.next(t)
	_, err := fetch(t, s.admin(t), v.ID.String())
	refusedWith(t, err, connect.CodeDeadlineExceeded, "nothing came for 300ms from hq")

	s.run(t, hq, func(_ context.Context, _ deception.SessionID, _, _ time.Time, w io.Writer) (bool, error) {
		_, err := w.Write(text)
		select {
		case <-fail:
			return false, errors.New("the disk is broken")
		default:
		}
		free <- err
		return false, err
	})
	fail <- true
	f, err := fetch(t, s.admin(t), v.ID.String())
	refusedWith(t, err, connect.CodeDataLoss, "node hq could not send the rest: the disk is broken")
	if len(f.text) != len(text) {
		t.Errorf("%d bytes came before that", len(f.text))
	}

	ctx, cancel := context.WithCancel(within(t))
	stream, err := s.admin(t).GetPackets(ctx, connect.NewRequest(&decoynetv1.GetPacketsRequest{Session: v.ID.String()}))
	if err != nil || !stream.Receive() {
		t.Fatalf("nothing comes: %v", err)
	}
	cancel()
	_ = stream.Close()
	select {
	case err := <-free:
		if err == nil {
			t.Error("the node has sent all of it to nobody")
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the node goes on for 30 s")
	}
	if f, err = fetch(t, s.admin(t), v.ID.String()); err != nil || !bytes.Equal(f.text, text) {
		t.Errorf("the next gets %d bytes, %v", len(f.text), err)
	}
}

// Only a node that was asked is listened to, and of them only the first.
func TestPacketsOfOthersAreRefused(t *testing.T) {
	s, v := recorded(t, options{})
	_, hq := s.join(t, "hq")
	_, agent := s.join(t, "crm-1")
	_, stranger := s.join(t, "crm-2")
	w, ok := s.wishes.begin(map[string]bool{"hq": true, "crm-1": true})
	if !ok {
		t.Fatal("no room")
	}
	sent := func(c decoynetv1connect.NodeServiceClient, id []byte) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		stream := c.SendPackets(ctx)
		_ = stream.Send(&decoynetv1.SendPacketsRequest{Wish: id, Data: []byte("packets")}) // the answer says why not
		_, err := stream.CloseAndReceive()
		return err
	}
	refusedWith(t, sent(stranger, w.id[:]), connect.CodeAborted, "nobody waits")
	refusedWith(t, sent(hq, v.ID[:]), connect.CodeAborted, "nobody waits")
	refusedWith(t, sent(hq, []byte("short")), connect.CodeAborted, "nobody waits")
	got := make(chan error, 1)
	go func() { got <- sent(hq, w.id[:]) }()
	next := func() (p piece) {
		t.Helper()
		select {
		case p = <-w.pieces:
		case <-time.After(20 * time.Second):
			t.Error("nothing comes")
		}
		return p
	}
	if p := next(); p.node != "hq" || string(p.GetData()) != "packets" {
		t.Errorf("got %v", p)
	}
	refusedWith(t, sent(agent, w.id[:]), connect.CodeAborted, "another node")
	if p := next(); p.node != "hq" || p.SendPacketsRequest != nil {
		t.Errorf("got %v", p)
	}
	if err := <-got; err != nil {
		t.Error(err)
	}
	s.wishes.end(w)
	for range maxWishes {
		w, ok := s.wishes.begin(nil)
		if !ok {
			t.Fatal("no room")
		}
		defer s.wishes.end(w)
	}
	_, err := fetch(t, s.admin(t), v.ID.String())
	refusedWith(t, err, connect.CodeResourceExhausted, "try again")
}

// What the controller's own machine keeps need not be asked for.
func TestPacketsOfThisMachine(t *testing.T) {
	text := pcap()
	s, v := recorded(t, options{packets: func(_ context.Context, _ deception.SessionID, _, _ time.Time, w io.Writer) (bool, error) {
		_, err := w.Write(text)
		return true, err
	}})
	f, err := fetch(t, s.admin(t), v.ID.String())
	if err != nil || !bytes.Equal(f.text, text) || !f.capped {
		t.Errorf("%d bytes, capped %v, %v", len(f.text), f.capped, err)
	}
}
