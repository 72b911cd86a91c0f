package sense

import (
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"pgregory.net/rapid"

	"decoynet/deception"
)

// Whatever comes, in which order and from how many: what is told in the end adds
// up to what came.
func TestNothingIsLost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(Config{
			MaxSources: rapid.IntRange(1, 40).Draw(t, "sources"), NewSources: rapid.IntRange(1, 4).Draw(t, "new sources"),
		})
		var came, told [deception.ContactKinds]uint64
		over := map[deception.SessionID]bool{}
		check := func(probes []*deception.Probe) {
			for _, p := range probes {
				if over[p.ID] {
					t.Fatalf("probe %s is told after its end", p.ID)
				}
				if p.Count() == 0 || p.Addresses == 0 || p.Last.Before(p.Start) || p.Sources == 0 {
					t.Fatalf("an impossible probe: %+v", p)
				}
				if !p.End.IsZero() {
					over[p.ID] = true
					for kind, n := range p.Contacts {
						told[kind] += n
					}
				}
			}
		}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			sources, addresses, ports := rapid.IntRange(1, 200).Draw(t, "of"), rapid.IntRange(1, 600).Draw(t, "to"), rapid.IntRange(1, 600).Draw(t, "ports")
			random := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
			var batch []Contact
			for range rapid.IntRange(0, 1500).Draw(t, "contacts") {
				kind := deception.ContactKind(random.IntN(deception.ContactKinds))
				c := w.contactOf(address(random.IntN(sources)), kind, address(random.IntN(addresses)), 0)
				if kind >= deception.ContactSYN {
					c.Port = uint16(random.IntN(ports))
				}
				if random.IntN(4) == 0 {
					c.Segment = "dmz"
				}
				if random.IntN(20) == 0 {
					c.Source = netip.IPv4Unspecified()
				}
				came[kind]++
				batch = append(batch, c)
			}
			w.Observe(batch)
			check(w.pass(time.Duration(rapid.IntRange(0, 40).Draw(t, "seconds")) * time.Second))
			if len(w.list) > w.config.MaxSources || len(w.list) != len(w.sources) {
				t.Fatalf("%d and %d sources, %d allowed", len(w.list), len(w.sources), w.config.MaxSources)
			}
		}
		w.probes = nil
		w.Flush(w.now)
		check(w.probes)
		if came != told {
			t.Fatalf("came %v, told %v", came, told)
		}
		if w.tables.larger != 0 || len(w.list) != 0 || len(w.segments) != 0 {
			t.Fatalf("left: %d bytes of tables, %d sources, %d segments", w.tables.larger, len(w.list), len(w.segments))
		}
	})
}

func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// A million forged sources cost bounded memory and bounded records; the MAC
// address behind them is told.
func TestForgedSources(t *testing.T) {
	before := heap()
	w := newWorld(Config{})
	records, singly := 0, 0
	var together *deception.Probe
	note := func(probes []*deception.Probe) {
		records += len(probes)
		for _, p := range probes {
			if !p.Source.IsValid() {
				together = p
			} else if !p.End.IsZero() {
				singly += int(p.Count())
			}
		}
	}
	const seconds, perSecond = 20, 50_000
	for i := range seconds {
		batch := make([]Contact, perSecond)
		for j := range batch {
			batch[j] = w.contactOf(address(i*perSecond+j), deception.ContactSYN, address(j%65_536), 80)
		}
		w.Observe(batch)
		note(w.pass(time.Second))
	}
	grown := heap() - before
	t.Logf("a million forged sources: %d KiB, %d records in %d s", grown>>10, records, seconds)
	if grown > 12<<20 {
		t.Errorf("a million forged sources hold %d KiB", grown>>10)
	}
	if most := 11*DefaultNewSources + (seconds+1)*DefaultNewSources + 100; records > most {
		t.Errorf("%d records in %d s", records, seconds)
	}
	note(w.pass(2 * time.Minute))
	if together == nil || together.End.IsZero() || int(together.Count())+singly != seconds*perSecond {
		t.Fatalf("told together: %+v; singly %d contacts", together, singly)
	}
	if together.Kind != deception.ScanHorizontal || together.SourceMAC != "02:00:00:00:00:42" || !together.Approximate {
		t.Errorf("told together: %+v", together)
	}
	if e := float64(together.Sources)/(seconds*perSecond-float64(singly)) - 1; e < -0.08 || e > 0.08 {
		t.Errorf("%d sources are told together, %.1f %% off", together.Sources, 100*e)
	}
}

// The most that sources can hold: all of them, each with as many addresses and
// ports as it takes.
func TestMemoryAtWorst(t *testing.T) {
	before := heap()
	w := newWorld(Config{})
	batch := make([]Contact, 800)
	for i := range DefaultMaxSources {
		for j := range batch {
			batch[j] = w.contactOf(address(i), deception.ContactSYN, address(i+j), uint16(j))
		}
		w.Observe(batch)
	}
	grown := heap() - before
	t.Logf("%d sources at worst: %d KiB", DefaultMaxSources, grown>>10)
	if grown > 48<<20 {
		t.Errorf("%d sources hold %d KiB", DefaultMaxSources, grown>>10)
	}
	runtime.KeepAlive(w)
}

// Nobody hides behind forged sources, neither one that was there before nor one
// that comes while there is no room.
func TestNobodyHides(t *testing.T) {
	w := newWorld(Config{MaxSources: 2000, NewSources: 20})
	early, late := netip.MustParseAddr("192.0.2.66"), netip.MustParseAddr("192.0.2.67")
	told := map[netip.Addr]*deception.Probe{}
	for i := range 100 { // 25 seconds, in which no place becomes free; 10,000 forged contacts a second
		batch := make([]Contact, 2500)
		for j := range batch {
			batch[j] = w.contactOf(address(i*len(batch)+j), deception.ContactSYN, address(j), 80)
		}
		if i%4 == 0 {
			batch[0] = w.contactOf(early, deception.ContactSYN, address(i), 22)
		}
		for j := 0; i >= 20 && j < 50; j++ { // one contact in fifty
			batch[50*j+1] = w.contactOf(late, deception.ContactSYN, address(i), uint16(j))
		}
		w.Observe(batch)
		for _, p := range w.pass(250 * time.Millisecond) {
			if p.Source == early || p.Source == late {
				told[p.Source] = p
			}
		}
	}
	for _, p := range w.pass(time.Minute) {
		if p.Source == early || p.Source == late {
			told[p.Source] = p
		}
	}
	if p := told[early]; p == nil || p.End.IsZero() || p.Count() != 25 || p.Kind != deception.ScanHorizontal {
		t.Errorf("who was there before is told as %+v", p)
	}
	if p := told[late]; p == nil || p.End.IsZero() || p.Count() < 3000 || p.Kind != deception.ScanNetwork {
		t.Errorf("who came meanwhile is told as %+v", p)
	}
}

// Those who did more than a little keep their places.
func TestNobodyIsPushedOut(t *testing.T) {
	w := newWorld(Config{MaxSources: 20})
	for i := range 20 * (displaceable + 1) {
		w.contact(address(i%20).String(), deception.ContactSYN, "192.0.2.10", uint16(i))
	}
	for range 1000 {
		w.contact("192.0.2.66", deception.ContactSYN, "192.0.2.10", 22)
	}
	for _, p := range w.pass(time.Second) {
		if want := uint64(displaceable + 1); p.Source.IsValid() && (p.Count() != want || !p.End.IsZero()) || !p.Source.IsValid() && p.Count() != 1000 {
			t.Errorf("told: %q", short([]*deception.Probe{p}))
		}
	}
	if len(w.probes) != 21 {
		t.Errorf("%d probes", len(w.probes))
	}
}

func BenchmarkObserve(b *testing.B) {
	const batch = 512
	fill := map[string]func(w *world, contacts []Contact, n int){
		"scan of a /16 from one source": func(w *world, contacts []Contact, n int) {
			for i := range contacts {
				contacts[i] = w.contactOf(netip.MustParseAddr("192.0.2.66"), deception.ContactSYN, address((n+i)%65_536*40503%65_536), 443)
			}
		},
		"scan of a /16, all ports": func(w *world, contacts []Contact, n int) {
			for i := range contacts {
				contacts[i] = w.contactOf(netip.MustParseAddr("192.0.2.66"), deception.ContactSYN, address((n+i)%65_536*40503%65_536), uint16((n+i)*31))
			}
		},
		"a thousand sources": func(w *world, contacts []Contact, n int) {
			for i := range contacts {
				contacts[i] = w.contactOf(address(1<<20+(n+i)*617%1000), deception.ContactSYN, address((n+i)%65_536), 443)
			}
		},
		"forged sources": func(w *world, contacts []Contact, n int) {
			for i := range contacts {
				contacts[i] = w.contactOf(netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte((n + i) >> 8), byte(n + i)}), deception.ContactSYN, address((n+i)%65_536), 443)
			}
		},
	}
	for _, name := range []string{"scan of a /16 from one source", "scan of a /16, all ports", "a thousand sources", "forged sources"} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(Config{})
			contacts := make([]Contact, batch)
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += batch {
				b.StopTimer()
				fill[name](w, contacts, n)
				b.StartTimer()
				w.Observe(contacts)
			}
		})
	}
}
