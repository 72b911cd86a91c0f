//go:build linux

package e2e

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// looksDocument is bothPathsDocument with decoys that look like hosts.
func looksDocument() string {
	text := strings.Replace(bothPathsDocument, "name: relayed\n", "name: relayed\n    mac: vendor:dell\n    personality: windows\n", 1)
	return strings.Replace(text, "name: redirected\n", "name: redirected\n    mac: 00:1b:1b\n    personality: linux\n", 1)
}

// lladdr returns where the intruder's kernel believes an address to be.
func (o *office) lladdr(addr string) string {
	o.t.Helper()
	o.run("ip", "neigh", "flush", "to", addr)
	o.run("ping", "-n", "-c", "1", "-W", "2", addr)
	words := strings.Fields(o.run("ip", "neigh", "show", "to", addr))
	for i, w := range words {
		if w == "lladdr" {
			return words[i+1]
		}
	}
	return strings.Join(words, " ")
}

// Decoys on either path are hosts of their own to a neighbour: the same ones after
// a kill and a restart, with the services behind them as ever.
func TestLooks(t *testing.T) {
	t.Parallel()
	o := newBothPaths(t)
	before := o.settled()
	o.document(looksDocument())
	o.up()
	addrs := []string{"192.0.2.100", "192.0.2.120", "2001:db8:2::10f", "192.0.2.200", "192.0.2.220"}
	macs := func() map[string]string {
		t.Helper()
		out := map[string]string{}
		for _, a := range addrs {
			out[a] = o.lladdr(a)
		}
		return out
	}
	first := macs()
	seen := map[string]string{}
	for _, a := range addrs {
		want := "00:14:22:"
		if strings.HasPrefix(a, "192.0.2.2") {
			want = "00:1b:1b:"
		}
		if !strings.HasPrefix(first[a], want) || seen[first[a]] != "" {
			t.Errorf("%s is at %s (as is %q), want %s", a, first[a], seen[first[a]], want)
		}
		seen[first[a]] = a
	}
	o.wantWeb(bothPathsWeb...)
	_, source := o.curl("http://192.0.2.100/")
	o.wantPeer(o.Web, source)
	for decoy, ttl := range map[string]string{"192.0.2.100": "ttl=128", "192.0.2.200": "ttl=64"} {
		if out := o.run("ping", "-n", "-c", "1", "-W", "2", decoy); !strings.Contains(out, ttl) {
			t.Errorf("ping %s lacks %s:\n%s", decoy, ttl, out)
		}
		out := o.run("nmap", "-sV", "-n", "-Pn", "-p", "80,81", decoy)
		if !strings.Contains(out, "nginx") || !strings.Contains(out, "81/tcp closed") {
			t.Errorf("nmap -sV of %s:\n%s", decoy, out)
		}
	}

	redirected := o.keepOpen("192.0.2.200:6379")
	check(t, redirected.ping())
	check(t, o.process.Kill())
	check(t, redirected.ping())
	o.start()
	o.waitReady(10 * time.Second)
	check(t, redirected.ping())
	o.wantWeb(bothPathsWeb...)
	if diff := cmp.Diff(first, macs()); diff != "" {
		t.Errorf("after a restart MAC addresses differ (-before +after):\n%s", diff)
	}
	check(t, o.process.Kill())
	out, err := o.decoynet("cleanup")
	check(t, err)
	if !strings.Contains(out, "filter of eth0") {
		t.Errorf("cleanup says\n%s", out)
	}
	o.wantUnchanged(before)

	o.up()
	o.wantWeb(bothPathsWeb...)
	// The document's change alone takes the looks away.
	o.document(bothPathsDocument)
	check(t, o.process.Signal(syscall.SIGHUP))
	eventually(t, 10*time.Second, func() error {
		st, err := o.status()
		if err == nil && o.lladdr(addrs[0]) != strings.ToLower(st.Segments[0].MAC) {
			err = fmt.Errorf("%s is at %s still", addrs[0], o.lladdr(addrs[0]))
		}
		return err
	})
	o.down()
	o.wantUnchanged(before)
}
