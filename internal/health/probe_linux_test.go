package health

import (
	"errors"
	"maps"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/deception"
	"decoynet/internal/lab"
	"decoynet/internal/lab/labtest"
)

// The probe tells open, closed and silent ports apart, and no server notices.
func TestProbe(t *testing.T) {
	l := labtest.New(t)
	lan := l.Switch("lan")
	host, server := l.Machine("host"), l.Machine("server")
	host.Plug(lan, "eth0", "10.1.0.1/24", "fd00:1::1/64")
	server.Plug(lan, "eth0", "10.1.0.2/24", "fd00:1::2/64")
	tcp, err := lab.TCPPeer(t.Context(), server, lab.Listen{Ports: []uint16{80}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lab.UDPEcho(t.Context(), server, lab.Listen{Ports: []uint16{161}}); err != nil {
		t.Fatal(err)
	}
	port := func(transport deception.Transport, address string, number uint16) Port {
		return Port{Service: "s", Transport: transport, Address: netip.AddrPortFrom(netip.MustParseAddr(address), number)}
	}
	var ports []Port
	for _, address := range []string{"10.1.0.2", "fd00:1::2"} {
		ports = append(ports, port(deception.TCP, address, 80), port(deception.TCP, address, 81),
			port(deception.UDP, address, 161), port(deception.UDP, address, 162))
	}
	silent := port(deception.TCP, "10.1.0.77", 80)
	closedRange := port(deception.TCP, "10.1.0.2", 8000)
	closedRange.Range = true
	var errs map[Port]error
	if err := host.Do(func() error {
		errs = Probe(t.Context(), append(ports, closedRange), 10*time.Second, 0)
		maps.Copy(errs, Probe(t.Context(), []Port{silent}, 500*time.Millisecond, 0))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, p := range ports {
		closed := p.Address.Port() == 81 || p.Address.Port() == 162
		if got := errors.Is(errs[p], unix.ECONNREFUSED); got != closed || !closed && errs[p] != nil {
			t.Errorf("%s %s: %v", p.Transport, p.Address, errs[p])
		}
	}
	if errs[silent] == nil || errors.Is(errs[silent], unix.ECONNREFUSED) {
		t.Errorf("a machine that is not there: %v", errs[silent])
	}
	if errs[closedRange] != nil {
		t.Errorf("a range whose first port answers with RST: %v, want it open", errs[closedRange])
	}
	peers, err := tcp.Peers()
	if err != nil || len(peers) != 0 {
		t.Errorf("the server noticed %v (%v), want nothing", peers, err)
	}
}
