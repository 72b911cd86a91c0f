package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"decoynet/internal/rpc/decoynetv1"
)

func getNodesCommand() *cobra.Command {
	var a access
	var output string
	c := &cobra.Command{
		Use:   "nodes",
		Short: "List the nodes: what each is to be and what it is (by the controller)",
		Args:  cobra.NoArgs,
	}
	a.flags(c)
	outputFlag(c, &output, "table", "json", "wide")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		answer, err := client.ListNodes(cmd.Context(), connect.NewRequest(&decoynetv1.ListNodesRequest{}))
		if err != nil {
			return refusal(err)
		}
		if output == "json" {
			return printNodesJSON(cmd.OutOrStdout(), answer.Msg.GetNodes())
		}
		return printNodes(cmd.OutOrStdout(), answer.Msg.GetNodes(), output == "wide", time.Now())
	}
	return c
}

// nodeLine is a node as `get nodes -o json` prints it.
type nodeLine struct {
	Name               string       `json:"name"`
	Condition          string       `json:"condition"`
	Version            string       `json:"version,omitempty"`
	Platform           string       `json:"platform,omitempty"`
	RevisionWanted     string       `json:"revision_wanted,omitempty"`
	RevisionHeld       string       `json:"revision_held,omitempty"`
	Problems           []string     `json:"problems,omitempty"`
	LastSeen           *time.Time   `json:"last_seen,omitempty"`
	Flows              uint64       `json:"flows"`
	RoundTripMillis    float64      `json:"round_trip_ms,omitempty"`
	ClockOffsetSeconds float64      `json:"clock_offset_s,omitempty"`
	CertificateExpires *time.Time   `json:"certificate_expires,omitempty"`
	Peer               string       `json:"peer,omitempty"`
	Waiting            uint64       `json:"spool_waiting"`
	Dropped            uint64       `json:"spool_dropped"`
	Gateways           []linkStatus `json:"gateways,omitempty"`
}

func printNodesJSON(w io.Writer, nodes []*decoynetv1.NodeInfo) error {
	enc := json.NewEncoder(w)
	for _, n := range nodes {
		line := nodeLine{
			Name: n.GetName(), Condition: n.GetCondition(), Version: n.GetVersion(), Platform: n.GetPlatform(),
			RevisionWanted: n.GetRevisionWanted(), RevisionHeld: n.GetRevisionHeld(), Problems: n.GetProblems(),
			LastSeen: timeOf(n.GetLastSeen()), Flows: n.GetFlows(), RoundTripMillis: float64(n.GetRoundTrip()) / 1e6,
			ClockOffsetSeconds: float64(n.GetClockOffset()) / 1e9, CertificateExpires: timeOf(n.GetCertificateExpires()), Peer: n.GetPeer(),
			Waiting: n.GetSpool().GetWaiting(), Dropped: n.GetSpool().GetDropped(),
		}
		for _, g := range n.GetGateways() {
			line.Gateways = append(line.Gateways, linkStatus{
				Name: g.GetName(), Connected: g.GetConnected(), RoundTripMillis: float64(g.GetRoundTrip()) / 1e6, Error: g.GetError(),
			})
		}
		if err := enc.Encode(line); err != nil {
			return fmt.Errorf("write nodes: %w", err)
		}
	}
	return nil
}

func timeOf(nanoseconds int64) *time.Time {
	if nanoseconds == 0 {
		return nil
	}
	t := time.Unix(0, nanoseconds).UTC()
	return &t
}

func printNodes(w io.Writer, nodes []*decoynetv1.NodeInfo, wide bool, now time.Time) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := "NODE\tSTATE\tVERSION\tREVISION\tLAST SEEN\tFLOWS\tROUND TRIP\t"
	if wide {
		head += "WANTED\tPLATFORM\tSEEN AT\tCLOCK\tCERTIFICATE\tSPOOL\tDROPPED\t"
	}
	fmt.Fprintln(t, head+"WHY")
	for _, n := range nodes {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t", n.GetName(), n.GetCondition(), dash(n.GetVersion()), dash(n.GetRevisionHeld()),
			ago(n.GetLastSeen(), now), n.GetFlows(), milliseconds(n.GetRoundTrip()))
		if wide {
			fmt.Fprintf(t, "%s\t%s\t%s\t%+.1f s\t%s\t%d\t%d\t", dash(n.GetRevisionWanted()), dash(n.GetPlatform()), dash(n.GetPeer()),
				float64(n.GetClockOffset())/1e9, until(n.GetCertificateExpires(), now), n.GetSpool().GetWaiting(), n.GetSpool().GetDropped())
		}
		why := strings.Join(n.GetProblems(), "; ")
		if !wide && len(why) > 100 {
			why = why[:97] + "..."
		}
		fmt.Fprintln(t, why)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("write nodes: %w", err)
	}
	return nil
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func ago(nanoseconds int64, now time.Time) string {
	if nanoseconds == 0 {
		return "never"
	}
	return now.Sub(time.Unix(0, nanoseconds)).Round(time.Second).String() + " ago"
}

func until(nanoseconds int64, now time.Time) string {
	if nanoseconds == 0 {
		return "-"
	}
	left := time.Unix(0, nanoseconds).Sub(now).Round(time.Minute)
	if left <= 0 {
		return "expired"
	}
	return "for " + strings.TrimSuffix(left.String(), "0s")
}

func milliseconds(nanoseconds int64) string {
	if nanoseconds == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", float64(nanoseconds)/1e6)
}

func nodeCommand() *cobra.Command {
	c := &cobra.Command{Use: "node", Short: "Nodes of the controller"}
	var a access
	revoke := &cobra.Command{
		Use:   "revoke NODE",
		Short: "Cut a node off: its certificate is void and its tunnels are closed",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			if _, err := client.RevokeNode(cmd.Context(), connect.NewRequest(&decoynetv1.RevokeNodeRequest{Node: args[0]})); err != nil {
				return refusal(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "node %s is cut off; `decoynet token create --node %s` lets it in again\n", args[0], args[0])
			return nil
		},
	}
	a.flags(revoke)
	c.AddCommand(revoke)
	return c
}

func tokenCommand() *cobra.Command {
	c := &cobra.Command{Use: "token", Short: "Join tokens, with which machines become nodes"}
	var a access
	var node, output string
	var ttl time.Duration
	create := &cobra.Command{
		Use:   "create --node NODE",
		Short: "Print the one command to paste on a machine, so that it becomes the node",
		Args:  cobra.NoArgs,
	}
	create.Flags().StringVar(&node, "node", "", "name of the node in the document")
	create.Flags().DurationVar(&ttl, "ttl", 10*time.Minute, "how long the token may be used; at most 168h")
	_ = create.MarkFlagRequired("node")
	a.flags(create)
	outputFlag(create, &output, "text", "json")
	create.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		answer, err := client.CreateJoinToken(cmd.Context(), connect.NewRequest(&decoynetv1.CreateJoinTokenRequest{Node: node, Ttl: int64(ttl)}))
		if err != nil {
			return refusal(err)
		}
		m := answer.Msg
		if output == "json" {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{
				"node": node, "token": m.GetToken(), "pin": m.GetPin(), "controllers": m.GetControllers(),
				"expires": timeOf(m.GetExpires()), "command": m.GetCommand(),
			})
		}
		fmt.Fprintln(cmd.OutOrStdout(), m.GetCommand())
		fmt.Fprintf(cmd.ErrOrStderr(), "(to be pasted on node %s; works once, until %s)\n", node, timeOf(m.GetExpires()).Local().Format("15:04:05"))
		return nil
	}
	c.AddCommand(create)
	return c
}
