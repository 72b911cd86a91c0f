package agent

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"decoynet/deception"
)

// socketOwners names the processes behind sockets, as far as /proc lets us: the
// sockets are visible to everybody, whose they are only to their owner and to
// root. It is read once, when it is first asked.
type socketOwners struct {
	proc    string
	tables  map[deception.Transport][]boundSocket
	holders map[string]string // by inode, nil until asked for
}

// boundSocket is a line of /proc/net/tcp and its like.
type boundSocket struct {
	at    netip.AddrPort
	uid   string
	inode string
}

func newSocketOwners() *socketOwners {
	return &socketOwners{proc: "/proc", tables: map[deception.Transport][]boundSocket{}}
}

// find names who has the port at an address, or at one that stands for it;
// empty where that is not to be seen.
func (o *socketOwners) find(t deception.Transport, at netip.AddrPort) string {
	if _, read := o.tables[t]; !read {
		o.tables[t] = o.readTables(t)
	}
	for _, s := range o.tables[t] {
		if s.at.Port() != at.Port() || !overlap(s.at.Addr(), at.Addr()) {
			continue
		}
		if o.holders == nil {
			o.holders = o.readHolders()
		}
		if name := o.holders[s.inode]; name != "" {
			return name
		}
		return "a process of user " + userName(s.uid)
	}
	return ""
}

// overlap tells whether sockets at the two addresses are in each other's way.
func overlap(a, b netip.Addr) bool {
	switch {
	case a.Is6() && a.IsUnspecified() || b.Is6() && b.IsUnspecified():
		return true // an IPv6 socket for every address may take IPv4, too
	case a.Is4() != b.Is4():
		return false
	}
	return a.IsUnspecified() || b.IsUnspecified() || a == b.WithZone("")
}

// readTables reads which sockets are bound: those that listen, and every UDP
// socket without a peer.
func (o *socketOwners) readTables(t deception.Transport) []boundSocket {
	var out []boundSocket
	for _, family := range [...]string{"", "6"} {
		text, err := os.ReadFile(filepath.Join(o.proc, "net", t.String()+family))
		if err != nil {
			continue // no such family
		}
		for line := range strings.Lines(string(text)) {
			// sl local_address rem_address st queues timer retrnsmt uid timeout inode
			f := strings.Fields(line)
			if len(f) < 10 {
				continue
			}
			// 0A is TCP_LISTEN; 07, TCP_CLOSE, is a UDP socket that is not connected.
			if listens := f[3] == "0A"; t == deception.TCP && !listens || t == deception.UDP && f[3] != "07" {
				continue
			}
			if at, ok := procAddrPort(f[1]); ok {
				out = append(out, boundSocket{at: at, uid: f[7], inode: f[9]})
			}
		}
	}
	return out
}

// readHolders goes through the processes' descriptors.
func (o *socketOwners) readHolders() map[string]string {
	out := map[string]string{}
	links, _ := filepath.Glob(filepath.Join(o.proc, "[0-9]*", "fd", "*")) // the pattern is good
	for _, link := range links {
		target, err := os.Readlink(link)
		if err != nil {
			continue // gone, or not ours to see
		}
		inode, ok := strings.CutPrefix(target, "socket:[")
		if !ok {
			continue
		}
		process := filepath.Dir(filepath.Dir(link))
		name, err := os.ReadFile(filepath.Join(process, "comm"))
		inode = strings.TrimSuffix(inode, "]")
		if _, known := out[inode]; err == nil && !known { // the first is the parent, mostly
			out[inode] = fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(name)), filepath.Base(process))
		}
	}
	return out
}

// procAddrPort reads a socket address of /proc/net: 32-bit words as the
// processor holds them (little-endian on all that we build for), then the port.
func procAddrPort(s string) (netip.AddrPort, bool) {
	addr, port, _ := strings.Cut(s, ":")
	b, err1 := hex.DecodeString(addr)
	p, err2 := strconv.ParseUint(port, 16, 16)
	for i := 0; i+4 <= len(b); i += 4 {
		slices.Reverse(b[i : i+4])
	}
	a, ok := netip.AddrFromSlice(b)
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), ok && err1 == nil && err2 == nil
}

func userName(uid string) string {
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return uid
}
