package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"decoynet/bench/carrier"
	"decoynet/bench/load"
	"decoynet/bench/road"
	"decoynet/bench/snat"
	"decoynet/internal/pki"
)

// runRole runs the part that the arguments name, where they name one: this
// program starts itself again inside the machines of its topology.
func runRole(args []string) (handled bool, err error) {
	if len(args) == 0 {
		return false, nil
	}
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	switch args[0] {
	case "load":
		return true, generate(ctx, args[1:])
	case "serve":
		debug.SetGCPercent(-1) // its loop allocates nothing
		cancel()               // SIGTERM ends it at once
		return true, load.Serve(context.Background(), netip.IPv4Unspecified(), ready)
	case "snat":
		return true, relaySNAT(ctx, args[1:])
	case "road":
		return true, carryFrames(ctx, args[1:])
	case "carry-serve":
		return true, serveCarrier(ctx, args[1:])
	case "carry-load":
		return true, loadCarrier(ctx, args[1:])
	case "fed":
		return true, runFed(ctx, args[1:])
	case "fleet":
		return true, runFleet(ctx, args[1:])
	}
	return false, nil
}

// generate runs one load and writes its Result to the standard output. A Hold
// load writes one when all flows stand, holds them until the standard input
// ends, and writes another.
func generate(ctx context.Context, args []string) error {
	var spec load.Spec
	if len(args) != 1 {
		return errors.New("load: takes the load as JSON")
	}
	if err := json.Unmarshal([]byte(args[0]), &spec); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	debug.SetGCPercent(-1)
	out := json.NewEncoder(os.Stdout)
	var heldErr error
	r, err := load.Run(ctx, spec, func(r load.Result) {
		heldErr = out.Encode(r)
		_, err := io.Copy(io.Discard, os.Stdin)
		heldErr = errors.Join(heldErr, err)
	})
	if err := errors.Join(err, heldErr); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	return out.Encode(r)
}

func relaySNAT(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("snat: takes the gateway's address and the service's")
	}
	from, err := netip.ParseAddr(args[0])
	if err != nil {
		return fmt.Errorf("snat: %w", err)
	}
	service, err := netip.ParseAddr(args[1])
	if err != nil {
		return fmt.Errorf("snat: %w", err)
	}
	return snat.Relay{From: from, Service: service, Port: load.PortBanner}.Run(ctx)
}

// carryFrames is a long way between two cards. What it loses it says on the
// standard error.
func carryFrames(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("road: takes two cards and a delay")
	}
	delay, err := time.ParseDuration(args[2])
	if err != nil {
		return fmt.Errorf("road: %w", err)
	}
	return road.Run(ctx, road.Config{Near: args[0], Far: args[1], Delay: delay}, ready,
		func(err error) { fmt.Fprintln(os.Stderr, err) })
}

// serveCarrier is the far end of a carrier.
func serveCarrier(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errors.New("carry-serve: takes a carrier, an address and the folder of its identity")
	}
	kind, err := carrier.Find(args[0])
	if err != nil {
		return fmt.Errorf("carry-serve: %w", err)
	}
	id, err := pki.LoadIdentity(args[2])
	if err != nil {
		return fmt.Errorf("carry-serve: %w", err)
	}
	server, err := kind.Listen(args[1], id, carrier.Serve)
	if err != nil {
		return fmt.Errorf("carry-serve: %w", err)
	}
	ready()
	<-ctx.Done()
	return server.Close()
}

func loadCarrier(ctx context.Context, args []string) error {
	var spec carrier.Spec
	if len(args) != 1 {
		return errors.New("carry-load: takes the load as JSON")
	}
	if err := json.Unmarshal([]byte(args[0]), &spec); err != nil {
		return fmt.Errorf("carry-load: %w", err)
	}
	r, err := carrier.Run(ctx, spec)
	if err != nil {
		return fmt.Errorf("carry-load: %w", err)
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// ready is what who started a role waits for.
func ready() { fmt.Println("ready") }
