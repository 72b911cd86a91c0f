package wire

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrBusy is wrapped by what Send and SendMany return where the link takes no
// more frames for the moment.
var ErrBusy = errors.New("the link's queue is full")

// sendBatch is how many frames one system call sends.
const sendBatch = 64

// mmsghdr is struct mmsghdr of sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   [unsafe.Sizeof(uintptr(0)) - 4]byte
}

// Send sends a frame, Ethernet header and all, out of the link of that index. A
// Tap does not hear what it sends itself.
func (t *Tap) Send(link int, frame []byte) error {
	_, err := t.SendMany(link, [][]byte{frame})
	return err
}

// SendMany sends frames in order, without waiting. It returns how many the link
// took; if not all, also an error, which wraps ErrBusy where the rest may be sent
// a little later.
func (t *Tap) SendMany(link int, frames [][]byte) (sent int, err error) {
	if link <= 0 {
		return 0, fmt.Errorf("send frames at %s: link %d is none", t.where, link)
	}
	to := unix.RawSockaddrLinklayer{Family: unix.AF_PACKET, Ifindex: int32(link)}
	var vec [sendBatch]mmsghdr
	var iov [sendBatch]unix.Iovec
	for sent < len(frames) {
		n := min(len(frames)-sent, sendBatch)
		for i := range n {
			frame := frames[sent+i]
			if len(frame) < etherHeader {
				n = i
				err = fmt.Errorf("a frame of %d bytes", len(frame))
				break
			}
			iov[i].Base = &frame[0]
			iov[i].SetLen(len(frame))
			vec[i] = mmsghdr{hdr: unix.Msghdr{
				Name: (*byte)(unsafe.Pointer(&to)), Namelen: unix.SizeofSockaddrLinklayer, Iov: &iov[i],
			}}
			vec[i].hdr.SetIovlen(1)
		}
		took, failed := t.sendBatch(vec[:n])
		sent += took
		if err = errors.Join(failed, err); err != nil {
			return sent, fmt.Errorf("send frames out of link %d at %s: %w", link, t.where, err)
		}
	}
	return sent, nil
}

func (t *Tap) sendBatch(vec []mmsghdr) (sent int, err error) {
	if len(vec) == 0 {
		return 0, nil
	}
	errControl := t.raw.Control(func(fd uintptr) {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&vec[0])), uintptr(len(vec)), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			sent = int(n)
		case unix.EAGAIN, unix.ENOBUFS:
			err = ErrBusy
		case unix.EINTR: // nothing was sent: again
		default:
			err = errno
		}
	})
	return sent, errors.Join(errControl, err)
}
