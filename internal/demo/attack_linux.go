package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/lab"
)

// attack is an intruder at work. Each of its steps is done with a tool that
// every intruder has, where there is one.
type attack struct {
	stage *Stage
	from  *lab.Machine
	plan  *plan
	card  *witness

	mu     sync.Mutex // guards visits
	visits []visit
}

// attackStep is one of the intruder's ideas.
type attackStep struct {
	name string
	do   func(context.Context) (result string, err error)
}

func (a *attack) steps() []attackStep {
	return []attackStep{
		{"ping: is anybody there?", a.ping},
		{"nmap -sT " + lab.OfficeLAN4.String() + ": who is, and with what?", a.scan},
		{"curl: http and https", a.curl},
		{"one source port, every decoy, at once", a.onePort},
		{"redis-cli: leave a key, look from elsewhere", a.redis},
		{"ssh: log in and run a command", a.ssh},
		{"snmp: read the system's description", a.snmp},
	}
}

// ends returns the first and the last decoy address of the path in each family:
// where an error of counting would show.
func (a *attack) ends(path deception.Path) []netip.Addr {
	var out []netip.Addr
	for _, is4 := range []bool{true, false} {
		all := slices.DeleteFunc(a.plan.addresses(path), func(x netip.Addr) bool { return x.Is4() != is4 })
		if len(all) > 0 {
			out = append(out, all[0], all[len(all)-1])
		}
	}
	return out
}

// met notes a visit that has got its answer, in which the service told whom it
// saw.
func (a *attack) met(v visit, said netip.AddrPort) error {
	a.mu.Lock()
	a.visits = append(a.visits, v)
	a.mu.Unlock()
	if said != v.Source {
		return fmt.Errorf("%s to %s came from %s, but the service answered that it sees %s", v.Tool, v.Destination, v.Source, said)
	}
	return nil
}

func (a *attack) ping(ctx context.Context) (string, error) {
	targets := append(a.ends(deception.PathRelay), a.ends(deception.PathKernel)...)
	var errs []error
	for _, target := range targets {
		if _, err := a.from.Run(ctx, "ping", "-n", "-c1", "-W2", target.String()); err != nil {
			errs = append(errs, err)
		}
	}
	return fmt.Sprintf("%d of %d decoys answer, IPv4 and IPv6", len(targets)-len(errs), len(targets)), errors.Join(errs...)
}

func (a *attack) curl(ctx context.Context) (string, error) {
	var errs []error
	n := 0
	for _, path := range []deception.Path{deception.PathRelay, deception.PathKernel} {
		for i, target := range a.ends(path) {
			scheme, port := "http", uint16(80)
			if i%2 == 1 {
				scheme, port = "https", 443
			}
			errs = append(errs, a.curlOne(ctx, scheme, netip.AddrPortFrom(target, port)))
			n++
		}
	}
	return fmt.Sprintf("%d pages, from relay and kernel decoys", n), errors.Join(errs...)
}

// curlOne fetches a page, which says whom the server saw; curl itself says what
// it used.
func (a *attack) curlOne(ctx context.Context, scheme string, to netip.AddrPort) error {
	out, err := a.from.Run(ctx, "curl", "-sSgk", "-m", "5",
		"-w", `used %{local_ip} %{local_port} %{http_code}\n`, scheme+"://"+to.String()+"/")
	if err != nil {
		return err
	}
	used := wordsAfter(out, "used")
	if len(used) != 3 || used[2] != "200" {
		return fmt.Errorf("%s://%s/ answered %q", scheme, to, out)
	}
	source, ok := endpoint(used[0], used[1])
	if !ok {
		return fmt.Errorf("curl used %v", used)
	}
	return a.met(visit{flow: flow{deception.TCP, source, to}, Tool: "curl " + scheme}, peerIn(out))
}

// onePortNumber lies below the ports that the kernel gives to others.
const onePortNumber = 4000

// onePort opens one connection from one and the same source port to every decoy
// and uses them only when all are open. What looks as an everyday thing is
// where address translation runs out of ways to tell them apart.
func (a *attack) onePort(ctx context.Context) (string, error) {
	targets := a.plan.addresses("")
	conns := make([]net.Conn, len(targets))
	defer func() {
		for _, c := range conns {
			if c != nil {
				_ = c.Close()
			}
		}
	}()
	var opening, asking errgroup.Group
	opening.SetLimit(16)
	for i, target := range targets {
		opening.Go(func() (err error) {
			conns[i], err = a.dialFrom(ctx, netip.AddrPortFrom(target, 80))
			return err
		})
	}
	if err := opening.Wait(); err != nil {
		return "", err
	}
	asking.SetLimit(16)
	for i, target := range targets {
		asking.Go(func() error { return a.askPage(conns[i], netip.AddrPortFrom(target, 80)) })
	}
	return fmt.Sprintf("%d connections from port %d", len(targets), onePortNumber), asking.Wait()
}

func (a *attack) dialFrom(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	source := lab.OfficeIntruder.V4
	if to.Addr().Is6() {
		source = lab.OfficeIntruder.V6
	}
	dialer := net.Dialer{
		Timeout:   5 * time.Second,
		LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, onePortNumber)),
		Control: func(_, _ string, raw syscall.RawConn) error {
			var err error
			errControl := raw.Control(func(fd uintptr) {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			})
			return errors.Join(errControl, err)
		},
	}
	dialer.SetMultipathTCP(false)
	var conn net.Conn
	err := a.from.Do(func() (err error) {
		conn, err = dialer.DialContext(ctx, "tcp", to.String())
		return err
	})
	return conn, err
}

func (a *attack) askPage(conn net.Conn, to netip.AddrPort) error {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return fmt.Errorf("ask %s: %w", to, err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return fmt.Errorf("ask %s: %w", to, err)
	}
	source := conn.LocalAddr().(*net.TCPAddr).AddrPort()
	source = netip.AddrPortFrom(source.Addr().Unmap(), source.Port())
	return a.met(visit{
		flow: flow{deception.TCP, source, to}, Tool: "http",
		Group: fmt.Sprintf("at once from source port %d", onePortNumber),
	}, peerIn(string(answer)))
}

// What the intruder leaves at one decoy, to be found at others.
const redisKey, redisValue = "intruder-was-here", "at-this-decoy"

func (a *attack) redis(ctx context.Context) (string, error) {
	targets := a.ends(deception.PathRelay)
	errs := []error{a.redisOne(ctx, targets[0], "SET "+redisKey+" "+redisValue, "OK")}
	for _, target := range targets[1:] {
		errs = append(errs, a.redisOne(ctx, target, "GET "+redisKey, redisValue))
	}
	return fmt.Sprintf("set at %s, read at %d other decoys", targets[0], len(targets)-1), errors.Join(errs...)
}

// redisOne asks something of which it knows the answer, and then whom the server
// sees.
func (a *attack) redisOne(ctx context.Context, target netip.Addr, ask, want string) error {
	to := netip.AddrPortFrom(target, 6379)
	out, v, err := a.witnessed(ctx, "redis-cli", to, ask+"\nCLIENT INFO\n", "redis-cli", "-h", target.String())
	if err != nil {
		return err
	}
	answer, info, _ := strings.Cut(out, "\n")
	var said netip.AddrPort
	for _, word := range strings.Fields(info) {
		if text, ok := strings.CutPrefix(word, "addr="); ok {
			said, _ = netip.ParseAddrPort(text) // zero fails in met
		}
	}
	err = a.met(v, said)
	if answer != want {
		err = errors.Join(fmt.Errorf("redis at %s answered %q to %s; expected %q", to, answer, ask, want), err)
	}
	return err
}

func (a *attack) ssh(ctx context.Context) (string, error) {
	var errs []error
	targets := a.ends(deception.PathRelay)
	for i, target := range targets {
		errs = append(errs, a.sshOne(ctx, netip.AddrPortFrom(target, []uint16{22, 2222}[i%2])))
	}
	return fmt.Sprintf("%d log-ins, on ports 22 and 2222", len(targets)), errors.Join(errs...)
}

// sshOne logs in and asks the shell whom sshd sees.
func (a *attack) sshOne(ctx context.Context, to netip.AddrPort) error {
	args := append(a.stage.SSH.ClientArgs(to), "echo said $SSH_CONNECTION; hostname")
	out, v, err := a.witnessed(ctx, "ssh", to, "", "ssh", args...)
	if err != nil {
		return err
	}
	said := wordsAfter(out, "said")
	if len(said) != 4 {
		return fmt.Errorf("ssh to %s answered %q", to, out)
	}
	seen, _ := endpoint(said[0], said[1]) // zero fails in met
	return a.met(v, seen)
}

// witnessed runs a client that makes one connection but cannot say from which
// port: the intruder's card can.
func (a *attack) witnessed(ctx context.Context, tool string, to netip.AddrPort, input, name string, args ...string) (string, visit, error) {
	mark := a.card.mark()
	cmd := a.from.Command(ctx, name, args...)
	var stderr strings.Builder
	cmd.Stdin, cmd.Stderr = strings.NewReader(input), &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", visit{}, fmt.Errorf("%s to %s: %w: %s", tool, to, err, strings.TrimSpace(stderr.String()))
	}
	var flows []flow
	err = lab.Eventually(ctx, 2*time.Second, func() error {
		if flows = a.card.since(mark, to); len(flows) != 1 {
			return fmt.Errorf("%s to %s: the intruder's card has seen %d connections, not 1", tool, to, len(flows))
		}
		return nil
	})
	if err != nil {
		return "", visit{}, err
	}
	return string(out), visit{flow: flows[0], Tool: tool}, nil
}

// snmpGet is a GetRequest of SNMPv2c (RFC 3416) for sysDescr.0 in the community
// "public".
var snmpGet = []byte{
	0x30, 0x26, 0x02, 0x01, 0x01, 0x04, 0x06, 'p', 'u', 'b', 'l', 'i', 'c',
	0xa0, 0x19, 0x02, 0x01, 0x2a, 0x02, 0x01, 0x00, 0x02, 0x01, 0x00,
	0x30, 0x0e, 0x30, 0x0c, 0x06, 0x08, 0x2b, 0x06, 0x01, 0x02, 0x01, 0x01, 0x01, 0x00, 0x05, 0x00,
}

func (a *attack) snmp(ctx context.Context) (string, error) {
	targets := a.ends(deception.PathRelay)
	var errs []error
	for _, target := range targets {
		errs = append(errs, a.snmpOne(ctx, netip.AddrPortFrom(target, 161)))
	}
	return fmt.Sprintf("%d answers over UDP", len(targets)), errors.Join(errs...)
}

func (a *attack) snmpOne(ctx context.Context, to netip.AddrPort) error {
	conn, err := a.from.Dial(ctx, "udp", to.String())
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(3 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write(snmpGet); err != nil {
		return fmt.Errorf("ask %s: %w", to, err)
	}
	answer := make([]byte, 1500)
	n, err := conn.Read(answer)
	if err != nil {
		return fmt.Errorf("hear from %s: %w", to, err)
	}
	source := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	source = netip.AddrPortFrom(source.Addr().Unmap(), source.Port())
	return a.met(visit{flow: flow{deception.UDP, source, to}, Tool: "snmp"}, peerIn(string(answer[:n])))
}

// peerIn reads the line "peer ADDRESS PORT" in which the lab's servers tell
// whom they see; the zero AddrPort where there is none.
func peerIn(answer string) netip.AddrPort {
	if words := wordsAfter(answer, "peer"); len(words) == 2 {
		peer, _ := endpoint(words[0], words[1])
		return peer
	}
	return netip.AddrPort{}
}

// wordsAfter returns the words of the line that begins with the word.
func wordsAfter(text, first string) []string {
	for line := range strings.Lines(text) {
		if words := strings.Fields(line); len(words) > 0 && words[0] == first {
			return words[1:]
		}
	}
	return nil
}

func endpoint(addr, port string) (netip.AddrPort, bool) {
	a, err1 := netip.ParseAddr(addr)
	p, err2 := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), err1 == nil && err2 == nil
}
