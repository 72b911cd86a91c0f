package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"decoynet/config"
	"decoynet/controller"
	"decoynet/deception"
	"decoynet/internal/registry"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/store"
)

// defaultControllerPort is where nodes and people reach a controller.
const defaultControllerPort = 7443

func controllerCommand() *cobra.Command {
	var o upOptions
	var listen string
	var urls []string
	c := &cobra.Command{
		Use:   "controller [-c FILE]",
		Short: "Run the control plane alone: desired state, enrolment, API",
		Long: "Run the control plane alone, in the foreground. FILE becomes the desired state if it has changed since it was last read;\n" +
			"afterwards `decoynet apply -f FILE` changes it. With --store postgres://... any number of controllers may run on one database.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.log = newLogger(o.verbose)
			var doc *config.Document
			if o.file != "" {
				var err error
				if doc, err = config.Load(o.file); err != nil {
					return &exitError{2, err}
				}
				if !cmd.Flags().Changed("data") && doc.Options.Data != "" {
					o.data = doc.Options.Data
				}
			}
			at, err := netip.ParseAddrPort(listen)
			if err != nil {
				return &exitError{2, fmt.Errorf("bad --listen %q; an address and a port, as 0.0.0.0:%d", listen, defaultControllerPort)}
			}
			if doc != nil && doc.Options.Controller != nil { // what the command line leaves open
				if !cmd.Flags().Changed("listen") {
					at = doc.Options.Controller.Listen
				}
				if len(urls) == 0 {
					urls = doc.Options.Controller.URLs
				}
			}
			return runController(cmd.Context(), o, doc, at, urls)
		},
	}
	f := c.Flags()
	f.StringVarP(&o.file, "config", "c", "", "the document")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log every step")
	f.StringVar(&o.store, "store", "", "where everything is kept: postgres://... (default: in the data directory)")
	f.StringVar(&listen, "listen", fmt.Sprintf("0.0.0.0:%d", defaultControllerPort), "address and port")
	f.StringSliceVar(&urls, "url", nil, "how nodes reach this controller, as https://hq.example:7443 (default: this machine's name and addresses)")
	dataFlag(c, &o.data)
	return c
}

// runController runs the control plane alone.
func runController(ctx context.Context, o upOptions, doc *config.Document, at netip.AddrPort, urls []string) (err error) {
	lock, err := lockDirectory(o.data)
	if err != nil {
		return err
	}
	defer lock.release()
	plane, err := openPlane(o, doc, at, urls)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.close()) }()
	if err := plane.load(ctx, o.file); err != nil {
		return err
	}
	o.log.Info("controller ready", "listen", plane.listener.Addr().String(), "urls", plane.urls)
	select {
	case <-ctx.Done():
		return nil
	case err := <-plane.failed:
		return err
	}
}

// plane is a control plane that runs in this process.
type plane struct {
	*controller.Controller
	registry *registry.Registry
	records  *store.Recorder
	reader   *store.Reader
	listener net.Listener
	urls     []string
	failed   chan error
	work     sync.WaitGroup
	cancel   context.CancelFunc
}

func openPlane(o upOptions, doc *config.Document, at netip.AddrPort, urls []string) (p *plane, err error) {
	p = &plane{failed: make(chan error, 1), urls: urls, cancel: func() {}}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	retention := config.DefaultRetention
	if doc != nil {
		retention = doc.Options.Retention
	}
	if len(p.urls) == 0 {
		p.urls = defaultURLs(at, doc)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if p.records, err = openStore(o, retention); err != nil {
		return p, err
	}
	if p.reader, err = store.OpenReader(storePath(o)); err != nil {
		return p, err
	}
	where := filepath.Join(o.data, registry.FileName)
	if registry.IsURL(o.store) {
		where = o.store
	}
	if p.registry, err = registry.Open(ctx, where); err != nil {
		return p, fmt.Errorf("open the controller's registry: %w", err)
	}
	if p.Controller, err = controller.New(controller.Config{
		Registry: p.registry, Store: p.records, Reader: p.reader, Packets: keptPackets(o.data),
		Data: o.data, Version: version, URLs: p.urls, Log: o.log,
	}); err != nil {
		return p, err
	}
	if p.listener, err = net.Listen("tcp", at.String()); err != nil {
		return p, fmt.Errorf("open the controller's port %s: %w", at, err)
	}
	if err = writeAccessWord(o.data, p.listener, p.Pin()); err != nil {
		return p, err
	}
	serving, stop := context.WithCancel(context.Background())
	p.cancel = stop
	p.work.Go(func() {
		if err := p.Serve(serving, p.listener); err != nil && serving.Err() == nil {
			p.failed <- fmt.Errorf("serve the controller's port: %w", err)
		}
	})
	return p, nil
}

// load makes the file's document the desired state, if it is another than when
// it was last read: what was applied since by `decoynet apply` stays.
func (p *plane) load(ctx context.Context, file string) error {
	if file == "" {
		return nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the document: %w", err)
	}
	if _, err := p.OfferDocument(ctx, "file", file, text); err != nil {
		return fmt.Errorf("make %s the desired state: %w", file, err)
	}
	return nil
}

// close ends what there is, the record last, so that nothing is lost.
func (p *plane) close() error {
	p.cancel()
	p.work.Wait()
	var errs []error
	if p.Controller != nil {
		errs = append(errs, p.Controller.Close())
	}
	if p.registry != nil {
		errs = append(errs, p.registry.Close())
	}
	if p.reader != nil {
		errs = append(errs, p.reader.Close())
	}
	if p.records != nil {
		errs = append(errs, closeRecords(p.records))
	}
	return errors.Join(errs...)
}

// writeAccessWord lets the commands on this machine find the controller.
func writeAccessWord(data string, l net.Listener, pin string) error {
	at := netip.MustParseAddrPort(l.Addr().String())
	host := at.Addr()
	if host.IsUnspecified() {
		host = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	word, err := json.Marshal(accessWord{Server: "https://" + netip.AddrPortFrom(host, at.Port()).String(), Pin: pin})
	if err != nil {
		return fmt.Errorf("write how to reach the controller: %w", err)
	}
	if err := os.WriteFile(filepath.Join(data, accessFile), append(word, '\n'), 0o600); err != nil {
		return fmt.Errorf("write how to reach the controller: %w", err)
	}
	return nil
}

// defaultURLs are what a machine can say of itself: its listening address, or
// where that is any, its addresses but those at its zones' bridges, which are for
// services only.
func defaultURLs(at netip.AddrPort, doc *config.Document) []string {
	if !at.Addr().IsUnspecified() {
		return []string{"https://" + at.String()}
	}
	var urls []string
	for _, a := range machineAddresses() {
		if address, err := netip.ParseAddr(a); err == nil && !inZone(doc, address) {
			urls = append(urls, "https://"+netip.AddrPortFrom(address, at.Port()).String())
		}
	}
	if len(urls) == 0 {
		urls = []string{"https://" + netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port()).String()}
	}
	return urls
}

func inZone(doc *config.Document, a netip.Addr) bool {
	if doc == nil {
		return false
	}
	return slices.ContainsFunc(doc.State.Zones, func(z deception.Zone) bool {
		return slices.ContainsFunc(z.Subnets, func(p netip.Prefix) bool { return p.Contains(a) })
	})
}

// upController runs a node with the controller inside: the document is desired
// state for all nodes, and this one's part comes without a detour by TLS.
func upController(ctx context.Context, o upOptions, doc *config.Document) (err error) {
	lock, err := lockData(o.data)
	if err != nil {
		return err
	}
	defer lock.release()
	name, c := doc.Options.Node, doc.Options.Controller
	plane, err := openPlane(o, doc, c.Listen, c.URLs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.close()) }()
	if err := plane.load(ctx, o.file); err != nil {
		return err
	}
	identity, err := plane.IssueIdentity(ctx, name, o.data)
	if err != nil {
		return fmt.Errorf("make this machine's certificate: %w", err)
	}
	n, err := newNode(nodeConfig{
		name: name, data: o.data, origin: o.file, recorder: plane.records, recording: storeStatus(plane.records), identity: identity, log: o.log,
	})
	if err != nil {
		return err
	}
	m := &managed{node: n, wants: make(chan desired, 1)}
	boot := deception.NewSessionID(time.Now()).String()
	watching, stop := context.WithCancel(ctx)
	defer stop()
	report := func() {
		r := n.report()
		r.Boot = boot
		plane.Report(name, r)
	}
	plane.work.Go(func() {
		tell := func(s *decoynetv1.Snapshot) { m.offer(watching, s) }
		if err := plane.Watch(watching, name, tell); err != nil {
			o.log.Error("this machine's part of the document", "error", err)
		}
	})
	plane.work.Go(func() { every(watching, reportEvery, report) })
	return n.run(ctx, source{wants: m.wants, reload: func(ctx context.Context) error { return plane.load(ctx, o.file) }, applied: report})
}

// reportEvery is how often a node says that it lives.
const reportEvery = 5 * time.Second

func every(ctx context.Context, d time.Duration, fn func()) {
	t := time.NewTicker(d)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			fn()
		}
	}
}

// storePath is the store's file, or the URL of its database.
func storePath(o upOptions) string {
	if o.store != "" {
		return o.store
	}
	return databasePath(o.data)
}

func openStore(o upOptions, retention time.Duration) (*store.Recorder, error) {
	r, err := store.OpenRecorder(store.RecorderConfig{Path: storePath(o), Retain: retention})
	if err != nil {
		return nil, fmt.Errorf("open session store: %w", err)
	}
	return r, nil
}

func storeStatus(r *store.Recorder) func() recordingStatus {
	return func() recordingStatus {
		s := r.Stats()
		out := recordingStatus{
			Queued: s.Queued, Written: s.Written, Findings: s.Findings, FileBytes: s.FileBytes,
			Lost: s.Lost, LostSessions: s.Lost, LostStarts: s.LostStarts, LostHeads: s.LostHeads, LostSeen: s.LostSeen,
			LostEvents: s.LostEvents, LostProbes: s.LostProbes, LostFindings: s.LostFindings,
		}
		if s.LastError != nil {
			out.LastError = s.LastError.Error()
		}
		if !s.FailingSince.IsZero() {
			out.FailingSince = &s.FailingSince
		}
		return out
	}
}

// closeRecords writes what is queued.
func closeRecords(r interface{ Close(context.Context) error }) error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := r.Close(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("write the last sessions: %w", err)
	}
	return err
}
