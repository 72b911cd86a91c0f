//go:build linux

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"decoynet/deception"
	"decoynet/internal/lab"
	"decoynet/internal/pki"
	"decoynet/internal/proxyheader"
	"decoynet/internal/tunnel"
)

// impostor is a branch whose agent's identity has fallen into wrong hands: they
// speak to the gateway as the agent would, about decoys that are not its own.
type impostor struct {
	*branch
	tunnel *tunnel.Client
}

func newImpostor(b *branch) *impostor {
	b.t.Helper()
	identity, err := pki.LoadIdentity(b.agentData)
	check(b.t, err)
	c := tunnel.NewClient(tunnel.ClientConfig{
		TLS: identity.GatewayTLS, Connections: 1,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			return b.Branch.Intruder.Dial(ctx, network, address) // from another machine than the agent's
		},
	})
	c.SetGateways([]deception.Gateway{{Name: "gw1", Node: "hq", Listen: netip.MustParseAddrPort("192.0.2.5:7444")}})
	b.t.Cleanup(c.Close)
	return &impostor{branch: b, tunnel: c}
}

// claim opens a flow with a header and returns what it reads before its end.
func (i *impostor) claim(h proxyheader.Header) (string, error) {
	i.t.Helper()
	if h.Session.IsZero() {
		h.Session = deception.NewSessionID(time.Now())
	}
	header, err := h.Append(nil)
	check(i.t, err)
	return i.open(header)
}

func (i *impostor) open(header []byte) (string, error) {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(i.t.Context(), 10*time.Second)
	defer cancel()
	s, err := i.tunnel.Open(ctx, header, false)
	check(i.t, err)
	defer s.Close()
	check(i.t, s.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, _ = io.WriteString(s, "GET / HTTP/1.0\r\n\r\n")
	text, err := io.ReadAll(s)
	return string(text), err
}

// TestForeignClaims has an enrolled node speak for decoys of others.
func TestForeignClaims(t *testing.T) {
	t.Parallel()
	b := newBranch(t)
	b.document(strings.NewReplacer(
		"{name: crm-1}]", "{name: crm-1}, {name: crm-2}]",
		"decoys:\n", "decoys:\n  - {name: erp, segment: host, node: crm-2, addresses: [any], bind: [{ports: [8080], service: web, target: 80}]}\n",
	).Replace(branchDocument))
	b.up()
	b.join()
	i := newImpostor(b)
	intruder := netip.AddrPortFrom(lab.BranchIntruder.V4, 40404)
	own := proxyheader.Header{
		Transport: deception.TCP, Source: intruder, Destination: netip.AddrPortFrom(lab.BranchServer.V4, 80),
		Node: "crm-1", Segment: "host", Decoy: "crm", Service: "web",
	}
	// What it may say works, so that the refusals below are for what they say.
	if text, err := i.claim(own); err != nil || !strings.Contains(text, "peer 198.51.100.66 40404") {
		t.Fatalf("the agent's own flow: %q, %v", text, err)
	}
	with := func(change func(*proxyheader.Header)) proxyheader.Header {
		h := own
		change(&h)
		return h
	}
	for n, c := range []struct {
		name   string
		header proxyheader.Header
	}{
		{"the office's decoy", with(func(h *proxyheader.Header) {
			h.Segment, h.Decoy, h.Destination = "office", "office-web", netip.MustParseAddrPort("192.0.2.100:80")
		})},
		{"the office's decoy as its node", with(func(h *proxyheader.Header) {
			h.Node, h.Segment, h.Decoy, h.Destination = "hq", "office", "office-web", netip.MustParseAddrPort("192.0.2.101:80")
		})},
		{"another agent's decoy", with(func(h *proxyheader.Header) {
			h.Decoy, h.Destination = "erp", netip.AddrPortFrom(lab.BranchServer.V4, 8080)
		})},
		{"another agent's decoy as its node", with(func(h *proxyheader.Header) {
			h.Node, h.Decoy, h.Destination = "crm-2", "erp", netip.AddrPortFrom(lab.BranchRouter.V4, 8080)
		})},
		{"a service itself", with(func(h *proxyheader.Header) {
			h.Destination, h.Target = netip.MustParseAddrPort("10.1.0.4:22"), netip.MustParseAddrPort("10.1.0.4:22")
		})},
	} {
		text, err := i.claim(c.header)
		var reset *tunnel.ResetError
		if text != "" || !errors.As(err, &reset) || reset.Reason != deception.EndDenied {
			t.Errorf("%s: %q, %v", c.name, text, err)
		}
		st, err := b.linked()
		check(t, err)
		if st.Ingress.ClaimsRefused != n+1 {
			t.Errorf("%s: status counts %d refused claims, want %d", c.name, st.Ingress.ClaimsRefused, n+1)
		}
		e := b.wantEvent("claim-refused", func(e event) bool {
			return e.SourceIP == intruder.Addr().String() && strings.Contains(e.Message, c.header.Destination.String())
		})
		if e.Node != "crm-1" || c.header.Node != "crm-1" && !strings.Contains(e.Message, c.header.Node) {
			t.Errorf("%s: the event is %+v", c.name, e)
		}
	}
	i.wantHeadersRefused(own)

	list, err := b.records()
	check(t, err)
	if len(list) != 1 || list[0].Decoy != "crm" || list[0].Service != "web" {
		t.Errorf("%d sessions are recorded, want the agent's own: %+v", len(list), list)
	}
}

// wantHeadersRefused: what is no header, or contradicts itself, ends its flow
// only.
func (i *impostor) wantHeadersRefused(own proxyheader.Header) {
	i.t.Helper()
	own.Session = deception.NewSessionID(time.Now())
	header, err := own.Append(nil)
	check(i.t, err)
	for name, bad := range map[string][]byte{
		"half a header": header[:len(header)/2],
		"garbage":       []byte("GET / HTTP/1.1\r\nHost: 192.0.2.5\r\n\r\n"),
		"two headers":   append(append([]byte{}, header...), header...),
	} {
		if text, err := i.open(bad); text != "" || err == nil {
			i.t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	st, err := i.linked()
	check(i.t, err)
	if st.Ingress.Refused["header"] != 3 {
		text, _ := json.Marshal(st.Ingress.Refused)
		i.t.Errorf("status counts refusals %s, want 3 by header", text)
	}
	own.Session = deception.SessionID{}
	if text, err := i.claim(own); err != nil || !strings.Contains(text, "peer ") {
		i.t.Errorf("after bad headers, the agent's own flow: %q, %v", text, err)
	}
}
