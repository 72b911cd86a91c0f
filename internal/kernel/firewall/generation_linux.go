package firewall

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"decoynet/internal/kernel/nft"
)

// The kernel numbers the states of a namespace's rules: every transaction,
// whoever's, makes a new generation. Where the number is still that of our last
// look, everything is as it was, and tens of thousands of elements need not be
// read to know it.

// generation is one state of one namespace. The cookie is never used again for
// another namespace, as inode numbers are.
type generation struct {
	cookie uint64
	id     uint32
}

// namespaceState is what is remembered of a namespace, between Applies.
type namespaceState struct {
	mu   sync.Mutex              // held by the one Apply or Remove at work; guards last
	last map[string]appliedScope // by the scope's word
}

// appliedScope says that at a generation the scope held rules of that digest.
type appliedScope struct {
	at     generation
	digest uint64
}

// namespaces holds the state of each namespace that was written to.
var namespaces sync.Map // of namespaceID to *namespaceState

type namespaceID struct{ dev, ino uint64 }

// lock takes the namespace's state: an Apply reads, compares and writes, and two
// of them in one namespace must not overlap.
func lock(ns Namespace) *namespaceState {
	var st unix.Stat_t
	// Where fstat fails the zero identity is shared, which is only slower;
	// the netlink socket will report the bad descriptor.
	_ = unix.Fstat(ns.FD(), &st)
	m, _ := namespaces.LoadOrStore(namespaceID{st.Dev, st.Ino}, &namespaceState{last: map[string]appliedScope{}})
	s := m.(*namespaceState)
	s.mu.Lock()
	return s
}

func (s *namespaceState) unlock() { s.mu.Unlock() }

// readGeneration asks for the namespace's generation. It returns false where the
// kernel has no cookies (before 5.14).
func readGeneration(ns Namespace) (generation, bool, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: ns.FD()})
	if err != nil {
		return generation{}, false, wrap("open netlink socket", ns, err)
	}
	defer func() { _ = conn.Close() }()
	raw, err := conn.SyscallConn()
	if err != nil {
		return generation{}, false, wrap("open netlink socket", ns, err)
	}
	var g generation
	var cookieErr error
	err = raw.Control(func(fd uintptr) {
		g.cookie, cookieErr = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	})
	if err != nil || cookieErr != nil {
		if errors.Is(cookieErr, unix.ENOPROTOOPT) {
			return generation{}, false, nil
		}
		return generation{}, false, wrap("read namespace cookie", ns, errors.Join(err, cookieErr))
	}
	if err := conn.SetDeadline(time.Now().Add(nft.Timeout)); err != nil {
		return generation{}, false, wrap("read generation", ns, err)
	}
	msgs, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   []byte{unix.AF_UNSPEC, 0, 0, 0}, // struct nfgenmsg
	})
	if err != nil {
		return generation{}, false, wrap("read generation", ns, err)
	}
	for _, m := range msgs {
		if len(m.Data) < 4 {
			continue
		}
		attrs, err := netlink.UnmarshalAttributes(m.Data[4:])
		if err != nil {
			return generation{}, false, wrap("read generation", ns, err)
		}
		for _, a := range attrs {
			if a.Type == unix.NFTA_GEN_ID && len(a.Data) == 4 {
				g.id = binary.BigEndian.Uint32(a.Data)
				return g, true, nil
			}
		}
	}
	return generation{}, false, wrap("read generation", ns, fmt.Errorf("no generation in %d messages", len(msgs)))
}

var digestSeed = maphash.MakeSeed()

// digest is the same for rulesets that diff finds no difference between. It
// holds within this process only.
func (r *ruleset) digest() uint64 {
	var sum uint64
	add := func(parts ...string) {
		var h maphash.Hash
		h.SetSeed(digestSeed)
		for _, p := range parts {
			_, _ = h.WriteString(p)
			_ = h.WriteByte(0)
		}
		sum += h.Sum64()
	}
	for name := range r.counters {
		add("counter", name)
	}
	for name, c := range r.chains {
		parts := []string{"chain", name}
		if c.hook != nil {
			parts = append(parts, fmt.Sprint(*c.hook))
		}
		for _, rule := range c.rules {
			parts = append(parts, rule.comment)
		}
		add(parts...)
	}
	for name, s := range r.sets {
		add("set", name, fmt.Sprint(s.key, s.data.Name, s.interval))
		for id := range s.elements {
			add("element", name, id)
		}
	}
	return sum
}
