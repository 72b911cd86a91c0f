package tunnel

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestTell brings states to clients that are there and that come later.
func TestTell(t *testing.T) {
	st := newSite(t, echo)
	var mu sync.Mutex
	heard := map[string][]string{}
	listener := func(name string) ClientConfig {
		return ClientConfig{Told: func(gateway string, m []byte) {
			mu.Lock()
			defer mu.Unlock()
			heard[name] = append(heard[name], gateway+" "+string(m))
		}}
	}
	last := func(name string) string {
		mu.Lock()
		defer mu.Unlock()
		if len(heard[name]) == 0 {
			return ""
		}
		return heard[name][len(heard[name])-1]
	}
	w := newWay(t, st.address, 0, 0)
	c := st.clientWith(listener("early"), st.gateway("gw1", w.address))
	eventually(t, "connected", func() bool { return connected(c, "gw1") })
	if last("early") != "" {
		t.Error("heard something before it was told")
	}
	long := strings.Repeat("a state of many pieces ", 10_000)
	for _, m := range []string{"first", "", long, "last"} {
		st.server.Tell([]byte(m))
		eventually(t, "told", func() bool { return last("early") == "gw1 "+m })
	}
	for i := range 500 {
		st.server.Tell(fmt.Appendf(nil, "state %d", i))
	}
	eventually(t, "told the last of many", func() bool { return last("early") == "gw1 state 499" })
	st.server.Tell(make([]byte, MaxMessage+1)) // is not sent
	st.clientWith(listener("late"))
	eventually(t, "told when it connected", func() bool { return last("late") == "gw1 state 499" })

	// Numbers go up only, although two connections bring them.
	mu.Lock()
	var seen []int
	for _, m := range heard["early"] {
		var n int
		if _, err := fmt.Sscanf(m, "gw1 state %d", &n); err == nil {
			seen = append(seen, n)
		}
	}
	mu.Unlock()
	if !slices.IsSorted(seen) {
		t.Errorf("messages out of order: %v", seen)
	}
	// After a new connection the same message is not told again.
	before := last("early")
	w.cut()
	eventually(t, "connected", func() bool { return connected(c, "gw1") })
	st.server.Tell([]byte("after"))
	eventually(t, "told", func() bool { return last("early") == "gw1 after" })
	mu.Lock()
	defer mu.Unlock()
	if n := len(heard["early"]); heard["early"][n-2] != before {
		t.Errorf("told %q between", heard["early"][n-2])
	}
}

// TestStatus looks at both ends.
func TestStatus(t *testing.T) {
	st := newSite(t, func(_ string, s *Stream) { io.Copy(io.Discard, s) })
	c := st.client()
	eventually(t, "connected, with a round trip", func() bool {
		s := c.Status()[0]
		return s.Connections == 2 && s.RoundTrip > 0
	})
	s := open(t, c, "", false)
	got := c.Status()[0]
	if got.RoundTrip > 5*time.Second || time.Since(got.Since) > patience {
		t.Errorf("status: %+v", got)
	}
	got.RoundTrip, got.Since = 0, time.Time{}
	want := LinkStatus{Gateway: "gw1", Address: st.address.String(), Connected: true, Connections: 2, Streams: 1}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	eventually(t, "the server sees it", func() bool {
		p := st.server.Status().Peers
		return len(p) == 2 && p[0].Node == "crm-1" && p[0].Streams+p[1].Streams == 1 && p[0].RoundTrip > 0
	})
	s.Close()
}
