package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"decoynet/deception"
	"decoynet/internal/lab"
)

// scanned are the ports that the scan asks for. Nothing is bound to 8080: it
// must be refused as by any host. 2222 is left out, being the same server as 22:
// the kernel may by chance take one source port for both of a decoy's.
var scanned = []string{"22", "80", "443", "6379", "8080"}

// scan looks at the whole LAN and holds what nmap found against the document.
func (a *attack) scan(ctx context.Context) (string, error) {
	out, err := a.from.Run(ctx, "nmap", "-n", "-sT", "-T4", "--min-parallelism", "64",
		"-p", strings.Join(scanned, ","), "-oG", "-", lab.OfficeLAN4.String())
	if err != nil {
		return "", err
	}
	hosts, err := parseScan(out)
	if err != nil {
		return "", err
	}
	machines := []netip.Addr{lab.OfficeGateway.V4, lab.OfficeProduction.V4, lab.OfficeIntruder.V4, lab.BranchOutside}
	errs, open := a.plan.checkScan(hosts, machines)
	return fmt.Sprintf("%d hosts up (%d are real), %d ports open", len(hosts), len(machines), open), errors.Join(errs...)
}

// checkScan returns where the scan differs from what the document promises, and
// how many open ports decoys have.
func (p *plan) checkScan(hosts map[netip.Addr]map[uint16]string, machines []netip.Addr) (errs []error, open int) {
	decoys := p.decoys(lab.OfficeLAN4.Addr())
	for _, a := range decoys {
		ports, up := hosts[a]
		if !up {
			errs = append(errs, fmt.Errorf("decoy %s is not up", a))
		}
		for port, state := range ports {
			want := "closed"
			if p.service(deception.TCP, netip.AddrPortFrom(a, port)) != "" {
				want = "open"
				open++
			}
			if state != want {
				errs = append(errs, fmt.Errorf("port %d of decoy %s is %s, not %s", port, a, state, want))
			}
		}
	}
	for _, a := range machines {
		if _, up := hosts[a]; !up {
			errs = append(errs, fmt.Errorf("machine %s is not up", a))
		}
	}
	for a := range hosts {
		if !slices.Contains(decoys, a) && !slices.Contains(machines, a) {
			errs = append(errs, fmt.Errorf("%s is up, and is nobody's", a))
		}
	}
	return errs, open
}

// checkHostScan holds the scan of a node that has decoys at its own address
// against the document and the ports of the machine's own.
func (p *plan) checkHostScan(target netip.Addr, ports map[uint16]string, own []uint16) (errs []error, open int) {
	for port, state := range ports {
		want := "closed"
		switch {
		case slices.Contains(own, port):
			want = "open"
		case p.service(deception.TCP, netip.AddrPortFrom(target, port)) != "":
			want = "open"
			open++
		}
		if state != want {
			errs = append(errs, fmt.Errorf("port %d of %s is %s, not %s", port, target, state, want))
		}
	}
	return errs, open
}

// parseScan reads nmap's "grepable" output:
//
//	Host: 192.0.2.20 ()	Status: Up
//	Host: 192.0.2.20 ()	Ports: 22/open/tcp//ssh///, 8080/closed/tcp//http-proxy///
func parseScan(out string) (map[netip.Addr]map[uint16]string, error) {
	hosts := map[netip.Addr]map[uint16]string{}
	for line := range strings.Lines(out) {
		rest, ok := strings.CutPrefix(line, "Host: ")
		if !ok {
			continue
		}
		words := strings.Fields(rest)
		addr, err := netip.ParseAddr(words[0])
		if err != nil {
			return nil, fmt.Errorf("read nmap's output: %w", err)
		}
		if hosts[addr] == nil {
			hosts[addr] = map[uint16]string{}
		}
		_, ports, ok := strings.Cut(rest, "Ports: ")
		if !ok {
			continue
		}
		ports, _, _ = strings.Cut(ports, "\t")
		for item := range strings.SplitSeq(ports, ", ") {
			f := strings.Split(strings.TrimSpace(item), "/")
			at, ok := endpoint(words[0], f[0])
			if !ok || len(f) < 2 {
				return nil, fmt.Errorf("read nmap's output: bad port %q", item)
			}
			hosts[addr][at.Port()] = f[1]
		}
	}
	return hosts, nil
}
