package gateway

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/lab"
	"decoynet/internal/notice"
	"decoynet/internal/proxyheader"
)

// The service sees the intruder's own address and port in every kind of flow, and
// the ingress records it under the agent's identifier and node.
func TestIngressKeepsTheIntruder(t *testing.T) {
	h := newHome(t)
	h.start()
	c := h.agent("crm-1", 1)
	for _, f := range []proxyheader.Header{
		h.flow("crm-1", "192.0.2.20:1007"), h.flow("crm-1", "[2001:db8:2::20]:1007"),
		h.flow("crm-1", "192.0.2.20:1161"), h.flow("crm-1", "[2001:db8:2::20]:1161"),
	} {
		server := h.tcp
		if f.Destination.Port() == 1161 {
			f.Transport, server = deception.UDP, h.udp
		}
		conn := h.open(c, f)
		conn.wantEcho()
		if err := server.WaitPeer(t.Context(), patience, f.Source); err != nil {
			t.Error(err)
		}
		wantReason := "client_closed"
		if f.Transport == deception.UDP {
			conn.Reset(deception.EndIdle)
			wantReason = "idle"
		} else {
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.r.ReadByte(); !errors.Is(err, io.EOF) {
				t.Errorf("want the service's FIN, got %v", err)
			}
		}
		s := h.sessionOf(f)
		if s.ID != f.Session || s.Node != "crm-1" || s.Segment != "host" || s.Decoy != "crm" || s.Service != "linux-echo" ||
			s.SourceNAT != f.Source || s.SourceMode != deception.SourceKept || s.Destination != f.Destination ||
			s.Reason.String() != wantReason || s.SourceBytes == 0 || len(s.DestinationHead) == 0 || time.Since(s.Start) > time.Minute {
			t.Errorf("session %+v, ended %q", s, s.Reason)
		}
	}
	h.status("with one agent and no flow", func(s IngressStatus) bool {
		return s.Accepted == 4 && s.Flows == 0 && len(s.Agents) == 1 && s.Agents[0].Node == "crm-1" && s.Agents[0].Connections > 0
	})
}

// Resets go through, from either side, and a service that is not there is a
// refusal.
func TestIngressEnds(t *testing.T) {
	h := newHome(t)
	h.start()
	c := h.agent("crm-1", 1)
	f := h.flow("crm-1", "192.0.2.20:1007")
	conn := h.open(c, f)
	conn.wantEcho()
	conn.Reset(deception.EndClientReset)
	if s := h.sessionOf(f); s.Reason != deception.EndClientReset {
		t.Errorf("the intruder reset, and the session ended %q", s.Reason)
	}
	f = h.flow("crm-1", "192.0.2.20:4008")
	h.open(c, f).wantEnd(deception.EndRefused)
	if s := h.sessionOf(f); s.Reason != deception.EndRefused || s.Service != "four" {
		t.Errorf("session %+v", s)
	}
	f = h.flow("crm-1", "[2001:db8:2::20]:4007") // the decoy's own, but its service has no IPv6 address
	h.open(c, f).wantEnd(deception.EndRefused)
	if s := h.sessionOf(f); s.Reason != deception.EndRefused || s.Decoy != "crm" || s.Service != "four" {
		t.Errorf("session %+v", s)
	}
	// The tunnel breaks: the service gets a reset, the session says so.
	f = h.flow("crm-1", "192.0.2.20:1007")
	h.open(c, f).wantEcho()
	c.Close()
	if s := h.sessionOf(f); s.Reason != deception.EndGateway {
		t.Errorf("the tunnel broke, and the session ended %q", s.Reason)
	}
}

// What an agent may not say is refused, counted and reported; flows of its own go
// on meanwhile.
func TestIngressRefuses(t *testing.T) {
	h := newHome(t)
	h.start()
	c := h.agent("crm-1", 1)
	own := h.open(c, h.flow("crm-1", "192.0.2.20:1007"))
	own.wantEcho()

	others := h.flow("crm-1", "192.0.2.20:2007") // a port of erp-1's decoy
	for range 3 {
		h.open(c, others).wantEnd(deception.EndDenied)
	}
	event := h.process.hears("the refused claim", func(w word) bool {
		return w.Event != nil && w.Event.Kind == deception.EventClaimRefused
	}).Event
	if event.Node != "crm-1" || event.Source != others.Source || event.Destination != others.Destination || event.Session != others.Session {
		t.Errorf("event %+v", event)
	}
	h.status("with three claims refused", func(s IngressStatus) bool { return s.ClaimsRefused == 3 })
	claims := 0
	for _, w := range h.process.words() {
		if w.Event != nil && w.Event.Kind == deception.EventClaimRefused {
			claims++
		}
	}
	if claims != 1 {
		t.Errorf("%d events for three claims at one address in a moment, want 1", claims)
	}

	posing := h.flow("crm-1", "192.0.2.21:1007") // another address: events are one an address in a minute
	posing.Node = "erp-1"
	h.open(c, posing).wantEnd(deception.EndDenied)
	h.process.hears("the claim to be another node", func(w word) bool {
		return w.Event != nil && w.Event.Kind == deception.EventClaimRefused && w.Event.Node == "crm-1" && strings.Contains(w.Event.Message, "in the name of node erp-1")
	})
	h.status("with four claims refused", func(s IngressStatus) bool { return s.ClaimsRefused == 4 })

	wrong := map[string]proxyheader.Header{}
	for name, change := range map[string]func(*proxyheader.Header){
		"no node's name":       func(f *proxyheader.Header) { f.Node = "" },
		"no identifier":        func(f *proxyheader.Header) { f.Session = deception.SessionID{} },
		"another kind of it":   func(f *proxyheader.Header) { f.Session[6] = f.Session[6]&0x0f | 0x40 },
		"a running session":    func(f *proxyheader.Header) { f.Session = own.f.Session },
		"a multicast source":   func(f *proxyheader.Header) { f.Source = netip.MustParseAddrPort("224.0.0.1:99") },
		"a source without one": func(f *proxyheader.Header) { f.Source = netip.AddrPortFrom(f.Source.Addr(), 0) },
	} {
		f := h.flow("crm-1", "192.0.2.20:1007")
		change(&f)
		wrong[name] = f
	}
	for name, f := range wrong {
		t.Log(name)
		h.open(c, f).wantEnd(deception.EndDenied)
	}
	good, err := own.f.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, header := range [][]byte{nil, []byte("GET / HTTP/1.1\r\n"), good[:20], append(slices.Clone(good), 0)} {
		h.openRaw(c, header, own.f).wantEnd(deception.EndDenied)
	}
	h.openRaw(c, good, proxyheader.Header{Transport: deception.UDP}).wantEnd(deception.EndDenied) // TCP as datagrams
	h.process.hears("a bad header", func(w word) bool { return w.Event != nil && w.Event.Kind == deception.EventPeerRefused })
	h.status("with the refusals", func(s IngressStatus) bool {
		return s.Refused["header"] == 10 && s.Refused["replayed session"] == 1 && s.Flows == 1
	})
	if _, err := io.WriteString(own, "on\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := own.r.ReadString('\n'); err != nil || line != "on\n" {
		t.Errorf("the flow that is in order: %q, %v", line, err)
	}
}

// Revocation, and enrolment anew, cut the tunnel with all its flows, and the old
// certificate does not come in again.
func TestIngressCutsOff(t *testing.T) {
	for name, change := range map[string]func(peers map[string]uint32){
		"revoked": func(peers map[string]uint32) { delete(peers, "crm-1") },
		"anew":    func(peers map[string]uint32) { peers["crm-1"] = 2 },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHome(t)
			h.start()
			c, other := h.agent("crm-1", 1), h.agent("erp-1", 1)
			f := h.flow("crm-1", "192.0.2.20:1007")
			conn, stays := h.open(c, f), h.open(other, h.flow("erp-1", "192.0.2.30:2007"))
			conn.wantEcho()
			stays.wantEcho()
			change(h.generations)
			began := time.Now()
			h.write(h.stateFile+".peers", h.generations)
			conn.wantEnd(deception.EndGateway)
			t.Logf("cut off after %v", time.Since(began))
			if s := h.sessionOf(f); s.Reason != deception.EndGateway {
				t.Errorf("session ended %q", s.Reason)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			if s, err := c.Open(ctx, nil, false); err == nil {
				// A last connection may still be going: its streams are refused.
				(&tunnelConn{Stream: s, r: bufio.NewReader(s), t: t}).wantEnd(deception.EndGateway)
			}
			err := lab.Eventually(t.Context(), patience, func() error {
				if st := c.Status()[0]; st.Connected || !strings.Contains(st.Err, "revoked") {
					return fmt.Errorf("status %+v", st)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if _, err := io.WriteString(stays, "on\n"); err != nil {
				t.Fatal(err)
			}
			if line, err := stays.r.ReadString('\n'); err != nil || line != "on\n" {
				t.Errorf("another node's flow: %q, %v", line, err)
			}
			if name == "anew" {
				h.open(h.agent("crm-1", 2), h.flow("crm-1", "192.0.2.20:1007")).wantEcho()
			}
		})
	}
}

// Flows that the document leads elsewhere, or nowhere, are ended.
func TestIngressUnbinds(t *testing.T) {
	h := newHome(t)
	h.start()
	c := h.agent("crm-1", 1)
	f := h.flow("crm-1", "192.0.2.20:1007")
	gone, stays := h.open(c, f), h.open(c, h.flow("crm-1", "192.0.2.20:4007"))
	gone.wantEcho()
	stays.wantEcho()
	state := homeState()
	state.Decoys[0].Bind = state.Decoys[0].Bind[1:]
	h.write(h.stateFile, state)
	gone.wantEnd(deception.EndUnbound)
	if s := h.sessionOf(f); s.Reason != deception.EndUnbound {
		t.Errorf("session ended %q", s.Reason)
	}
	if _, err := io.WriteString(stays, "on\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := stays.r.ReadString('\n'); err != nil || line != "on\n" {
		t.Errorf("the flow that is led as before: %q, %v", line, err)
	}
}

// Agents are told which of their ports have no service, and only of their own.
func TestIngressTellsOfHealth(t *testing.T) {
	h := newHome(t)
	h.start()
	h.agent("crm-1", 1)
	wantDown := func(want ...string) {
		t.Helper()
		err := lab.Eventually(t.Context(), patience, func() error {
			h.mu.Lock()
			defer h.mu.Unlock()
			if len(h.notices) == 0 {
				return errors.New("no notice")
			}
			n, err := notice.Parse([]byte(h.notices[len(h.notices)-1]))
			var got []string
			for _, d := range n.Down {
				got = append(got, fmt.Sprintf("%s/%s %d-%d/%s %v", d.Segment, d.Decoy, d.First, d.Last, d.Transport, d.IPv6))
			}
			slices.Sort(got)
			if err != nil || n.Node != "crm-1" || !slices.Equal(got, want) {
				return fmt.Errorf("told %s: down %q, %v; want %q", n.Node, got, err, want)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	never := []string{ // no IPv6 address, and nobody at port 8
		"host/crm 4007-4007/tcp true", "host/crm 4008-4008/tcp false", "host/crm 4008-4008/tcp true",
	}
	wantDown(never...)
	if err := h.tcp.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantDown(append([]string{"host/crm 1007-1007/tcp false", "host/crm 1007-1007/tcp true", "host/crm 4007-4007/tcp false"}, never...)...)
	if err := h.tcp.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantDown(never...)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range h.notices {
		if strings.Contains(n, "erp") {
			t.Errorf("the agent on crm-1 heard of another's: %s", n)
		}
	}
}

// A gateway that dies resets both ends; one whose address is taken says so and
// comes up when it is free.
func TestIngressDies(t *testing.T) {
	h := newHome(t)
	var taken net.Listener
	if err := h.hq.Do(func() (err error) { taken, err = net.Listen("tcp", homeAt); return err }); err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, lab: h.lab}
	h.process = w.start(h.hq, "home", h.stateFile)
	h.status("with the address in use", func(s IngressStatus) bool {
		return !s.Listening && len(s.Problems) == 1 && strings.Contains(s.Problems[0], "another program has the port")
	})
	taken.Close()
	h.status("that it listens", func(s IngressStatus) bool { return s.Listening && len(s.Problems) == 0 })
	c := h.agent("crm-1", 1)
	conn := h.open(c, h.flow("crm-1", "192.0.2.20:1007"))
	conn.wantEcho()
	if err := h.process.Kill(); err != nil {
		t.Fatal(err)
	}
	conn.wantEnd(deception.EndGateway)
	h.start()
	h.open(c, h.flow("crm-1", "192.0.2.20:1007")).wantEcho()
}
