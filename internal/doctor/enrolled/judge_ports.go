package enrolled

import (
	"fmt"
	"strconv"
	"strings"

	"decoynet/internal/doctor"
)

// judgePorts names the decoys' ports that cannot be opened. Very many may fail for
// one reason, lacking privilege, and are one finding then.
func judgePorts(f *Facts) []doctor.Finding {
	if len(f.Ports) == 0 {
		return nil
	}
	var out []doctor.Finding
	var denied []string
	for _, p := range f.Ports {
		switch {
		case p.Problem == "":
		case strings.Contains(p.Problem, "permission denied") && number(p.Port) < f.PrivilegedBelow:
			denied = append(denied, p.Port)
		case strings.Contains(p.Problem, " is in use on "):
			what, _, _ := strings.Cut(p.Problem, ";")
			_, by, _ := strings.Cut(what, " by ")
			out = append(out, doctor.Finding{
				Check: "port", Subject: p.Port, Severity: doctor.Problem, What: what,
				Why: "decoynet never takes a port from this machine's own services; it takes it as soon as it is free",
				Fix: fmt.Sprintf("leave %s out of decoy %s; or stop %s here, if nobody needs it", p.Port, p.Decoy, by), On: doctor.OnDocument,
			})
		default:
			out = append(out, doctor.Finding{
				Check: "port", Subject: p.Port, Severity: doctor.Problem, What: p.Problem, Why: "the decoy does not answer there",
			})
		}
	}
	if len(denied) > 0 {
		out = append(out, deniedPorts(f, denied))
	}
	if len(out) == 0 {
		out = append(out, doctor.Finding{Check: "port", Severity: doctor.OK, What: fmt.Sprintf("all %d ports of the decoys can be had", len(f.Ports))})
	}
	return out
}

func deniedPorts(f *Facts, denied []string) doctor.Finding {
	list := denied[0]
	seen := map[string]bool{list: true}
	for _, p := range denied[1:] { // IPv4 and IPv6 are two lines of one port
		if !seen[p] {
			seen[p] = true
			list += ", " + p
		}
	}
	d := doctor.Finding{
		Check: "privilege", Severity: doctor.Problem,
		What: fmt.Sprintf("ports below %d may not be opened without CAP_NET_BIND_SERVICE: %s", f.PrivilegedBelow, list),
		Why:  "the decoys do not answer there; start decoynet again after the change (in a systemd unit: AmbientCapabilities=CAP_NET_BIND_SERVICE)",
		Fix:  "sudo setcap cap_net_bind_service=+ep " + f.Program,
	}
	if f.System != "linux" {
		d.What = fmt.Sprintf("ports below %d may be opened by root only: %s", f.PrivilegedBelow, list)
		d.Why, d.Fix = "the decoys do not answer there", "sudo "+f.command("up")
	}
	return d
}

// number returns the number of a port as 445/tcp, 0 where it is none.
func number(port string) int {
	text, _, _ := strings.Cut(port, "/")
	n, _ := strconv.Atoi(text)
	return n
}
