package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/health"
	"decoynet/internal/kernel/firewall"
	"decoynet/internal/kernel/route"
	"decoynet/internal/lab/labtest"
	"decoynet/internal/relay"
)

// roleVar makes the test binary one machine's gateway, told by a file what its
// part of the document is.
const roleVar = "DECOYNET_GATEWAY_TEST_ROLE"

var roles = map[string]func(file string) error{"ingress": ingressProcess, "egress": egressProcess}

func TestMain(m *testing.M) {
	name := os.Getenv(roleVar)
	if name == "" {
		labtest.Main(m)
		return
	}
	role, ok := roles[name]
	if !ok {
		fmt.Fprintln(os.Stderr, "unknown role", name)
		os.Exit(2)
	}
	if err := role(os.Getenv(roleVar + "_STATE")); err != nil {
		fmt.Fprintln(os.Stderr, name, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// word is one thing that such a process says, a line of JSON.
type word struct {
	Started, Ended *deception.Session    `json:",omitempty"`
	Event          *deception.Event      `json:",omitempty"`
	Seen           *deception.SourceSeen `json:",omitempty"`
	Egress         []EgressStatus        `json:",omitempty"`
	Links          []LinkStatus          `json:",omitempty"`
	Up             []string              `json:",omitempty"`
	Applied        bool                  `json:",omitempty"`
	Reason         string                `json:",omitempty"` // of Ended
}

// speaker is a Recorder that says what it is given.
type speaker struct {
	mu   sync.Mutex // guards last and the order of lines
	last map[string]string
}

func (s *speaker) say(w word) {
	line, err := json.Marshal(w)
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, _ = os.Stdout.Write(append(line, '\n'))
}

// sayNew says a kind of thing when it differs from the last time.
func (s *speaker) sayNew(kind string, w word) {
	line, err := json.Marshal(w)
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	same := s.last[kind] == string(line)
	s.last[kind] = string(line)
	s.mu.Unlock()
	if !same {
		s.say(w)
	}
}

func (s *speaker) Started(v *deception.Session) { s.say(word{Started: v}) }
func (s *speaker) Ended(v *deception.Session)   { s.say(word{Ended: v, Reason: v.Reason.String()}) }
func (s *speaker) Event(v *deception.Event)     { s.say(word{Event: v}) }
func (s *speaker) SourceSeen(v *deception.SourceSeen) {
	s.say(word{Seen: v})
}

func readState(file string) (*deception.State, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	state := new(deception.State)
	return state, json.Unmarshal(text, state)
}

// everyTurn runs turn five times a second until the process is told to end.
func everyTurn(turn func(context.Context) error) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	for ctx.Err() == nil {
		if err := turn(ctx); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	return nil
}

// egressProcess is a zone's edge on a machine of its own: containment, routes,
// health and the egress.
func egressProcess(file string) error {
	say := &speaker{last: map[string]string{}}
	zones, err := NewZones()
	if err != nil {
		return err
	}
	state, err := readState(file)
	if err != nil {
		return err
	}
	var egress *Egress
	checker := health.New(health.Config{Interval: 200 * time.Millisecond, Mark: firewall.MarkSelf, Changed: func() { egress.NoteHealth() }})
	fed, err := testFeed("egress")
	if err != nil {
		return err
	}
	g := New(Config{Node: state.Node, Recorder: say, Suspect: checker.Suspect, Feed: FeedTo(fed)})
	egress = NewEgress(g, EgressConfig{Ports: checker.States})
	err = everyTurn(func(ctx context.Context) error {
		state, err := readState(file)
		if err != nil {
			return nil // it is being written
		}
		errs := []error{zones.Apply(ctx, state)}
		_, err = route.Apply(ctx, zones.Host(), HostRoutes(state))
		errs = append(errs, err)
		checker.Watch(ctx, health.PortsOf(state))
		errs = append(errs, egress.Apply(ctx, state))
		say.sayNew("egress", word{Egress: egress.Status(), Applied: true})
		return errors.Join(errs...)
	})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	checker.Close()
	return errors.Join(err, egress.Close(ctx), zones.Close(ctx), closeFeed(fed))
}

// ingressProcess has plain listeners at the decoys' addresses and ports.
func ingressProcess(file string) error {
	say := &speaker{last: map[string]string{}}
	state, err := readState(file)
	if err != nil {
		return err
	}
	links := NewLinks(LinksConfig{Node: state.Node})
	fed, err := testFeed("ingress")
	if err != nil {
		return err
	}
	g := New(Config{Node: state.Node, Recorder: say, Links: links, Feed: FeedTo(fed)})
	engine, err := relay.New(g, relay.Config{})
	if err != nil {
		return err
	}
	g.SetState(state, deception.NewTable(state))
	for i := range state.Decoys {
		if err := listenAt(engine, &state.Decoys[i]); err != nil {
			return err
		}
	}
	err = everyTurn(func(ctx context.Context) error {
		state, err := readState(file)
		if err != nil {
			return nil // it is being written
		}
		g.SetState(state, deception.NewTable(state))
		links.Watch(ctx, state)
		w := word{Links: links.Status(), Applied: true}
		for p, st := range links.States() {
			if st.Up && links.Up(p) {
				w.Up = append(w.Up, p.Service+" "+p.Transport.String()+" "+p.Address.String())
			}
		}
		slices.Sort(w.Up)
		say.sayNew("links", w)
		return nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	links.Close()
	return errors.Join(err, engine.Close(ctx), closeFeed(fed))
}

func listenAt(engine *relay.Engine, d *deception.Decoy) error {
	l := &relay.Listener{Name: d.Segment, Socket: func(domain, typ int) (int, error) { return unix.Socket(domain, typ, 0) }}
	for _, a := range d.Addresses {
		for _, b := range d.Bind {
			for _, ports := range b.Ports {
				at := addrPortOf(a.From, ports.First)
				var tcp, udp []int
				options := []option{{unix.SOL_SOCKET, unix.SO_REUSEADDR, 1}}
				if ports.Transport == deception.TCP {
					fd, err := boundSocket(unix.SOCK_STREAM, at, options)
					if err != nil {
						return err
					}
					if err := unix.Listen(fd, 128); err != nil {
						return err
					}
					tcp = []int{fd}
				} else {
					options = append(options, option{unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1})
					if at.Addr().Is6() {
						options = append(options, option{unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, 1})
					}
					fd, err := boundSocket(unix.SOCK_DGRAM, at, options)
					if err != nil {
						return err
					}
					udp = []int{fd}
				}
				if err := engine.Add(l, tcp, udp); err != nil {
					return fmt.Errorf("listen at %s: %w", at, err)
				}
			}
		}
	}
	return nil
}
