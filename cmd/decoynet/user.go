package main

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"decoynet/internal/rpc/decoynetv1"
)

func userCommand() *cobra.Command {
	c := &cobra.Command{Use: "user", Short: "Users of the controller's API: people and scripts, each with a role and a token"}
	c.AddCommand(createUserCommand(), deleteUserCommand(), listUsersCommand())
	return c
}

func createUserCommand() *cobra.Command {
	var a access
	var role string
	c := &cobra.Command{
		Use:   "create NAME --role viewer|operator|admin",
		Short: "Make a user and print its token, which is shown only now",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			answer, err := client.CreateUser(cmd.Context(), connect.NewRequest(&decoynetv1.CreateUserRequest{Name: args[0], Role: role}))
			if err != nil {
				return refusal(err)
			}
			fmt.Fprintln(cmd.OutOrStdout(), answer.Msg.GetToken())
			return nil
		},
	}
	c.Flags().StringVar(&role, "role", "viewer", "viewer (sees), operator (applies, enrols, revokes) or admin (users, audit)")
	a.flags(c)
	return c
}

func deleteUserCommand() *cobra.Command {
	var a access
	c := &cobra.Command{
		Use:   "delete NAME",
		Short: "Make a user's token void",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := a.client()
			if err != nil {
				return err
			}
			_, err = client.DeleteUser(cmd.Context(), connect.NewRequest(&decoynetv1.DeleteUserRequest{Name: args[0]}))
			return refusal(err)
		},
	}
	a.flags(c)
	return c
}

func listUsersCommand() *cobra.Command {
	var a access
	var output string
	c := &cobra.Command{Use: "list", Short: "List the users", Args: cobra.NoArgs}
	a.flags(c)
	outputFlag(c, &output, "table", "json")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		client, err := a.client()
		if err != nil {
			return err
		}
		answer, err := client.ListUsers(cmd.Context(), connect.NewRequest(&decoynetv1.ListUsersRequest{}))
		if err != nil {
			return refusal(err)
		}
		enc, t := json.NewEncoder(cmd.OutOrStdout()), tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		if output == "table" {
			fmt.Fprintln(t, "USER\tROLE\tCREATED\tLAST USED")
		}
		for _, u := range answer.Msg.GetUsers() {
			if output == "json" {
				err = enc.Encode(map[string]any{"name": u.GetName(), "role": u.GetRole(), "created": timeOf(u.GetCreated()), "last_used": timeOf(u.GetLastUsed())})
			} else {
				_, err = fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", u.GetName(), u.GetRole(), ago(u.GetCreated(), time.Now()), ago(u.GetLastUsed(), time.Now()))
			}
			if err != nil {
				return fmt.Errorf("write users: %w", err)
			}
		}
		return t.Flush()
	}
	return c
}

func getAuditCommand() *cobra.Command {
	var a access
	var output, since string
	var limit uint32
	c := &cobra.Command{
		Use:   "audit",
		Short: "Who changed what, or tried to (by the controller)",
		Args:  cobra.NoArgs,
	}
	a.flags(c)
	outputFlag(c, &output, "table", "json")
	c.Flags().StringVar(&since, "since", "", "entries since then: a duration back from now (90m, 7d) or a time")
	c.Flags().Uint32Var(&limit, "limit", 200, "the newest so many")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		request := &decoynetv1.ListAuditRequest{Limit: limit}
		if since != "" {
			from, err := parseSince(since, time.Now())
			if err != nil {
				return &exitError{2, err}
			}
			request.Since = from.UnixNano()
		}
		client, err := a.client()
		if err != nil {
			return err
		}
		answer, err := client.ListAudit(cmd.Context(), connect.NewRequest(request))
		if err != nil {
			return refusal(err)
		}
		enc, t := json.NewEncoder(cmd.OutOrStdout()), tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		if output == "table" {
			fmt.Fprintln(t, "TIME\tWHO\tROLE\tWHAT\tOBJECT\tRESULT\tFROM\tDETAIL")
		}
		for _, e := range answer.Msg.GetEntries() {
			if output == "json" {
				err = enc.Encode(map[string]any{
					"@timestamp": timeOf(e.GetTime()), "user.name": e.GetActor(), "user.roles": e.GetRole(), "event.action": e.GetMethod(),
					"decoynet.object": e.GetObject(), "event.outcome": e.GetResult(), "message": e.GetDetail(), "source.address": e.GetPeer(),
				})
			} else {
				_, err = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", timeOf(e.GetTime()).Local().Format("2006-01-02 15:04:05"),
					e.GetActor(), dash(e.GetRole()), e.GetMethod(), dash(e.GetObject()), e.GetResult(), dash(e.GetPeer()), e.GetDetail())
			}
			if err != nil {
				return fmt.Errorf("write audit: %w", err)
			}
		}
		return t.Flush()
	}
	return c
}
