package doctor

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/netns"
)

// answerWait is how long an answer is waited for. The kernel repeats a SYN after
// a second.
const answerWait = 1500 * time.Millisecond

// sighting is a packet that was seen at a link of this host.
type sighting struct {
	heard
	index int
	kind  uint8 // PACKET_HOST, PACKET_OTHERHOST, PACKET_OUTGOING, ...
}

// watch sees, at all links of the host, the packets that open or refuse
// connections or say that a port is closed, before and behind all filters.
type watch struct {
	file *os.File
	done sync.WaitGroup

	mu   sync.Mutex // guards seen
	seen []sighting
}

// sightLength is enough for the headers of a packet and of the one that an ICMP
// error is about.
const sightLength = 256

// openingOnly lets TCP segments with SYN or RST pass, and ICMP.
var openingOnly = []unix.SockFilter{
	/* 0 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 0},
	/* 1 */ {Code: unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K, K: 4},
	/* 2 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: 6, Jt: 6}, // IPv6: 9
	/* 3 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 9},
	/* 4 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: protoICMP, Jt: 9}, // 14
	/* 5 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: protoTCP, Jf: 9}, // 15
	/* 6 */ {Code: unix.BPF_LDX | unix.BPF_B | unix.BPF_MSH, K: 0},
	/* 7 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_IND, K: 13},
	/* 8 */ {Code: unix.BPF_JMP | unix.BPF_JA, K: 4}, // 13
	/* 9 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 6},
	/* 10 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: protoICMPv6, Jt: 3}, // 14
	/* 11 */ {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: protoTCP, Jf: 3}, // 15
	/* 12 */ {Code: unix.BPF_LD | unix.BPF_B | unix.BPF_ABS, K: 53},
	/* 13 */ {Code: unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K, K: flagSYN | flagRST, Jf: 1},
	/* 14 */ {Code: unix.BPF_RET | unix.BPF_K, K: sightLength},
	/* 15 */ {Code: unix.BPF_RET | unix.BPF_K, K: 0},
}

func openWatch(host *netns.NS) (*watch, error) {
	file, err := packetSocket(host, unix.SOCK_DGRAM, 0, unix.ETH_P_ALL, openingOnly)
	if err != nil {
		return nil, err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("watch packets: %w", err)
	}
	w := &watch{file: file}
	w.done.Go(func() {
		var b [sightLength]byte
		for {
			var n int
			var from unix.Sockaddr
			var errRead error
			err := raw.Read(func(fd uintptr) bool {
				n, from, errRead = unix.Recvfrom(int(fd), b[:], 0)
				return !errors.Is(errRead, unix.EAGAIN)
			})
			if err != nil {
				return // closed
			}
			at, ok := from.(*unix.SockaddrLinklayer)
			h, known := parsePacket(b[:max(n, 0)])
			if errRead != nil || !ok || !known {
				continue // ENETDOWN of some link, for instance
			}
			w.mu.Lock()
			w.seen = append(w.seen, sighting{h, at.Ifindex, at.Pkttype})
			w.mu.Unlock()
		}
	})
	return w, nil
}

func (w *watch) close() {
	w.file.Close()
	w.done.Wait()
}

// find returns what was seen from one address and port to another.
func (w *watch) find(from, to netip.AddrPort) []sighting {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []sighting
	for _, s := range w.seen {
		if s.src == from && s.dst == to {
			out = append(out, s)
		}
	}
	return out
}

// until polls a condition for at most d.
func until(ctx context.Context, d time.Duration, done func() bool) {
	for deadline := time.Now().Add(d); !done() && ctx.Err() == nil && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
}

// stranger returns an address that stands for any intruder of the world: one of
// those set aside for benchmarks (RFC 2544, RFC 5180), which is nobody's and
// routed nowhere, should an answer go astray.
func stranger(family netip.Addr) netip.Addr {
	a, b := byte(rand.IntN(256)), byte(1+rand.IntN(254))
	if family.Is4() {
		return netip.AddrFrom4([4]byte{198, 18, a, b})
	}
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 3: 2, 14: a, 15: b})
}

// sockaddr is for bind, connect and sendto.
func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// foreignSocket makes a socket bound to an address that need not be this host's.
func foreignSocket(host *netns.NS, typ, proto int, source netip.AddrPort) (int, error) {
	family, level, option := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
	if source.Addr().Is6() {
		family, level, option = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	fd, err := host.Socket(family, typ|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return -1, err
	}
	err = unix.SetsockoptInt(fd, level, option, 1)
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err == nil {
		err = unix.Bind(fd, sockaddr(source))
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind to %s: %w", source, err)
	}
	return fd, nil
}

// knock opens a connection to the target as the relay does, from a stranger's
// address, with a filter on its socket that drops whatever comes: so the server
// never has a connection to accept, or to log, and the count of what was
// dropped tells that an answer came all the way to the socket.
func knock(host *netns.NS, from netip.Addr, target netip.AddrPort) (fd int, source netip.AddrPort, err error) {
	for range 5 {
		source = netip.AddrPortFrom(from, uint16(20000+rand.IntN(12000)))
		if fd, err = foreignSocket(host, unix.SOCK_STREAM, 0, source); err != nil {
			if errors.Is(err, unix.EADDRINUSE) {
				continue
			}
			return -1, source, err
		}
		nothing := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: 0}}
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing[0]})
		if err == nil {
			err = unix.Connect(fd, sockaddr(target))
		}
		if err == nil || errors.Is(err, unix.EINPROGRESS) {
			return fd, source, nil
		}
		unix.Close(fd)
		if !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return -1, source, fmt.Errorf("connect to %s as %s: %w", target, from, err)
}

// dropsOf returns how many packets a socket has dropped. Where the kernel does
// not tell (before Linux 4.12), known is false.
func dropsOf(fd int) (n uint32, known bool) {
	const drops = 8 // SK_MEMINFO_DROPS
	var info [drops + 1]uint32
	size := uint32(unsafe.Sizeof(info))
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&size)), 0)
	return info[drops], e == 0 && size == uint32(unsafe.Sizeof(info))
}

// hangUp resets what a knock left half open in the server, for the kernel sends
// nothing when a socket that has seen no answer is closed.
func hangUp(host *netns.NS, w *watch, source, target netip.AddrPort) error {
	sent := w.find(source, target)
	i := slices.IndexFunc(sent, func(s sighting) bool { return s.flags&(flagSYN|flagACK) == flagSYN })
	if i < 0 {
		return nil // it never left
	}
	fd, err := foreignSocket(host, unix.SOCK_RAW, protoTCP, netip.AddrPortFrom(source.Addr(), 0))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	reset := segment(source, target, sent[i].sequence+1, flagRST)
	return unix.Sendto(fd, reset, 0, sockaddr(netip.AddrPortFrom(target.Addr(), 0)))
}
