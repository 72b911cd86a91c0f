package nft

import (
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// buffer is enough for one transaction of several hundred thousand set elements,
// which is one sendmsg, with the acknowledgements of its messages, which are one burst.
const buffer = 64 << 20

// Timeout bounds one exchange with netfilter: a batch whose commit fails is answered
// by one message only, and a reader that expects one per request would wait for ever.
const Timeout = 60 * time.Second

// Open returns a connection to the nftables of the namespace that a descriptor
// leads to. It is good for one exchange.
func Open(ns int) (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithNetNSFd(ns), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(buffer), c.SetWriteBuffer(buffer), c.SetDeadline(time.Now().Add(Timeout)))
	}))
	if err != nil {
		return nil, fmt.Errorf("open netlink socket to nftables: %w", err)
	}
	return conn, nil
}

// Unsupported tells whether the kernel refused a transaction since it lacks what
// that is made of: a family, a type of chain, an expression, or nftables as a whole.
// It says ENOENT of an expression whose module is not there, as it says of a table
// that is not: who asks must know that there is no other cause for that.
func Unsupported(err error) bool {
	for _, missing := range []error{unix.ENOENT, unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT} {
		if errors.Is(err, missing) {
			return true
		}
	}
	return false
}
