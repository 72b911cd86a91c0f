package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"decoynet/internal/lab"
)

// branchScanned are the ports of the business server that the scan asks for:
// decoys', the server's own, and one where nothing is.
var branchScanned = []string{"22", "80", "443", "2222", "6379", fmt.Sprint(crmPort), fmt.Sprint(crmAdminPort)}

// branchTargets are the business server's addresses.
var branchTargets = []netip.Addr{lab.BranchServer.V4, lab.BranchServer.V6}

// branchSteps are what the intruder in the branch does: much the same, at the
// only server that is there.
func (a *attack) branchSteps() []attackStep {
	return []attackStep{
		{"nmap -sT " + lab.BranchServer.V4.String() + ": what does it have?", a.branchScan},
		{"curl: http and https", a.branchCurl},
		{"redis-cli: read what was left at the office", a.branchRedis},
		{"ssh: log in and run a command", a.branchSSH},
		{"snmp: read the system's description", a.branchSNMP},
	}
}

func (a *attack) branchScan(ctx context.Context) (string, error) {
	var errs []error
	all := 0
	for _, target := range branchTargets {
		args := []string{"-n", "-sT", "-T4", "-p", strings.Join(branchScanned, ","), "-oG", "-", target.String()}
		if target.Is6() {
			args = append([]string{"-6"}, args...)
		}
		out, err := a.from.Run(ctx, "nmap", args...)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		hosts, err := parseScan(out)
		if err == nil && len(hosts[target]) != len(branchScanned) {
			err = fmt.Errorf("nmap told of %d ports of %s, not of %d", len(hosts[target]), target, len(branchScanned))
		}
		faults, open := a.plan.checkHostScan(target, hosts[target], []uint16{crmPort, crmAdminPort})
		errs = append(append(errs, err), faults...)
		all += open
	}
	return fmt.Sprintf("%d decoy ports open, IPv4 and IPv6, beside its own", all), errors.Join(errs...)
}

func (a *attack) branchCurl(ctx context.Context) (string, error) {
	var errs []error
	for _, target := range branchTargets {
		errs = append(errs,
			a.curlOne(ctx, "http", netip.AddrPortFrom(target, 80)),
			a.curlOne(ctx, "https", netip.AddrPortFrom(target, 443)))
	}
	return fmt.Sprintf("%d pages, from the office's nginx", len(errs)), errors.Join(errs...)
}

func (a *attack) branchRedis(ctx context.Context) (string, error) {
	var errs []error
	for _, target := range branchTargets {
		errs = append(errs, a.redisOne(ctx, target, "GET "+redisKey, redisValue))
	}
	return fmt.Sprintf("found, %d times", len(errs)), errors.Join(errs...)
}

func (a *attack) branchSSH(ctx context.Context) (string, error) {
	var errs []error
	for _, target := range branchTargets {
		errs = append(errs, a.sshOne(ctx, netip.AddrPortFrom(target, 2222)))
	}
	return fmt.Sprintf("%d log-ins, on port 2222", len(errs)), errors.Join(errs...)
}

func (a *attack) branchSNMP(ctx context.Context) (string, error) {
	var errs []error
	for _, target := range branchTargets {
		errs = append(errs, a.snmpOne(ctx, netip.AddrPortFrom(target, 161)))
	}
	return fmt.Sprintf("%d answers over UDP", len(errs)), errors.Join(errs...)
}
