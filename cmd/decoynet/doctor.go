package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"decoynet/agent"
	"decoynet/deception"
	"decoynet/internal/doctor"
	"decoynet/internal/doctor/enrolled"
	"decoynet/internal/pki"
	"decoynet/internal/pump"
	"decoynet/internal/registry"
)

// doctorTimeout bounds all of the doctor's questions; on a machine with a few
// segments they take some seconds.
const doctorTimeout = 2 * time.Minute

// maxListen bounds how long frames are counted.
const maxListen = 10 * time.Minute

// lookout is how the networks of segments are looked at.
type lookout struct {
	listen   time.Duration
	passive  bool
	progress func(string) // nil: nobody wants to know
}

func doctorCommand() *cobra.Command {
	var file, data, output string
	var how lookout
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Name the cause of what does not work here, and the command that mends it",
		Long: "Name the cause of what does not work here, and the command that mends it.\n" +
			"On a machine that a controller manages: calls controllers and gateways as the agent does, compares clocks, and looks at\n" +
			"the decoys' ports, the certificate and the data directory. Run it as the user that runs decoynet; it needs no privilege.\n" +
			"On a machine with a document, or with segments or zones: looks at the kernel and its settings, asks the LAN whether\n" +
			"frames pass and whether decoy addresses are free, and asks every service as an intruder would.\n" +
			"Nothing is changed, and no server gets a connection to log.\n" +
			"At NICs with VLAN segments it listens for tags (the NIC is promiscuous meanwhile; --listen 65s hears LLDP and CDP too), and\n" +
			"sends in each VLAN: ARP or neighbour questions to its gateways and for decoy addresses from the NIC's and the segment's MAC\n" +
			"address, from no address at first, then from a decoy's that nobody has; where that is answered, some pings to the gateway.\n" +
			"That is about 20 frames and as many as it has decoys, 2,048 at most at a NIC, never more than 500 a second. A switch port\n" +
			"whose port security shuts it down for a second MAC address does so then, as it would for decoys: --passive sends nothing there.\n" +
			"With the document of the decoynet that runs, or that of -c. Exits with 1 where there is a problem.",
		Args: cobra.NoArgs,
	}
	c.Flags().StringVarP(&file, "config", "c", "", "the document (default: that of the decoynet that runs)")
	dataFlag(c, &data)
	outputFlag(c, &output, "text", "json")
	c.Flags().DurationVar(&how.listen, "listen", 5*time.Second, "how long to listen for VLAN tags, at most 10m")
	c.Flags().BoolVar(&how.passive, "passive", false, "send nothing on the networks of the segments")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if how.listen < 0 || how.listen > maxListen {
			return &exitError{2, fmt.Errorf("--listen %s is out of range; a duration from 0 to %s", how.listen, maxListen)}
		}
		if output != "json" {
			how.progress = func(what string) { fmt.Fprintln(cmd.ErrOrStderr(), what) }
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), doctorTimeout+how.listen)
		defer cancel()
		findings, err := examine(ctx, file, data, cmd.Flags().Changed("data"), how)
		if err != nil {
			return err
		}
		write := doctor.WriteText
		if output == "json" {
			write = doctor.WriteJSON
		}
		if err := write(cmd.OutOrStdout(), findings); err != nil {
			return err
		}
		if doctor.Problems(findings) > 0 {
			return &exitError{1, errors.New("")} // all is said
		}
		return nil
	}
	return c
}

// examine chooses the checks by who tells this machine what to run.
func examine(ctx context.Context, file, data string, dataGiven bool, how lookout) ([]doctor.Finding, error) {
	if file != "" || !isNode(data) {
		return kernelChecks(ctx, file, data, dataGiven, how)
	}
	running, err := runningStatus(ctx, data)
	if err != nil {
		return nil, err
	}
	if running != nil && running.Document != managedOrigin {
		return kernelChecks(ctx, file, data, dataGiven, how)
	}
	facts := enrolled.Read(ctx, enrolledSubject(data, running))
	findings := enrolled.Judge(facts)
	if facts.State == nil {
		return findings, nil
	}
	more, err := nodeKernelChecks(ctx, data, facts.State, running, how)
	if err != nil {
		return nil, err
	}
	return inOrder(append(findings, more...)), nil
}

// managedOrigin is what a node says its document is where a controller says what to
// run, see upManaged.
const managedOrigin = "the controller"

// isNode tells whether the data directory is that of a machine which a controller
// elsewhere manages. A controller's own machine has an identity, too, and a document.
func isNode(data string) bool {
	if _, err := os.Stat(filepath.Join(data, registry.FileName)); err == nil {
		return false
	}
	_, err := pki.LoadIdentity(data)
	return !errors.Is(err, pki.ErrNoIdentity)
}

// inOrder puts what is well first, problems last.
func inOrder(findings []doctor.Finding) []doctor.Finding {
	rank := map[doctor.Severity]int{doctor.OK: 0, doctor.Note: 1, doctor.Problem: 2}
	slices.SortStableFunc(findings, func(a, b doctor.Finding) int { return cmp.Compare(rank[a.Severity], rank[b.Severity]) })
	return findings
}

// runningStatus is what the decoynet on the data directory says, nil where none runs.
func runningStatus(ctx context.Context, data string) (*status, error) {
	body, err := ask(ctx, data, http.MethodGet, "/status")
	if err != nil {
		return nil, nil
	}
	st := &status{}
	if err := json.Unmarshal(body, st); err != nil {
		return nil, fmt.Errorf("read status: %w", err)
	}
	return st, nil
}

func enrolledSubject(data string, running *status) enrolled.Subject {
	s := enrolled.Subject{Data: data, Version: version, Argument: dataArgument(data), Ports: tryPorts}
	if running == nil {
		return s
	}
	r := running.Recording
	s.Running = &enrolled.Running{
		PID: running.PID, Ready: running.Ready, Problems: running.Problems, Ports: portsOf(running.Listen),
		Lost: r.Lost, LostKinds: r.lost(), Waiting: r.Waiting, WaitingBytes: r.WaitingBytes,
	}
	if r.FailingSince != nil {
		s.Running.Failing = r.LastError
	}
	return s
}

func portsOf(l agent.ListenStatus) []enrolled.Port {
	out := make([]enrolled.Port, 0, len(l.Ports))
	for _, p := range l.Ports {
		out = append(out, enrolled.Port{Port: p.Port, Address: p.Address, Decoy: p.Decoy, Problem: p.Problem})
	}
	return out
}

// tryPorts opens the ports of this machine's decoys as the agent does, for a moment.
// Who connects in it is reset.
func tryPorts(ctx context.Context, state *deception.State) []enrolled.Port {
	l := agent.NewListen(agent.ListenConfig{Carrier: nobody{}, Recorder: nobody{}})
	_ = l.Apply(ctx, state, nil) // its status says the same, port by port
	out := portsOf(l.Status())
	_ = l.Close(ctx)
	return out
}

// nobody carries no flow and records nothing.
type nobody struct{}

func (nobody) Carry(pump.Stream, *deception.Session, time.Duration) pump.Handle { return nil }
func (nobody) CloseFlows(func(*deception.Session) bool, deception.EndReason)    {}
func (nobody) Ended(*deception.Session)                                         {}
func (nobody) Event(*deception.Event)                                           {}
