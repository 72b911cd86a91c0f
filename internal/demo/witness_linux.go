package demo

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"decoynet/internal/lab"
)

// witness watches the intruder's network card: what really left it, what really
// came back. It knows nothing of decoynet.
type witness struct {
	file *os.File
	done chan struct{}

	mu     sync.Mutex // guards what follows
	log    record
	latest time.Time // of the last frame of interest
	err    error     // why watching has ended, unless by Close
}

// watchCard opens the card of the machine, which has the addresses.
func watchCard(m *lab.Machine, nic string, own ...netip.Addr) (*witness, error) {
	w := &witness{
		done: make(chan struct{}),
		log:  newRecord(own),
	}
	if err := m.Do(func() (err error) {
		w.file, err = openCard(nic)
		return err
	}); err != nil {
		return nil, fmt.Errorf("watch the card %s of %s: %w", nic, m, err)
	}
	go w.watch()
	return w, nil
}

// cardBuffer holds the frames that wait for the witness while the attack keeps
// both processors busy.
const cardBuffer = 64 << 20

func openCard(nic string) (*os.File, error) {
	card, err := net.InterfaceByName(nic)
	if err != nil {
		return nil, err
	}
	// Protocol 0 receives nothing until bind names the card: no frame of
	// another one gets in between.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	everything := uint16(unix.ETH_P_ALL>>8 | unix.ETH_P_ALL<<8&0xff00) // in network byte order
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, cardBuffer),
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: everything, Ifindex: card.Index}),
	)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), nic), nil
}

func (w *witness) watch() {
	defer close(w.done)
	// The head of a frame says all; the rest is cut off.
	head := make([]byte, 256)
	for {
		n, err := w.file.Read(head)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				w.mu.Lock()
				w.err = err
				w.mu.Unlock()
			}
			return
		}
		if f, ok := parseFrame(head[:n]); ok {
			w.mu.Lock()
			w.log.note(f)
			w.latest = time.Now()
			w.mu.Unlock()
		}
	}
}

// mark returns a point in the record, for since.
func (w *witness) mark() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.log.began)
}

// since returns the flows with an answer to the destination that began after mark.
func (w *witness) since(mark int, destination netip.AddrPort) []flow {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []flow
	for _, f := range w.log.began[mark:] {
		if f.Destination == destination && w.log.stage[f] == established {
			out = append(out, f)
		}
	}
	return out
}

// settle waits until the card has been silent for a moment, and returns an error
// where frames were lost: what is not on record then proves nothing.
func (w *witness) settle() error {
	deadline := time.Now().Add(3 * time.Second)
	for time.Now().Before(deadline) {
		w.mu.Lock()
		quiet, err := time.Since(w.latest), w.err
		w.mu.Unlock()
		if err != nil {
			return fmt.Errorf("watch the intruder's card: %w", err)
		}
		if quiet > 100*time.Millisecond {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	raw, err := w.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch the intruder's card: %w", err)
	}
	var stats *unix.TpacketStats
	errControl := raw.Control(func(fd uintptr) {
		stats, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	})
	if err := errors.Join(errControl, err); err != nil {
		return fmt.Errorf("count what the card's watcher lost: %w", err)
	}
	if stats.Drops > 0 {
		return fmt.Errorf("the watcher of the intruder's card lost %d frames of %d", stats.Drops, stats.Packets)
	}
	return nil
}

// seen returns a copy of the record.
func (w *witness) seen() record {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.log.clone()
}

// Close ends the watch.
func (w *witness) Close() error {
	err := w.file.Close()
	<-w.done
	return err
}
