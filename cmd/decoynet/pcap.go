package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"decoynet/deception"
	"decoynet/internal/archive"
	"decoynet/internal/rpc"
	"decoynet/internal/rpc/decoynetv1"
	"decoynet/internal/store"
)

// pcapFlags are the flags of `pcap`.
type pcapFlags struct {
	access
	store, file string
}

func pcapCommand() *cobra.Command {
	var f pcapFlags
	c := &cobra.Command{
		Use:   "pcap SESSION > FILE",
		Short: "Write the packets of a session as a pcap file",
		Long: "Write the packets of a session as a pcap file, for Wireshark and the like, as far as they are still kept (inspect: pcap in\n" +
			"the document). They carry the intruder's and the decoy's addresses; the MAC addresses hold the session's identifier.\n" +
			"With --server, and on a controller's machine, they come from whatever node has them. The beginning of an identifier will do\n" +
			"where the record is and only one session has it.",
		Example: "  decoynet pcap 01234567-89ab-7def-8123-456789abcdef > f.pcap",
		Args:    cobra.ExactArgs(1),
	}
	f.flags(c)
	storeFlag(c, &f.store)
	c.Flags().StringVarP(&f.file, "write", "w", "", "write to this file instead of standard output")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		name, err := parseSessionName(args[0])
		if err != nil {
			return &exitError{2, err}
		}
		id, err := f.identify(cmd.Context(), name)
		if err != nil {
			return err
		}
		out, finish, err := f.out(cmd.OutOrStdout())
		if err != nil {
			return &exitError{2, err}
		}
		capped, err := f.extract(cmd.Context(), id, out)
		if err = errors.Join(err, finish()); err != nil {
			return err
		}
		if capped {
			fmt.Fprintln(cmd.ErrOrStderr(), "packets are left out: the session reached the limit that the document sets (inspect: pcap)")
		}
		return nil
	}
	return c
}

// identify looks the session up on record where its identifier is not whole.
func (f *pcapFlags) identify(ctx context.Context, name sessionName) (deception.SessionID, error) {
	if name.whole() {
		return name.first, nil
	}
	access := recordAccess{access: f.access, store: f.store}
	r, err := access.open(false)
	if err != nil {
		return deception.SessionID{}, fmt.Errorf("look up session %s (its identifier is not whole): %w", name.text, err)
	}
	defer r.Close()
	return name.find(ctx, r)
}

// packetsPath is where the packets of sessions are kept.
func packetsPath(data string) string { return filepath.Join(inspectPath(data), "pcap") }

// inspectPath is where all that belongs to analysis is kept.
func inspectPath(data string) string { return filepath.Join(data, "inspect") }

// out returns what the packets are written to, and how that is ended.
func (f *pcapFlags) out(standard io.Writer) (out io.Writer, finish func() error, err error) {
	if f.file != "" {
		file := &newFile{path: f.file}
		return file, file.Close, nil
	}
	if isConsole(standard) {
		return nil, nil, errors.New("packets are not for a terminal: name a file with -w FILE, or > FILE")
	}
	return standard, func() error { return nil }, nil
}

// keptPackets gives the packets that this machine keeps.
func keptPackets(data string) rpc.Packets {
	return func(ctx context.Context, id deception.SessionID, start, end time.Time, w io.Writer) (capped bool, err error) {
		found, err := archive.Extract(ctx, packetsPath(data), id, start, end, w)
		return found.Capped, err
	}
}

// extract takes the packets from this machine's archive or, where a controller is
// named or runs here, from the node that has them.
func (f *pcapFlags) extract(ctx context.Context, id deception.SessionID, out io.Writer) (capped bool, err error) {
	if f.server != "" || os.Getenv("DECOYNET_SERVER") != "" {
		return f.fetch(ctx, id, out)
	}
	start, end, known, err := f.times(ctx, id)
	if err != nil {
		return false, err
	}
	capped, err = keptPackets(f.data)(ctx, id, start, end, out)
	if !errors.Is(err, archive.ErrNotKept) {
		return capped, err
	}
	if _, missing := f.localWord(); missing == nil {
		return f.fetch(ctx, id, out)
	}
	if known {
		return false, err
	}
	if node, _ := identityIfAny(f.data); node != nil {
		return false, fmt.Errorf("%w; `decoynet pcap` at the controller of node %s asks the others, too", err, node.Node())
	}
	return false, fmt.Errorf("%w (and no session of that identifier is on record in %s)", err, storePath(upOptions{data: f.data, store: f.store}))
}

// fetch takes the packets from the controller, which gets them from the node that
// has them.
func (f *pcapFlags) fetch(ctx context.Context, id deception.SessionID, out io.Writer) (capped bool, err error) {
	client, err := f.client()
	if err != nil {
		return false, err
	}
	stream, err := client.GetPackets(ctx, connect.NewRequest(&decoynetv1.GetPacketsRequest{Session: id.String()}))
	if err != nil {
		return false, refusal(err)
	}
	defer stream.Close()
	for stream.Receive() {
		capped = stream.Msg().GetCapped()
		if _, err := out.Write(stream.Msg().GetData()); err != nil {
			return capped, fmt.Errorf("write the packets: %w", err)
		}
	}
	return capped, refusal(stream.Err())
}

// times returns from when to when the session ran, by the record. Where there is
// none, as on a machine whose sessions are recorded at a controller, the identifier
// tells the start.
func (f *pcapFlags) times(ctx context.Context, id deception.SessionID) (start, end time.Time, known bool, err error) {
	r, err := store.OpenReader(storePath(upOptions{data: f.data, store: f.store}))
	if errors.Is(err, store.ErrNoStore) {
		return id.Time(), time.Time{}, false, nil
	}
	if err != nil {
		return start, end, false, err
	}
	defer r.Close()
	for s, err := range r.Sessions(ctx, store.Filter{ID: id, Limit: 1}) {
		return s.Start, s.End, err == nil, err
	}
	return id.Time(), time.Time{}, false, nil
}

// isConsole tells whether a person looks at what is written.
func isConsole(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	if err != nil || st.Mode()&os.ModeCharDevice == 0 {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(st, null)
}

// newFile is a file that is made with the first byte, so that a failure leaves an
// older one as it was.
type newFile struct {
	path string
	file *os.File
}

func (n *newFile) Write(b []byte) (int, error) {
	if n.file == nil && len(b) > 0 {
		f, err := os.OpenFile(n.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return 0, err
		}
		n.file = f
	}
	if len(b) == 0 {
		return 0, nil
	}
	return n.file.Write(b)
}

func (n *newFile) Close() error {
	if n.file == nil {
		return nil
	}
	return n.file.Close()
}
