package enrolled

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"decoynet/internal/doctor"
	"decoynet/internal/pki"
	"decoynet/internal/rpc"
)

// Judge returns what the facts mean: what is well first, problems last.
func Judge(f *Facts) []doctor.Finding {
	var out []doctor.Finding
	for _, judge := range []func(*Facts) []doctor.Finding{
		judgeIdentity, judgeData, judgeRunning, judgeClock, judgeCertificate, judgeControllers,
		judgeSnapshot, judgeGateways, judgePorts, judgeSpool,
	} {
		out = append(out, judge(f)...)
	}
	rank := map[doctor.Severity]int{doctor.OK: 0, doctor.Note: 1, doctor.Problem: 2}
	slices.SortStableFunc(out, func(a, b doctor.Finding) int { return cmp.Compare(rank[a.Severity], rank[b.Severity]) })
	return out
}

// Places where a fix belongs that is none for this machine.
const (
	onController      = "the controller"
	onControllersHost = "the controller's machine"
	onGatewaysHost    = "the gateway's machine"
)

// command is one of decoynet's, for this machine's data directory.
func (f *Facts) command(text string) string { return "decoynet " + text + f.Argument }

// enrolAgain is the first half of a new enrolment; the command that it prints is
// the other.
func (f *Facts) enrolAgain() string {
	return "decoynet token create --node " + cmp.Or(f.Identity.Node, "NAME")
}

func judgeIdentity(f *Facts) []doctor.Finding {
	d := doctor.Finding{Check: "identity", Subject: f.Identity.Node, Severity: doctor.Problem}
	switch err := f.Identity.Err; {
	case err == nil:
		d.Severity, d.What = doctor.OK, "this machine is node "+f.Identity.Node+" of "+controllersOf(f)
	case errors.Is(err, pki.ErrNoIdentity):
		d.What = "this machine is no node of a controller, and no document was given"
		d.Why = "decoynet has nothing to do here"
		d.Fix, d.On = f.enrolAgain(), onController+"; then paste here what it prints"
	case errors.Is(err, pki.ErrDamaged):
		d.What, d.Why = err.Error(), "no controller or gateway lets it in"
		d.Fix, d.On = f.enrolAgain(), onController+"; then paste here what it prints"
	default:
		d.What, d.Why = err.Error(), "decoynet does not start without its identity"
		d.Fix = quoted(err)
	}
	return []doctor.Finding{d}
}

// quoted returns the command that an error names, in the way of this module: in
// backquotes.
func quoted(err error) string {
	_, rest, _ := strings.Cut(err.Error(), "`")
	text, _, _ := strings.Cut(rest, "`")
	return text
}

func controllersOf(f *Facts) string {
	var all []string
	for _, c := range f.Controllers {
		all = append(all, c.URL)
	}
	return cmp.Or(strings.Join(all, ", "), "a controller")
}

// Space below which sessions are at stake: the spool takes up to 256 MiB, and makes
// room at the cost of its oldest records when the disk is full before that.
const (
	littleBytes = 256 << 20
	scarceBytes = 8 << 20
)

func judgeData(f *Facts) []doctor.Finding {
	d := doctor.Finding{Check: "data", Subject: f.Data.Path, Severity: doctor.Problem}
	switch {
	case f.Data.Full:
		d.What, d.Why = "the disk is full", "records wait in memory only, and go with the process; no certificate can be renewed for long"
		d.Fix = freeSpace(f)
	case f.Data.Err != nil && errors.Is(f.Identity.Err, pki.ErrNoIdentity):
		return nil // joining makes it
	case f.Data.Err != nil:
		d.What = "nothing can be written there: " + f.Data.Err.Error()
		d.Why = "certificate, snapshot and records are kept there"
		d.Fix = writable(f)
	case f.Data.FreeKnown && f.Data.FreeBytes < scarceBytes:
		d.What, d.Why, d.Fix = fmt.Sprintf("only %d MiB are free", f.Data.FreeBytes>>20), "records will be lost while the controller is away", freeSpace(f)
	case f.Data.FreeKnown && f.Data.FreeBytes < littleBytes:
		d.Severity, d.What, d.Why = doctor.Note, fmt.Sprintf("%d MiB are free", f.Data.FreeBytes>>20), "the spool takes up to 256 MiB while the controller is away"
	default:
		d.Severity, d.What = doctor.OK, "writable"
	}
	return []doctor.Finding{d}
}

func freeSpace(f *Facts) string {
	if f.System == "windows" {
		return "cleanmgr"
	}
	return `du -xh "$(df --output=target ` + f.Data.Path + ` | tail -1)" | sort -h | tail -20`
}

func writable(f *Facts) string {
	read := strings.Contains(f.Data.Err.Error(), "read-only")
	switch {
	case f.System == "windows":
		return fmt.Sprintf(`icacls "%s" /grant "%%USERNAME%%:(OI)(CI)F"`, f.Data.Path)
	case read:
		return fmt.Sprintf(`mount -o remount,rw "$(df --output=target %s | tail -1)"`, f.Data.Path)
	}
	return fmt.Sprintf(`sudo chown -R "$(id -u)" %s`, f.Data.Path)
}

func judgeRunning(f *Facts) []doctor.Finding {
	if f.Identity.Err != nil {
		return nil
	}
	r := f.Running
	if r == nil {
		return []doctor.Finding{{
			Check: "agent", Severity: doctor.Problem, What: "no decoynet runs on " + f.Data.Path,
			Why: "no decoy of this machine answers", Fix: f.command("up"),
		}}
	}
	var out []doctor.Finding
	for _, p := range r.Problems {
		if !slices.ContainsFunc(r.Ports, func(port Port) bool { return port.Problem == p }) { // judged by itself
			out = append(out, doctor.Finding{Check: "agent", Severity: doctor.Problem, What: "decoynet says: " + p})
		}
	}
	switch {
	case len(r.Problems) > 0:
	case r.Ready:
		out = append(out, doctor.Finding{Check: "agent", Severity: doctor.OK, What: fmt.Sprintf("ready, process %d", r.PID)})
	default:
		out = append(out, doctor.Finding{
			Check: "agent", Severity: doctor.Problem, What: "decoynet says that it is not ready", Fix: f.command("status"),
		})
	}
	return out
}

func judgeSnapshot(f *Facts) []doctor.Finding {
	d := doctor.Finding{Check: "snapshot", Subject: f.Identity.Node, Severity: doctor.Problem}
	switch {
	case f.Identity.Err != nil:
		return nil
	case errors.Is(f.SnapshotErr, rpc.ErrNoSnapshot):
		d.What = "this node has not had its part of the document yet"
		d.Why = "it has no decoys until it has met its controller once"
		d.Fix = f.command("up")
		if f.Running != nil {
			d.Fix, d.On = "decoynet apply -f FILE", onController
		}
	case errors.Is(f.SnapshotErr, rpc.ErrUpgrade):
		d.What, d.Why, d.Fix = f.SnapshotErr.Error(), "the node stays with what it ran before", "decoynet --version"
		d.On = onController + "; install that version here"
	case f.SnapshotErr != nil:
		d.What, d.Why = f.SnapshotErr.Error(), "after a restart the node has no decoys until it meets its controller"
		d.Fix = remove(f, filepath.Join(f.Data.Path, "snapshot.pb"))
	case len(f.State.Decoys) == 0 && len(f.State.Zones)+len(f.State.Gateways)+len(f.State.Segments) == 0:
		d.Severity, d.What = doctor.Note, "the controller's document has nothing for this node"
		d.Why = "no decoy of this machine answers"
		d.Fix, d.On = "decoynet apply -f FILE", onController+": a decoy with {segment: host, node: "+f.Identity.Node+"}"
	default:
		d.Severity, d.What = doctor.OK, fmt.Sprintf("revision %s, %d decoys", f.Revision, len(f.State.Decoys))
	}
	return []doctor.Finding{d}
}

func remove(f *Facts, path string) string {
	if f.System == "windows" {
		return `del "` + path + `"`
	}
	return "rm " + path
}

func judgeSpool(f *Facts) []doctor.Finding {
	r := f.Running
	if r == nil {
		return nil
	}
	var out []doctor.Finding
	if r.Failing != "" {
		d := doctor.Finding{
			Check: "spool", Severity: doctor.Problem, What: "records cannot be written: " + r.Failing,
			Why: "they wait in memory only, and go with the process", Fix: freeSpace(f),
		}
		if !strings.Contains(r.Failing, "no space") && !strings.Contains(r.Failing, "not enough space") {
			d.Fix = writable(&Facts{System: f.System, Data: Data{Path: f.Data.Path, Err: errors.New(r.Failing)}})
		}
		out = append(out, d)
	}
	if r.Lost > 0 {
		what := fmt.Sprintf("%d records were given up since the spool was made", r.Lost)
		if r.LostKinds != "" {
			what += ": " + r.LostKinds
		}
		out = append(out, doctor.Finding{
			Check: "spool", Severity: doctor.Note, What: what,
			Why: "they are missing in the store: the controller was away for too long, or the disk full",
		})
	}
	if len(out) == 0 {
		out = append(out, doctor.Finding{
			Check: "spool", Severity: doctor.OK, What: fmt.Sprintf("%d records (%d kB) wait for the controller", r.Waiting, r.WaitingBytes>>10),
		})
	}
	return out
}
