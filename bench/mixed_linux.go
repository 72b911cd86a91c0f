package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"decoynet/bench/subject"
)

// size is one kind of mixed flow.
type size struct {
	share  int // of a hundred flows
	answer int // bytes
}

// sizes are what flows are mixed of. Suricata looks at the first megabyte of a
// direction: the mark of larger answers stands at their beginning.
var sizes = []size{{60, 2 << 10}, {30, 64 << 10}, {8, 900 << 10}, {2, 8 << 20}}

const markedWithin = 1 << 20

// mixedFlow is one flow of the load.
type mixedFlow struct {
	local netip.AddrPort
	decoy netip.Addr
	asked time.Time // when the intruder wrote the marked question
	err   error
}

// flowKey is how an event of Suricata is led back to it.
type flowKey struct {
	port  uint16
	decoy netip.Addr
}

// serveMixed answers questions: HTTP, or a line of its own.
func serveMixed(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			answerMixed(c)
		}()
	}
}

func answerMixed(c net.Conn) {
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return
	}
	web := strings.HasPrefix(line, "GET ")
	for header := line; web && err == nil && header != "\r\n"; {
		header, err = r.ReadString('\n')
	}
	_, after, _ := strings.Cut(line, "size=")
	n, _ := strconv.Atoi(strings.FieldsFunc(after+" ", func(r rune) bool { return r < '0' || r > '9' })[0])
	body := filler[:min(n, len(filler))]
	var head string
	if web {
		head = fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", len(body)+len(subject.AnsweredMark))
	}
	parts := [][]byte{[]byte(head), body, []byte(subject.AnsweredMark)}
	if n >= markedWithin {
		parts[1], parts[2] = parts[2], parts[1]
	}
	for _, p := range parts {
		if _, err := c.Write(p); err != nil {
			return
		}
	}
}

// filler is what answers are made of: nothing that a rule knows.
var filler = func() []byte {
	b := make([]byte, 8<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b) // it never fails
	return b
}()

func pickSize() int {
	n := rand.IntN(100)
	for _, s := range sizes {
		if n -= s.share; n < 0 {
			return s.answer
		}
	}
	return sizes[0].answer
}

// ask runs one flow to its end.
func ask(ctx context.Context, in *subject.Instance, decoy netip.Addr, answer int) mixedFlow {
	f := mixedFlow{decoy: decoy}
	c, err := in.Site.Dial(ctx, netip.AddrPortFrom(decoy, subject.PortMixed))
	if err != nil {
		f.err = err
		return f
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	f.local = netip.MustParseAddrPort(c.LocalAddr().String())
	question := fmt.Sprintf("GET /%s?size=%d HTTP/1.1\r\nHost: bench\r\nUser-Agent: bench\r\n\r\n", subject.AskedMark, answer)
	if rand.IntN(2) == 0 {
		question = fmt.Sprintf("\x16opaque %s size=%d\n", subject.AskedMark, answer)
	}
	f.asked = time.Now()
	if _, f.err = io.WriteString(c, question); f.err != nil {
		return f
	}
	if f.err = c.(*net.TCPConn).CloseWrite(); f.err != nil {
		return f
	}
	n, err := io.Copy(io.Discard, c)
	if f.err = err; err == nil && n < int64(answer) {
		f.err = fmt.Errorf("answer of %d bytes, want %d", n, answer)
	}
	return f
}

// flood starts a flow whenever pause, given its size, has passed since the one
// before, for a while, and waits for all of them.
func flood(ctx context.Context, in *subject.Instance, during time.Duration, next func() (answer int, pause time.Duration)) ([]mixedFlow, time.Duration) {
	decoys := in.Site.Targets(subject.Decoys)
	var mu sync.Mutex // guards flows
	var flows []mixedFlow
	var all sync.WaitGroup
	began := time.Now()
	due := began
	for i := 0; time.Since(began) < during && ctx.Err() == nil; i++ {
		answer, pause := next()
		all.Go(func() {
			f := ask(ctx, in, decoys[i%len(decoys)], answer)
			mu.Lock()
			defer mu.Unlock()
			flows = append(flows, f)
		})
		due = due.Add(pause)
		time.Sleep(time.Until(due))
	}
	all.Wait()
	return flows, time.Since(began)
}

// alerts follows eve.json: when each alert of each flow was first there.
type alerts struct {
	path string
	file *os.File
	rest []byte
	seen map[int]map[flowKey]time.Time // by SID
}

// followAlerts begins at the file's end.
func followAlerts(path string) (*alerts, error) {
	file, err := os.Open(path)
	if err == nil {
		_, err = file.Seek(0, io.SeekEnd)
	}
	if err != nil {
		return nil, fmt.Errorf("follow alerts: %w", err)
	}
	return &alerts{path: path, file: file, seen: map[int]map[flowKey]time.Time{subject.AskedSID: {}, subject.AnsweredSID: {}}}, nil
}

// look takes what is new and tells whether there was an alert.
func (a *alerts) look() (bool, error) {
	b := make([]byte, 256<<10)
	n, err := a.file.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("follow alerts: %w", err)
	}
	now, some := time.Now(), false
	a.rest = append(a.rest, b[:n]...)
	for {
		line, rest, whole := bytes.Cut(a.rest, []byte("\n"))
		if !whole {
			return some, nil
		}
		a.rest = rest
		some = a.take(line, now) || some
	}
}

// take tells whether a line was an alert of ours.
func (a *alerts) take(line []byte, now time.Time) bool {
	var e struct {
		Type     string     `json:"event_type"`
		From     netip.Addr `json:"src_ip"`
		To       netip.Addr `json:"dest_ip"`
		FromPort uint16     `json:"src_port"`
		ToPort   uint16     `json:"dest_port"`
		Alert    struct {
			SID int `json:"signature_id"`
		} `json:"alert"`
	}
	if !bytes.Contains(line, []byte(`"event_type":"alert"`)) || json.Unmarshal(line, &e) != nil || a.seen[e.Alert.SID] == nil {
		return false
	}
	key := flowKey{e.FromPort, e.To}
	if e.Alert.SID == subject.AnsweredSID { // an intruder's port may be the service's, too
		key = flowKey{e.ToPort, e.From}
	}
	if _, known := a.seen[e.Alert.SID][key]; !known {
		a.seen[e.Alert.SID][key] = now
	}
	return true
}

// watch looks all the time until told to stop, and then until nothing has come for
// a while.
func (a *alerts) watch(stop <-chan struct{}) error {
	const quiet = 3 * time.Second
	var stopped bool
	last := time.Now()
	for !stopped || time.Since(last) < quiet {
		select {
		case <-stop:
			if !stopped {
				stopped, last = true, time.Now()
			}
			time.Sleep(time.Millisecond)
		case <-time.After(time.Millisecond):
		}
		some, err := a.look()
		if err != nil {
			return err
		}
		if some {
			last = time.Now()
		}
	}
	return a.file.Close()
}

// examine runs a load of questions and follows the alerts meanwhile.
func examine(ctx context.Context, in *subject.Instance, during time.Duration, next func() (int, time.Duration)) ([]mixedFlow, time.Duration, *alerts, error) {
	l, err := in.Site.Service.Listen(ctx, "tcp4", netip.AddrPortFrom(in.Site.ServiceAddr, subject.PortMixed).String())
	if err != nil {
		return nil, 0, nil, fmt.Errorf("serve mixed flows: %w", err)
	}
	defer l.Close()
	go serveMixed(l)
	a, err := followAlerts(subject.EventsOf(in.Site))
	if err != nil {
		return nil, 0, nil, err
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- a.watch(stop) }()
	flows, took := flood(ctx, in, during, next)
	close(stop)
	if err := <-done; err != nil {
		return nil, 0, nil, err
	}
	var errs []error
	for _, f := range flows {
		errs = append(errs, f.err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, 0, nil, fmt.Errorf("ask: %w", err)
	}
	return flows, took, a, ctx.Err()
}

func takeMixed(ctx context.Context, b *bench, in *subject.Instance) error {
	before, err := subject.StatsOf(in.Site)
	if err != nil {
		return err
	}
	var bytes int
	flows, took, a, err := examine(ctx, in, b.atMost(mixedFor), func() (int, time.Duration) {
		n := pickSize()
		bytes += n
		return n, time.Duration(float64(n) * 8 / mixedRate * float64(time.Second))
	})
	if err != nil {
		return err
	}
	after, err := subject.StatsOf(in.Site)
	if err != nil {
		return err
	}
	b.record(in, "mixed_rate", float64(bytes)*8/1e6/took.Seconds())
	b.record(in, "mixed_flows", float64(len(flows)))
	b.record(in, "mixed_lost", float64(after.Lost-before.Lost))
	for sid, metric := range map[int]string{subject.AskedSID: "mixed_asked", subject.AnsweredSID: "mixed_answered"} {
		found := 0
		for _, f := range flows {
			if _, ok := a.seen[sid][flowKey{f.local.Port(), f.decoy}]; ok {
				found++
			}
		}
		b.record(in, metric, 100*float64(found)/float64(len(flows)))
	}
	return nil
}

func takeLatency(ctx context.Context, b *bench, in *subject.Instance) error {
	flows, _, a, err := examine(ctx, in, b.atMost(latencyFor), func() (int, time.Duration) { return 1 << 10, time.Second / latencyRate })
	if err != nil {
		return err
	}
	var took []time.Duration
	for _, f := range flows {
		if at, ok := a.seen[subject.AskedSID][flowKey{f.local.Port(), f.decoy}]; ok {
			took = append(took, at.Sub(f.asked))
		}
	}
	b.record(in, "alert_missing", float64(len(flows)-len(took)))
	if len(took) == 0 {
		return errors.New("no alert came")
	}
	slices.Sort(took)
	b.record(in, "alert_p50", millis(took[len(took)/2]))
	b.record(in, "alert_p99", millis(took[len(took)*99/100]))
	return nil
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// atMost shortens a load with -quick.
func (b *bench) atMost(d time.Duration) time.Duration {
	if b.quick {
		return min(d, 3*time.Second)
	}
	return d
}
