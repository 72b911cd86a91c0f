package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
)

// said is a line of listenRole.
type said struct {
	User     int
	Caps     string // effective capabilities, as /proc has them
	RSS      string
	Ready    bool
	Problems []string
	Events   []deception.EventKind
}

// listenRole is listen mode on a machine as a customer's server runs it, with
// gateways that it plays itself. It says what is true whenever that changes.
func listenRole() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	r := &records{}
	courier := NewCourier(CourierConfig{Node: "crm-1", Upstream: newGateways(), Recorder: r})
	listen := NewListen(ListenConfig{Carrier: courier, Recorder: r})
	var s deception.State
	if err := json.Unmarshal([]byte(os.Getenv(roleVar+"_STATE")), &s); err != nil {
		return err
	}
	_ = listen.Apply(ctx, &s, nil) // the status says what is missing
	last := ""
	for ctx.Err() == nil {
		now := said{User: os.Getuid(), Caps: processStatus("CapEff"), Ready: listen.Status().Ready, Problems: listen.Status().Problems}
		for _, e := range r.of(deception.EventPortInUse) {
			now.Events = append(now.Events, e.Kind)
		}
		for _, e := range r.of(deception.EventPortTaken) {
			now.Events = append(now.Events, e.Kind)
		}
		line, err := json.Marshal(now)
		if err != nil {
			return err
		}
		if string(line) != last {
			last = string(line)
			now.RSS = processStatus("VmRSS")
			line, _ = json.Marshal(now)
			fmt.Println(string(line))
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	end, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return errors.Join(listen.Close(end), courier.Close(end))
}

func processStatus(key string) string {
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// lastSaid waits until the process has said, last, what match wants.
func lastSaid(t *testing.T, p *lab.Process, what string, match func(said) bool) said {
	t.Helper()
	var now said
	err := lab.Eventually(t.Context(), within, func() error {
		scanner := bufio.NewScanner(strings.NewReader(p.Log()))
		for scanner.Scan() {
			var s said
			if json.Unmarshal(scanner.Bytes(), &s) == nil {
				now = s
			}
		}
		if !match(now) {
			return fmt.Errorf("the agent has not said %s: %+v", what, now)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, p.Log())
	}
	return now
}

// On a customer's server: an ordinary user with one capability, beside an nginx
// that keeps its ports. A hundred ports cost little.
func TestUnprivilegedBesideNginx(t *testing.T) {
	l := labtest.New(t)
	lan := l.Switch("lan")
	server, intruder := l.Machine("crm-1"), l.Machine("intruder")
	server.Plug(lan, "eth0", "192.0.2.7/24", "2001:db8:2::7/64")
	intruder.Plug(lan, "eth0", "192.0.2.66/24", "2001:db8:2::66/64")
	labtest.Built(t, l)
	nginx, err := lab.Nginx(t.Context(), server, lab.Listen{Ports: []uint16{80}})
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(state(t, "crm any 80,445,161/udp,700-799"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := server.Command(context.Background(), "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
		"--inh-caps=-all,+net_bind_service", "--ambient-caps=-all,+net_bind_service", "--bounding-set=-all,+net_bind_service",
		"--no-new-privs", readableCopy(t))
	cmd.Env = append(cmd.Env, roleVar+"=listen", roleVar+"_STATE="+string(text))
	agent, err := server.StartCommand(cmd)
	if err != nil {
		t.Fatal(err)
	}

	first := lastSaid(t, agent, "that port 80 is in use", func(s said) bool { return len(s.Problems) == 2 })
	if first.User != 65534 || first.Caps != "0000000000000400" { // CAP_NET_BIND_SERVICE is 10
		t.Errorf("the agent runs as user %d with capabilities %s", first.User, first.Caps)
	}
	for _, p := range first.Problems {
		// Whose it is: an unprivileged process sees the user only.
		if !strings.Contains(p, "port 80/tcp of decoy crm is in use") || !strings.Contains(p, "root") {
			t.Errorf("problem %q", p)
		}
	}
	t.Logf("resident with 103 ports open: %s", first.RSS)
	var kB int
	if _, err := fmt.Sscanf(first.RSS, "%d kB", &kB); err != nil || kB > 30<<10 && !raceEnabled {
		t.Errorf("resident: %q, want at most 30 MB", first.RSS)
	}
	wantFlow := func(network, at string) {
		t.Helper()
		conn, err := intruder.Dial(t.Context(), network, at)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if network == "udp" {
			if got, want := ask(t, conn, "x"), told("udp", conn)+"x"; got != want {
				t.Errorf("the service was told %q, want %q", got, want)
			}
			return
		}
		_ = conn.SetDeadline(time.Now().Add(within))
		if got, want := readLine(t, conn), told(network, conn); got != want {
			t.Errorf("the service was told %q, want %q", got, want)
		}
	}
	wantFlow("tcp", "192.0.2.7:445")
	wantFlow("tcp", "[2001:db8:2::7]:799")
	wantFlow("udp", "192.0.2.7:161")
	wantFlow("udp", "[2001:db8:2::7]:161")
	if out, err := intruder.Run(t.Context(), "curl", "-sS", "--max-time", "10", "http://192.0.2.7/"); err != nil || !strings.Contains(out, "machine crm-1") {
		t.Errorf("nginx: %q, %v", out, err)
	}
	if err := nginx.WaitPeer(t.Context(), within, lastPeer(t, nginx)); err != nil {
		t.Error(err)
	}

	if err := nginx.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	after := lastSaid(t, agent, "that port 80 is its own", func(s said) bool { return s.Ready })
	if got, want := fmt.Sprint(after.Events), "[port-in-use port-in-use port-taken port-taken]"; got != want { // one for each family
		t.Errorf("events %s, want %s", got, want)
	}
	wantFlow("tcp", "192.0.2.7:80")
	// The machine's own service does not get the port back while the decoy has it,
	// and hears that it is in use.
	if err := server.Do(func() error {
		own, err := net.Listen("tcp4", "0.0.0.0:80")
		if err == nil {
			own.Close()
		}
		return err
	}); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a second listener: %v", err)
	}
	if err := agent.Stop(t.Context()); err != nil {
		t.Errorf("the agent's end: %v\n%s", err, agent.Log())
	}
}

// lastPeer returns who came to the server last, by its own log.
func lastPeer(t *testing.T, s *lab.Server) netip.AddrPort {
	t.Helper()
	var last netip.AddrPort
	err := lab.Eventually(t.Context(), within, func() error {
		peers, err := s.Peers()
		if len(peers) == 0 {
			return errors.Join(errors.New("nobody came"), err)
		}
		last = peers[len(peers)-1]
		return nil
	})
	if err != nil || last.Addr() != netip.MustParseAddr("192.0.2.66") {
		t.Errorf("the server saw %s, %v", last, err)
	}
	return last
}

// readableCopy copies this binary to where an unprivileged user may run it.
func readableCopy(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "decoynet-agent-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "agent")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(file, binary, 0o755), os.Chmod(file, 0o755)); err != nil {
		t.Fatal(err)
	}
	return file
}
