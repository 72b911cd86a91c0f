package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"decoynet/bench/figure"
	"decoynet/bench/subject"
	"decoynet/internal/lab"
)

const (
	alertsRate  = 200 // flows/s
	alertsPort  = 9000
	alertsReady = time.Minute
	// alertsGrace is how long the last alerts are waited for.
	alertsGrace = 10 * time.Second
	idleFor     = 10 * time.Second
)

// alertsSuite shows how long it takes from an intruder's first bytes until their
// alert is in the store and a person sees it, all of decoynet in between. It runs
// the program as it is: one subject, no peer.
func alertsSuite() suite {
	return suite{
		subjects: []string{"decoynet"}, duration: 20 * time.Second, rounds: 3, run: measureAlerts,
		metrics: []figure.Metric{
			{Name: "shown_p50", Unit: "ms", What: fmt.Sprintf("from the intruder's write to its line of `get alerts --watch`, at %d flows/s, median", alertsRate)},
			{Name: "shown_p99", Unit: "ms", What: "the same, 99th percentile"},
			{Name: "missing", Unit: "flows", What: "of which no alert was shown"},
			{Name: "wrong", Unit: "alerts", What: "that name a port and decoy that no contact had"},
			{Name: "flows", Unit: "flows", What: "in all"},
			{Name: "suricata_rss", Unit: "MB", What: "resident memory of Suricata with decoynet's rules, before the first flow"},
			{Name: "suricata_idle", Unit: "%", What: fmt.Sprintf("of a processor that it takes, over %s without a flow", idleFor)},
		},
		targets: []figure.Target{
			{Subject: "decoynet", Metric: "shown_p99", AtMost: true, Value: 1000},
			{Subject: "decoynet", Metric: "missing", AtMost: true, Value: 0},
			{Subject: "decoynet", Metric: "wrong", AtMost: true, Value: 0},
			{Subject: "decoynet", Metric: "suricata_idle", AtMost: true, Value: 1},
		},
	}
}

const alertsDocument = `
node: gw
segments: [{name: office, parent: eth0, subnets: [{prefix: 192.0.2.0/24}], claim: unchecked}]
zones: [{name: linux, subnet: [10.1.0.0/24, "fd00:1::/64"], link: br-linux}]
services: [{name: echo, zone: linux, address: 10.1.0.5, ports: [9000]}]
decoys: [{name: decoys, segment: office, addresses: [192.0.2.100-192.0.2.249], bind: [{ports: [9000], service: echo}]}]
inspect: {system-rules: false}
`

func measureAlerts(ctx context.Context, b *bench) (err error) {
	binary, err := absolute(b.decoynet)
	if err != nil {
		return err
	}
	b.report.Subjects = append(b.report.Subjects, "decoynet")
	for b.round = range b.rounds {
		fmt.Fprintf(b.log, "round %d of %d\n", b.round+1, b.rounds)
		if err := measureAlertsOnce(ctx, b, binary); err != nil {
			return b.abandon("decoynet", err)
		}
	}
	return nil
}

// alertsSite is an office on whose gateway decoynet analyses.
type alertsSite struct {
	lab.Topology
	binary, data string
	process      *lab.Process
}

func measureAlertsOnce(ctx context.Context, b *bench, binary string) (err error) {
	l, top, err := lab.Office(ctx, "", nil)
	if err != nil {
		return fmt.Errorf("build the office: %w", err)
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	s := &alertsSite{Topology: top, binary: binary, data: filepath.Join(top.Gateway.Dir(), "data")}
	service, err := s.Linux.Listen(ctx, "tcp", fmt.Sprintf(":%d", alertsPort))
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	defer service.Close()
	go answerAll(service)
	pid, err := s.start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.process.Stop(context.WithoutCancel(ctx))) }()
	if err := s.idle(b, pid); err != nil {
		return err
	}
	return s.measure(ctx, b)
}

// answerAll answers each connection's first read, and ends it after the other side.
func answerAll(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return // closed: the measurement is over
		}
		go func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			if n, _ := c.Read(make([]byte, 1024)); n > 0 {
				_, _ = io.WriteString(c, "200 fine\r\n")
			}
			_, _ = io.Copy(io.Discard, c)
		}()
	}
}

// start brings decoynet up and waits for its Suricata, whose process it returns.
func (s *alertsSite) start(ctx context.Context) (suricata int, err error) {
	file := filepath.Join(s.Gateway.Dir(), "decoynet.yaml")
	if err := os.WriteFile(file, []byte(alertsDocument), 0o600); err != nil {
		return 0, fmt.Errorf("write the document: %w", err)
	}
	if s.process, err = s.Gateway.Start(s.binary, "up", "-c", file, "--data", s.data); err != nil {
		return 0, err
	}
	err = lab.Eventually(ctx, alertsReady, func() error {
		var st struct {
			Ready    bool
			Problems []string
			Services []struct{ Ports []struct{ Up bool } }
			Inspect  struct {
				Suricata struct {
					State string
					PID   int
				}
			}
		}
		out, err := s.Gateway.Command(ctx, s.binary, "status", "--data", s.data, "-o", "json").Output()
		if err == nil {
			err = json.Unmarshal(out, &st)
		}
		if err == nil && (!st.Ready || st.Inspect.Suricata.State != "running" || len(st.Services) == 0 || !st.Services[0].Ports[0].Up) {
			err = fmt.Errorf("not ready, suricata is %q: %v", st.Inspect.Suricata.State, st.Problems)
		}
		suricata = st.Inspect.Suricata.PID
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("wait for decoynet: %w: %s", err, s.process.Log())
	}
	return suricata, nil
}

// idle measures what Suricata takes while nothing happens.
func (s *alertsSite) idle(b *bench, pid int) error {
	before, err := subject.UsageOf(pid)
	if err != nil {
		return fmt.Errorf("look at suricata: %w", err)
	}
	time.Sleep(idleFor)
	after, err := subject.UsageOf(pid)
	if err != nil {
		return fmt.Errorf("look at suricata: %w", err)
	}
	b.sample("decoynet", "suricata_rss", float64(after.RSS)/1e6)
	b.sample("decoynet", "suricata_idle", 100*(after.User+after.System-before.User-before.System).Seconds()/idleFor.Seconds())
	return nil
}

// shown is an alert's line, and when it was there.
type shown struct {
	Port  uint16 `json:"source.port"`
	Decoy string `json:"destination.ip"`
	Rule  string `json:"rule.id"`
	at    time.Time
}

// contactRule is decoynet's rule that fires when data was sent over TCP.
const contactRule = "14200001"

// watch follows `get alerts --watch` until stop, with those of the time before.
func (s *alertsSite) watch(ctx context.Context, since time.Duration, each func(shown)) (stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := s.Gateway.Command(ctx, s.binary, "get", "alerts", "--data", s.data, "--watch", "-o", "json", "--since", since.String())
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, fmt.Errorf("follow the alerts: %w", err)
	}
	var reader sync.WaitGroup
	reader.Go(func() {
		lines := bufio.NewScanner(out)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			a := shown{at: time.Now()}
			if json.Unmarshal(lines.Bytes(), &a) == nil && a.Rule == contactRule {
				each(a)
			}
		}
	})
	return func() error {
		cancel()
		reader.Wait()
		_ = cmd.Wait() // it was ended
		return nil
	}, nil
}

// pair names a flow: the intruder uses a port again for another decoy.
type pair struct {
	port  uint16
	decoy string
}

// contact is one flow of the intruder's.
type contact struct {
	asked   time.Time
	seen    time.Time
	failure error
}

func (s *alertsSite) measure(ctx context.Context, b *bench) error {
	var mu sync.Mutex // guards contacts and alerts
	contacts, alerts := map[pair]*contact{}, map[pair]time.Time{}
	stop, err := s.watch(ctx, 0, func(a shown) {
		mu.Lock()
		defer mu.Unlock()
		alerts[pair{a.Port, a.Decoy}] = a.at
	})
	if err != nil {
		return err
	}
	time.Sleep(time.Second) // until it follows
	var all sync.WaitGroup
	due := time.Now()
	for i := range int(b.duration.Seconds() * alertsRate) {
		decoy := fmt.Sprintf("192.0.2.%d", 100+i%150)
		all.Go(func() {
			c, port := s.contact(ctx, decoy)
			mu.Lock()
			defer mu.Unlock()
			contacts[pair{port, decoy}] = c
		})
		due = due.Add(time.Second / alertsRate)
		time.Sleep(time.Until(due))
	}
	all.Wait()
	missing := func() (n int) {
		mu.Lock()
		defer mu.Unlock()
		for p, c := range contacts {
			if c.seen = alerts[p]; c.seen.IsZero() {
				n++
			}
		}
		return n
	}
	for end := time.Now().Add(alertsGrace); missing() > 0 && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond)
	}
	if err := stop(); err != nil {
		return err
	}
	wrong := 0
	for p := range alerts {
		if contacts[p] == nil {
			wrong++
		}
	}
	b.sample("decoynet", "wrong", float64(wrong))
	b.sample("decoynet", "missing", float64(missing()))
	return recordAlerts(b, contacts)
}

// contact is one flow: a line there, a line back.
func (s *alertsSite) contact(ctx context.Context, decoy string) (*contact, uint16) {
	c := &contact{}
	conn, err := s.Intruder.Dial(ctx, "tcp", fmt.Sprintf("%s:%d", decoy, alertsPort))
	if err != nil {
		c.failure = err
		return c, 0
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	port := uint16(conn.LocalAddr().(*net.TCPAddr).Port)
	c.asked = time.Now()
	if _, c.failure = io.WriteString(conn, "hello, are you a decoy?\r\n"); c.failure == nil {
		_, c.failure = conn.Read(make([]byte, 64))
	}
	return c, port
}

func recordAlerts(b *bench, contacts map[pair]*contact) error {
	var waits []time.Duration
	for _, c := range contacts {
		if c.failure != nil {
			return fmt.Errorf("contact a decoy: %w", c.failure)
		}
		if !c.seen.IsZero() {
			waits = append(waits, c.seen.Sub(c.asked))
		}
	}
	if len(waits) == 0 {
		return errors.New("no alert was shown")
	}
	slices.Sort(waits)
	b.sample("decoynet", "shown_p50", micros(waits[len(waits)/2])/1000)
	b.sample("decoynet", "shown_p99", micros(waits[len(waits)*99/100])/1000)
	b.sample("decoynet", "flows", float64(len(contacts)))
	return nil
}
