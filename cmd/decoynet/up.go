package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"decoynet/config"
)

// closeTimeout bounds how long a SIGTERM may take to leave nothing behind.
const closeTimeout = 20 * time.Second

func upCommand() *cobra.Command {
	var o upOptions
	c := &cobra.Command{
		Use:   "up [-c FILE]",
		Short: "Run what the document, or the controller, says, in the foreground, until SIGTERM",
		Long: "Run what the document says, in the foreground. `decoynet status` says when it is ready.\n" +
			"SIGHUP or `decoynet reload` reads the document again and changes what differs; SIGTERM leaves nothing in the kernel.\n\n" +
			"Without a document, on a machine that was enrolled with `decoynet join`, the controller says what to run; while it\n" +
			"cannot be reached, what it said last.\n\n" +
			"--dry-run prints which addresses this machine would claim, and changes nothing; it needs no privileges.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.log = newLogger(o.verbose)
			if o.dryRun && o.file == "" {
				return &exitError{2, errors.New("--dry-run says what a document would claim; name it with -c FILE (what the controller's would change: decoynet diff -f FILE)")}
			}
			if o.file == "" {
				return upManaged(cmd.Context(), o)
			}
			doc, err := config.Load(o.file)
			if err != nil {
				return &exitError{2, err}
			}
			part, err := doc.Part()
			if err != nil {
				return &exitError{2, err}
			}
			if o.dryRun {
				part.Node = doc.Options.Node
				p := previewOf(&part)
				return p.write(cmd.OutOrStdout(), o.output)
			}
			if !cmd.Flags().Changed("data") && doc.Options.Data != "" {
				o.data = doc.Options.Data
			}
			if c := doc.Options.Controller; c != nil && c.Node == doc.Options.Node {
				return upController(cmd.Context(), o, doc)
			}
			return upAlone(cmd.Context(), o, doc)
		},
	}
	c.Flags().StringVarP(&o.file, "config", "c", "", "the document; none on a machine that was enrolled")
	c.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "log every step")
	c.Flags().BoolVar(&o.dryRun, "dry-run", false, "print what would be claimed, and change nothing")
	outputFlag(c, &o.output, "table", "json") // of --dry-run
	storeFlag(c, &o.store)
	dataFlag(c, &o.data)
	return c
}

type upOptions struct {
	file, data, store string
	output            string // of dryRun
	verbose, dryRun   bool
	log               *slog.Logger
}

func newLogger(verbose bool) *slog.Logger {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// source says what a node is to be.
type source struct {
	// wants delivers each new desired state; closed never.
	wants <-chan desired
	// reload reads the document again, where there is one.
	reload func(context.Context) error
	// applied is called after each attempt to apply.
	applied func()
}

// run runs a node from start to clean end.
func (n *node) run(ctx context.Context, from source) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	server, err := n.serve(from.reload)
	if err != nil {
		return errors.Join(err, n.close(context.Background()))
	}
	ticker := time.NewTicker(retryEvery)
	defer ticker.Stop()
	for turn := 1; ctx.Err() == nil; {
		select {
		case <-ctx.Done():
		case <-hup:
			if err := from.reload(ctx); err != nil {
				n.cfg.log.Error("reload", "error", err)
			}
		case want := <-from.wants:
			n.take(ctx, want)
			from.applied()
		case <-n.healthChanged:
			n.refresh(ctx)
		case <-ticker.C:
			n.mend(ctx, turn)
			turn++
		}
	}
	n.cfg.log.Info("shutting down")
	closing, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err = n.close(closing)
	shutdown(closing, server)
	return err
}

// take applies a new desired state and says what changes.
func (n *node) take(ctx context.Context, want desired) {
	n.mu.Lock()
	old := n.now.state
	n.mu.Unlock()
	for _, change := range config.Diff(&old, &want.state) {
		n.cfg.log.Info("change", "what", change.String())
	}
	if err := n.apply(ctx, want); err != nil {
		// What could be brought up works; status names the rest.
		n.cfg.log.Error("not everything could be applied", "error", err)
	}
	if s := n.status(ctx); s.Ready {
		n.cfg.log.Info("ready", "revision", s.Revision, "node", s.Node)
	}
}

func shutdown(ctx context.Context, server *http.Server) {
	if server.Shutdown(ctx) != nil {
		_ = server.Close() // a client that does not read its answer
	}
}

// upAlone runs the document's part for this machine, without a controller.
func upAlone(ctx context.Context, o upOptions, doc *config.Document) error {
	if len(doc.State.Segments)+len(doc.State.Zones) > 0 {
		if err := checkCapabilities(); err != nil {
			return err
		}
	}
	lock, err := lockData(o.data)
	if err != nil {
		return err
	}
	defer lock.release()
	records, err := openStore(o, doc.Options.Retention)
	if err != nil {
		return err
	}
	identity, err := identityIfAny(o.data)
	if err != nil {
		return errors.Join(err, records.Close(context.Background()))
	}
	n, err := newNode(nodeConfig{
		name: doc.Options.Node, data: o.data, origin: o.file, recorder: records,
		recording: storeStatus(records), identity: identity, log: o.log,
	})
	if err != nil {
		return errors.Join(err, records.Close(context.Background()))
	}
	d := &documentSource{file: o.file, doc: doc, wants: make(chan desired, 1), log: o.log, apply: n.apply}
	d.wants <- d.desired(doc)
	err = n.run(ctx, source{wants: d.wants, reload: d.reload, applied: func() {}})
	return errors.Join(err, closeRecords(records))
}

// documentSource is a document without a controller.
type documentSource struct {
	file  string
	wants chan desired
	log   *slog.Logger
	apply func(context.Context, desired) error

	mu  sync.Mutex // held for a whole reload, by signal or by command; guards doc
	doc *config.Document
}

func (d *documentSource) desired(doc *config.Document) desired {
	return desired{revision: revision(d.file), state: doc.State.Part(doc.Options.Node), heads: doc.Options.Heads}
}

// reload reads the document again. A document with errors changes nothing.
func (d *documentSource) reload(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	doc, err := config.Load(d.file)
	if err == nil {
		_, err = doc.Part()
	}
	if err != nil {
		return fmt.Errorf("the document is not valid and was not applied:\n%w", err)
	}
	now := d.desired(doc)
	for _, change := range config.Diff(&d.doc.State, &doc.State) {
		d.log.Info("change", "what", change.String())
	}
	warnFixed(d.log, d.doc, doc)
	d.doc = doc
	if err := d.apply(ctx, now); err != nil {
		return fmt.Errorf("applied, but not in full: %w", err)
	}
	return nil
}

// warnFixed names what a running process cannot change.
func warnFixed(log *slog.Logger, old, now *config.Document) {
	if old.Options.Node != now.Options.Node || old.Options.Data != now.Options.Data || old.Options.Retention != now.Options.Retention {
		log.Warn("node, data and recording.retention are taken at the start only; restart decoynet for the new ones")
	}
}

// revision names a document by its content.
func revision(file string) string {
	src, err := os.ReadFile(file)
	if err != nil {
		return "unknown"
	}
	sum := sha256.Sum256(src)
	return hex.EncodeToString(sum[:6])
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
