package claim

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
)

// keeper runs a Claimer on a machine of a lab: a packet socket, and ip(8)
// for what is held.
type keeper struct {
	t       *testing.T
	machine *lab.Machine
	mac     MAC
	fd      int

	mu     sync.Mutex // guards what follows
	held   []deception.AddrRange
	events []deception.Event
}

// keep runs a Claimer until the test ends.
func keep(t *testing.T, m *lab.Machine, addresses ...string) *keeper {
	t.Helper()
	k := &keeper{t: t, machine: m, mac: macOf(t, m)}
	if err := m.Do(k.open); err != nil {
		t.Fatal(err)
	}
	c := New(Config{Node: m.Name(), MAC: func(netip.Addr) MAC { return k.mac }, Ours: func(o MAC) bool { return o == k.mac }})
	c.Want(deception.Segment{Name: "office", Claim: deception.ClaimProbe}, decoys(t, addresses...))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.loop(ctx, c)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		unix.Close(k.fd)
	})
	return k
}

func macOf(t *testing.T, m *lab.Machine) (mac MAC) {
	t.Helper()
	out, err := m.Run(t.Context(), "cat", "/sys/class/net/eth0/address")
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range strings.Split(strings.TrimSpace(out), ":") {
		if _, err := fmt.Sscanf(s, "%x", &mac[i]); err != nil {
			t.Fatal(err)
		}
	}
	return mac
}

func (k *keeper) open() (err error) {
	const everything = unix.ETH_P_ALL>>8 | unix.ETH_P_ALL&0xff<<8
	if k.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return err
	}
	var ifr *unix.Ifreq
	if ifr, err = unix.NewIfreq("eth0"); err == nil {
		err = unix.IoctlIfreq(k.fd, unix.SIOCGIFINDEX, ifr)
	}
	if err == nil {
		err = unix.Bind(k.fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: int(ifr.Uint32())})
	}
	if err == nil {
		err = unix.SetsockoptTimeval(k.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 10_000})
	}
	return err
}

func (k *keeper) loop(ctx context.Context, c *Claimer) {
	for ctx.Err() == nil {
		out := c.Step(time.Now(), k.read())
		for _, f := range out.Frames {
			if _, err := unix.Write(k.fd, f); err != nil {
				k.t.Errorf("send a frame: %v", err)
			}
		}
		if out.Changed {
			if err := k.apply(ctx, c.Held()); err != nil && ctx.Err() == nil {
				k.t.Error(err)
			}
		}
		k.mu.Lock()
		k.events = append(k.events, out.Events...)
		k.mu.Unlock()
	}
}

// read returns the next frame that matters, if one comes within a moment.
func (k *keeper) read() []Frame {
	b := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(k.fd, b, 0)
		if err != nil {
			return nil // the timeout
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if f, ok := parse(b[:n]); ok {
			return []Frame{f}
		}
	}
}

// apply makes the kernel answer for exactly the held addresses.
func (k *keeper) apply(ctx context.Context, held []deception.AddrRange) error {
	var batch strings.Builder
	line := func(verb string, set []deception.AddrRange) {
		for _, r := range set {
			for a := r.From; !r.To.Less(a); a = a.Next() {
				if a.Is4() {
					fmt.Fprintf(&batch, "route %s local %s dev eth0 proto 142\n", verb, a)
				} else {
					fmt.Fprintf(&batch, "addr %s %s/128 dev eth0 %s\n", verb, a, map[string]string{"add": "nodad noprefixroute"}[verb])
				}
			}
		}
	}
	line("add", subtract(held, k.held))
	line("del", subtract(k.held, held))
	cmd := k.machine.Command(ctx, "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(batch.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apply what is held: %w: %s%s", err, batch.String(), out)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held = held
	return nil
}

// has waits until exactly these addresses are held.
func (k *keeper) has(list ...string) {
	k.t.Helper()
	want := ranges(k.t, list...)
	k.until(func() error {
		k.mu.Lock()
		defer k.mu.Unlock()
		if !slices.Equal(k.held, want) {
			return fmt.Errorf("%s holds %v, want %v", k.machine.Name(), k.held, want)
		}
		return nil
	})
}

func (k *keeper) until(fn func() error) {
	k.t.Helper()
	if err := lab.Eventually(k.t.Context(), 20*time.Second, fn); err != nil {
		k.t.Error(err)
	}
}

// conflicts returns the addresses that events told of.
func (k *keeper) conflicts() (out []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range k.events {
		if e.Kind == deception.EventConflict {
			out = append(out, e.Destination.Addr().String())
		}
	}
	slices.Sort(out)
	return out
}

// answers asks for an address, and returns who answers.
func answers(t *testing.T, from *lab.Machine, a string) string {
	t.Helper()
	args := []string{"arping", "-i", "eth0", "-c", "1", "-r", a}
	if strings.Contains(a, ":") {
		args = []string{"ndisc6", "-q", "-m", "-r", "1", "-w", "500", a, "eth0"}
	}
	cmd := from.Command(t.Context(), args[0], args[1:]...)
	out, err := cmd.Output()
	if err != nil && len(out) > 0 && cmd.ProcessState == nil {
		t.Fatalf("run %s: %v", args[0], err)
	}
	macs := strings.Fields(strings.ToLower(string(out)))
	slices.Sort(macs)
	return strings.Join(slices.Compact(macs), " ")
}

func text(m MAC) string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// silent has a machine's kernel not answer whoever asks for an address in order to
// take it, as a segment's namespace does not.
const silent = `nft -f - <<END
table arp t { chain in { type filter hook input priority 0; arp operation request arp saddr ip 0.0.0.0 meta pkttype broadcast drop; }; }
table ip6 t { chain in { type filter hook input priority 0; icmpv6 type nd-neighbor-solicit ip6 saddr :: drop; }; }
END`

// Against real kernels: what they have is not taken, and what they take or ask for
// is given up.
func TestAmongRealHosts(t *testing.T) {
	l := labtest.New(t)
	lan := l.Switch("lan")
	node, second, early, late, witness := l.Machine("node"), l.Machine("second"), l.Machine("early"), l.Machine("late"), l.Machine("witness")
	node.Plug(lan, "eth0", "192.0.2.5/24", "2001:db8::5/64")
	second.Plug(lan, "eth0", "192.0.2.6/24", "2001:db8::6/64")
	early.Plug(lan, "eth0", "192.0.2.101/24", "2001:db8::101/64")
	late.Plug(lan, "eth0", "192.0.2.66/24", "2001:db8::66/64")
	witness.Plug(lan, "eth0", "192.0.2.67/24", "2001:db8::67/64")
	labtest.Built(t, l)
	run(t, node, "sh", "-ec", silent)
	run(t, second, "sh", "-ec", silent)

	k := keep(t, node, "192.0.2.100-192.0.2.110", "2001:db8::100-2001:db8::104")
	k.has("192.0.2.100", "192.0.2.102-192.0.2.110", "2001:db8::100", "2001:db8::102-2001:db8::104")
	if got, want := k.conflicts(), []string{"192.0.2.101", "2001:db8::101"}; !slices.Equal(got, want) {
		t.Errorf("conflicts %v, want %v", got, want)
	}
	for a, who := range map[string]MAC{
		"192.0.2.100": k.mac, "2001:db8::100": k.mac, "192.0.2.101": macOf(t, early), "2001:db8::101": macOf(t, early), "192.0.2.120": {},
	} {
		want := text(who)
		if who == (MAC{}) {
			want = ""
		}
		if got := answers(t, witness, a); got != want {
			t.Errorf("%s is answered by %q, want %q", a, got, want)
		}
	}

	// A kernel that asks first, as all do for IPv6, has it.
	run(t, late, "sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=1", "net.ipv6.conf.eth0.dad_transmits=1")
	run(t, late, "ip", "addr", "add", "2001:db8::104/64", "dev", "eth0")
	k.until(func() error {
		if out := run(t, late, "ip", "-6", "addr", "show", "dev", "eth0"); !regexp.MustCompile(`2001:db8::104/64 scope global \n`).MatchString(out) {
			return errors.New("the host has not got its address yet: " + out)
		}
		return nil
	})

	// Machines that take an address without asking have it.
	mac := text(macOf(t, late))
	run(t, late, "ip", "addr", "add", "192.0.2.105/24", "dev", "eth0")
	// It misses an answer and says so.
	_, _ = late.Run(t.Context(), "arping", "-q", "-U", "-i", "eth0", "-S", "192.0.2.105", "-c", "1", "192.0.2.105")
	k.has("192.0.2.100", "192.0.2.102-192.0.2.104", "192.0.2.106-192.0.2.110", "2001:db8::100", "2001:db8::102-2001:db8::103")
	if got := answers(t, witness, "192.0.2.105"); got != mac {
		t.Errorf("192.0.2.105 is answered by %q, want %q", got, mac)
	}
	run(t, late, "ip", "addr", "add", "2001:db8::103/64", "dev", "eth0", "nodad")
	run(t, late, "ping", "-q", "-c", "1", "-W", "2", "-I", "2001:db8::103", "2001:db8::67")
	run(t, late, "ip", "addr", "add", "192.0.2.107/24", "dev", "eth0")
	run(t, late, "ping", "-q", "-c", "1", "-W", "2", "-I", "192.0.2.107", "192.0.2.101") // an ordinary request
	held := []string{"192.0.2.100", "192.0.2.102-192.0.2.104", "192.0.2.106", "192.0.2.108-192.0.2.110", "2001:db8::100", "2001:db8::102"}
	k.has(held...)
	if got := answers(t, witness, "2001:db8::103"); got != mac {
		t.Errorf("2001:db8::103 is answered by %q, want %q", got, mac)
	}

	// Another node that wants the same gets what no host has: it asks.
	k2 := keep(t, second, "192.0.2.100-192.0.2.112", "2001:db8::100-2001:db8::105")
	k2.has(append(held[:1:1], "192.0.2.102-192.0.2.104", "192.0.2.106", "192.0.2.108-192.0.2.112", "2001:db8::100", "2001:db8::102", "2001:db8::105")...)
	k.has()
}

func run(t *testing.T, m *lab.Machine, name string, args ...string) string {
	t.Helper()
	out, err := m.Run(t.Context(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
