package eve

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// watch tells when something in a folder is written to or renamed. Several changes
// within a while are told once.
type watch struct {
	changed <-chan struct{}
	file    *os.File
	ended   chan struct{}
}

func newWatch(folder string) (*watch, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", folder, err)
	}
	file := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, folder, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("watch %s: %w", folder, err)
	}
	changed := make(chan struct{}, 1)
	w := &watch{changed: changed, file: file, ended: make(chan struct{})}
	go w.run(changed)
	return w, nil
}

func (w *watch) run(changed chan<- struct{}) {
	defer close(w.ended)
	b := make([]byte, 4096)
	for {
		// What is told is not looked at: it only says when to look.
		if _, err := w.file.Read(b); err != nil {
			return
		}
		select {
		case changed <- struct{}{}:
		default:
		}
		time.Sleep(pollEvery / 2)
	}
}

func (w *watch) close() {
	if w != nil {
		_ = w.file.Close()
		<-w.ended
	}
}
