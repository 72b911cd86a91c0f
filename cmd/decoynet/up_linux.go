package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"decoynet/config"
)

// closeTimeout bounds how long a SIGTERM may take to leave nothing behind.
const closeTimeout = 20 * time.Second

// spareProcs are for everything that is not a relay loop.
const spareProcs = 2

func upCommand() *cobra.Command {
	var file, data string
	var verbose bool
	c := &cobra.Command{
		Use:   "up -c FILE",
		Short: "Run what the document says, in the foreground, until SIGTERM",
		Long: "Run what the document says, in the foreground. `decoynet status` says when it is ready.\n" +
			"SIGHUP or `decoynet reload` reads the document again and changes what differs; SIGTERM leaves nothing in the kernel.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			doc, err := config.Load(file)
			if err != nil {
				return &exitError{2, err}
			}
			if !cmd.Flags().Changed("data") && doc.Options.Data != "" {
				data = doc.Options.Data
			}
			return up(cmd.Context(), file, data, doc, newLogger(verbose))
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "the document")
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "log every step")
	_ = c.MarkFlagRequired("config")
	dataFlag(c, &data)
	return c
}

func newLogger(verbose bool) *slog.Logger {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// up runs a node from start to clean end.
func up(ctx context.Context, file, data string, doc *config.Document, log *slog.Logger) error {
	if err := checkCapabilities(); err != nil {
		return err
	}
	// A relay loop waits in a system call of its own, so it holds one of the
	// scheduler's places. Without a free one besides, the runtime starts and stops
	// a thread to look for work each time a loop goes to sleep (handoffp in
	// runtime/proc.go): a third of the system's time at 32 flows at once.
	runtime.GOMAXPROCS(runtime.NumCPU() + spareProcs)
	lock, err := lockData(data)
	if err != nil {
		return err
	}
	defer lock.release()

	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	n, err := newNode(file, data, doc, log)
	if err != nil {
		return err
	}
	server, err := n.serve()
	if err != nil {
		return errors.Join(err, n.close(context.Background()))
	}
	if err := n.apply(ctx, doc); err != nil {
		// What could be brought up works; status names the rest.
		log.Error("not everything could be applied", "error", err)
	}
	if s := n.status(ctx); s.Ready {
		log.Info("ready", "revision", s.Revision, "node", s.Node)
	}
	ticker := time.NewTicker(retryEvery)
	defer ticker.Stop()
	for turn := 1; ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-hup:
			if err := n.reload(ctx); err != nil {
				log.Error("reload", "error", err)
			}
		case <-n.healthChanged:
			n.refresh(ctx)
		case <-ticker.C:
			n.mend(ctx, turn)
			turn++
		}
	}
	log.Info("shutting down")
	closing, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err = n.close(closing)
	shutdown(closing, server)
	return err
}

func shutdown(ctx context.Context, server *http.Server) {
	if server.Shutdown(ctx) != nil {
		_ = server.Close() // a client that does not read its answer
	}
}

func reloadCommand() *cobra.Command {
	var data string
	c := &cobra.Command{
		Use:   "reload",
		Short: "Have the running decoynet read its document again",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body, err := ask(cmd.Context(), data, http.MethodPost, "/reload")
			if err != nil {
				return err
			}
			fmt.Fprint(cmd.OutOrStdout(), string(body))
			return nil
		},
	}
	dataFlag(c, &data)
	return c
}
