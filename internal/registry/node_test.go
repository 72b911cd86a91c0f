package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestEnrol(t *testing.T) {
	withRegistry(t, func(t *testing.T, ctx context.Context, r *Registry) {
		now := time.Now()
		token := func(expires time.Time) Secret {
			s := NewSecret(JoinSecret)
			if err := r.CreateToken(ctx, "crm-1", expires, s, by); err != nil {
				t.Fatal(err)
			}
			return s
		}
		show := func(s Secret, sign error) (string, uint32, error) {
			return r.Enrol(ctx, Enrolment{
				Token: s, Now: now, By: Entry{Method: "EnrolmentService/Enrol", Peer: "192.0.2.9:1"},
				Sign: func(string, uint32) error { return sign },
			})
		}
		good := token(now.Add(time.Hour))
		forged := good
		forged.Hash = NewSecret(JoinSecret).Hash
		for what, c := range map[string]struct {
			secret Secret
			node   string
			want   error
		}{
			"unknown": {NewSecret(JoinSecret), "", ErrTokenUnknown},
			"forged":  {forged, "", ErrTokenUnknown},
			"expired": {token(now), "crm-1", ErrTokenExpired},
		} {
			if node, _, err := show(c.secret, nil); !errors.Is(err, c.want) || node != c.node {
				t.Errorf("%s token: %q, %v", what, node, err)
			}
		}
		bad := errors.New("bad request")
		if _, _, err := show(good, bad); !errors.Is(err, bad) {
			t.Errorf("a request that cannot be signed: %v", err)
		}
		if node, generation, err := show(good, nil); node != "crm-1" || generation != 1 || err != nil {
			t.Errorf("a good token, after a request that could not be signed: %s %d, %v", node, generation, err)
		}
		if node, _, err := show(good, nil); !errors.Is(err, ErrTokenUsed) || node != "crm-1" {
			t.Errorf("a used token: %q, %v", node, err)
		}
		if _, generation, err := show(token(now.Add(time.Hour)), nil); generation != 2 || err != nil {
			t.Errorf("enrolled again: generation %d, %v", generation, err)
		}
		entries, err := r.ListAudit(ctx, time.Time{}, 1)
		if err != nil {
			t.Fatal(err)
		}
		want := []Entry{{Actor: "crm-1", Object: "crm-1", Method: "EnrolmentService/Enrol", Result: ResultOK, Peer: "192.0.2.9:1"}}
		if diff := cmp.Diff(want, entries, cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Time" }, cmp.Ignore())); diff != "" {
			t.Errorf("audit (-want +got):\n%s", diff)
		}
		// Long after its expiry a token is not even known.
		if err := r.Prune(ctx, now.Add(tokenKept+2*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := show(good, nil); !errors.Is(err, ErrTokenUnknown) {
			t.Errorf("a token of last month: %v", err)
		}
	})
}

// One token, many at once, also at two controllers: one is enrolled.
func TestATokenEnrolsOnce(t *testing.T) {
	onBoth(t, func(t *testing.T, location string) {
		ctx := within(t)
		controllers := []*Registry{open(t, location)}
		if IsURL(location) {
			controllers = append(controllers, open(t, location))
		}
		for range 5 {
			s := NewSecret(JoinSecret)
			if err := controllers[0].CreateToken(ctx, "crm-1", time.Now().Add(time.Hour), s, by); err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			outcomes := map[string]int{}
			var wg sync.WaitGroup
			for i := range 8 {
				wg.Go(func() {
					_, _, err := controllers[i%len(controllers)].Enrol(ctx, Enrolment{
						Token: s, Now: time.Now(), By: by, Sign: func(string, uint32) error { return nil },
					})
					mu.Lock()
					defer mu.Unlock()
					switch {
					case err == nil:
						outcomes["enrolled"]++
					case errors.Is(err, ErrTokenUsed):
						outcomes["used"]++
					default:
						outcomes[err.Error()]++
					}
				})
			}
			wg.Wait()
			if diff := cmp.Diff(map[string]int{"enrolled": 1, "used": 7}, outcomes); diff != "" {
				t.Errorf("outcomes (-want +got):\n%s", diff)
			}
		}
		if n := node(t, controllers[0], "crm-1"); n.Generation != 5 {
			t.Errorf("generation %d after 5 tokens", n.Generation)
		}
	})
}

func TestRevoke(t *testing.T) {
	withRegistry(t, func(t *testing.T, ctx context.Context, r *Registry) {
		if err := r.Revoke(ctx, "crm-1", time.Now(), by); !errors.Is(err, ErrNoNode) {
			t.Errorf("revoke a stranger: %v", err)
		}
		enrol(t, r, "crm-1")
		if err := r.Revoke(ctx, "crm-1", time.Now(), by); err != nil {
			t.Fatal(err)
		}
		if n := node(t, r, "crm-1"); n.Generation != 2 || n.Revoked.IsZero() {
			t.Errorf("revoked: %+v", n)
		}
		if g := enrol(t, r, "crm-1"); g != 3 {
			t.Errorf("generation %d after enrolling again", g)
		}
		if n := node(t, r, "crm-1"); !n.Revoked.IsZero() {
			t.Errorf("enrolled again: %+v", n)
		}
	})
}

func TestPresence(t *testing.T) {
	withRegistry(t, func(t *testing.T, ctx context.Context, r *Registry) {
		enrol(t, r, "crm-1")
		base := time.Unix(1_700_000_000, 0)
		arrived := func(at time.Duration, boot string, want Arrival) {
			t.Helper()
			got, err := r.Arrived(ctx, []Hello{{"stranger", boot, base}, {"crm-1", boot, base.Add(at)}})
			if diff := cmp.Diff([]Arrival{{}, want}, got); err != nil || diff != "" {
				t.Errorf("arrival after %v: %v (-want +got):\n%s", at, err, diff)
			}
		}
		silent := func(since, at time.Duration, want bool) {
			t.Helper()
			got, err := r.Silent(ctx, base.Add(since), base.Add(at))
			if err != nil || slices.Equal(got, []string{"crm-1"}) != want {
				t.Errorf("silent since %v: %v, %v", since, got, err)
			}
		}
		silent(0, time.Hour, false) // never heard of is not lost
		arrived(0, "b1", Arrival{Back: true, NewBoot: true})
		arrived(time.Second, "b1", Arrival{Previous: "b1"})
		silent(0, time.Second, false)
		silent(time.Second, 2*time.Second, true)
		silent(time.Second, 3*time.Second, false) // said before
		if n := node(t, r, "crm-1"); !n.Lost.Equal(base.Add(2 * time.Second)) {
			t.Errorf("lost at %v", n.Lost)
		}
		arrived(4*time.Second, "", Arrival{Back: true})
		arrived(5*time.Second, "b2", Arrival{NewBoot: true, Previous: "b1"})
		if err := r.Revoke(ctx, "crm-1", base, by); err != nil {
			t.Fatal(err)
		}
		silent(time.Hour, 2*time.Hour, false) // who is cut off is not lost
	})
}

func TestSighted(t *testing.T) {
	withRegistry(t, func(t *testing.T, ctx context.Context, r *Registry) {
		var all []Sighting
		seen := time.Unix(1_700_000_000, 5)
		report := &Report{
			Version: "1", Platform: "linux/arm64", Held: "h", State: "failed", Problems: []string{"NUL \x00"}, Flows: 7,
			Gateways: []Link{{Name: "gw1", Connected: true, RoundTrip: 5, Error: "e"}}, Spool: Spool{1, 2, 3},
			ClockOffset: -5, CertificateExpires: time.Unix(1_800_000_000, 0).UTC(), Peer: "192.0.2.4",
		}
		for i := range 300 {
			name := fmt.Sprint("n", i)
			if i%100 == 0 {
				enrol(t, r, name)
			}
			all = append(all, Sighting{Node: name, Seen: seen, Report: report, Reach: []string{"192.0.2.4", "hq"}, Addresses: []string{"10.0.0.1"}})
		}
		before, err := r.Change(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Sighted(ctx, all); err != nil {
			t.Fatal(err)
		}
		if now, _ := r.Change(ctx); now == before {
			t.Error("nobody is told of new addresses")
		}
		n := node(t, r, "n100")
		if diff := cmp.Diff(*report, n.Report); diff != "" || !n.Seen.Equal(seen) || fmt.Sprint(n.Reach, n.Addresses) != "[192.0.2.4 hq] [10.0.0.1]" {
			t.Errorf("node %+v, report (-want +got):\n%s", n, diff)
		}
		before, _ = r.Change(ctx)
		if err := r.Sighted(ctx, []Sighting{{Node: "n100", Seen: seen.Add(-time.Hour)}, {Node: "n0", Seen: seen.Add(time.Hour)}}); err != nil {
			t.Fatal(err)
		}
		if now, _ := r.Change(ctx); now != before {
			t.Error("everybody is told that nodes still live")
		}
		if n := node(t, r, "n100"); !n.Seen.Equal(seen) || n.Report.Flows != 7 || len(n.Reach) != 2 {
			t.Errorf("after an older sighting: %+v", n)
		}
		enrol(t, r, "n200")
		if n := node(t, r, "n200"); !n.Seen.IsZero() || n.Report.Held != "" || len(n.Reach) != 2 {
			t.Errorf("enrolled again: %+v", n)
		}
		if n := node(t, r, "n0"); !n.Seen.Equal(seen.Add(time.Hour)) {
			t.Errorf("after a newer sighting: %+v", n)
		}
		if nodes, err := r.Nodes(ctx); err != nil || len(nodes) != 3 {
			t.Errorf("%d nodes: sightings enrol nobody; %v", len(nodes), err)
		}
	})
}
