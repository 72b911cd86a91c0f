// Package snat is a plain relay that keeps the intruder's address the naive
// way: with an iptables rule for every connection. It is here to be measured
// against.
package snat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dialTimeout bounds the way to the service.
const dialTimeout = 5 * time.Second

// Relay leads connections to any local address to the same port of the service.
type Relay struct {
	From    netip.Addr // the gateway's own address towards the service
	Service netip.Addr
	Port    int
}

// Run accepts until the context ends.
func (r Relay) Run(ctx context.Context) error {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(ctx, "tcp4", net.JoinHostPort("0.0.0.0", strconv.Itoa(r.Port)))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer context.AfterFunc(ctx, func() { l.Close() })()
	var flows sync.WaitGroup
	defer flows.Wait()
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		flows.Go(func() {
			defer c.Close()
			// A flow that fails shows in the client's figures.
			_ = r.relay(ctx, c.(*net.TCPConn))
		})
	}
}

func (r Relay) relay(ctx context.Context, intruder *net.TCPConn) (err error) {
	source := intruder.RemoteAddr().(*net.TCPAddr).AddrPort()
	fd, local, err := r.reserve()
	if err != nil {
		return err
	}
	rule := r.rule(local, source)
	if err := iptables(ctx, "-A", rule); err != nil {
		unix.Close(fd)
		return err
	}
	// The rule must go even where the context has ended.
	defer func() { err = errors.Join(err, iptables(context.WithoutCancel(ctx), "-D", rule)) }()
	service, err := r.connect(fd)
	if err != nil {
		return err
	}
	defer service.Close()
	done := make(chan error, 1)
	go func() {
		_, e := io.Copy(service, intruder)
		done <- errors.Join(e, service.CloseWrite())
	}()
	_, err = io.Copy(intruder, service)
	return errors.Join(err, intruder.CloseWrite(), <-done)
}

// reserve binds a socket, so that the rule can name its port before it connects.
func (r Relay) reserve() (fd int, port uint16, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, 0, fmt.Errorf("make a socket: %w", err)
	}
	if err = unix.Bind(fd, &unix.SockaddrInet4{Addr: r.From.As4()}); err != nil {
		unix.Close(fd)
		return -1, 0, fmt.Errorf("bind to %s: %w", r.From, err)
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		unix.Close(fd)
		return -1, 0, fmt.Errorf("learn the bound port: %w", err)
	}
	return fd, uint16(local.(*unix.SockaddrInet4).Port), nil
}

// connect takes the descriptor over, also where it fails.
func (r Relay) connect(fd int) (*net.TCPConn, error) {
	timeout := unix.NsecToTimeval(dialTimeout.Nanoseconds())
	err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrInet4{Port: r.Port, Addr: r.Service.As4()})
	}
	if err == nil {
		err = syscall.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("connect to %s: %w", r.Service, err)
	}
	f := os.NewFile(uintptr(fd), "service")
	defer f.Close() // FileConn holds a duplicate
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("wrap the connection: %w", err)
	}
	return c.(*net.TCPConn), nil
}

func (r Relay) rule(local uint16, source netip.AddrPort) []string {
	return []string{
		"POSTROUTING", "-p", "tcp", "-s", r.From.String(), "--sport", strconv.Itoa(int(local)),
		"-d", r.Service.String(), "--dport", strconv.Itoa(r.Port),
		"-j", "SNAT", "--to-source", source.String(),
	}
}

func iptables(ctx context.Context, action string, rule []string) error {
	args := append([]string{"-w", "10", "-t", "nat", action}, rule...)
	if out, err := exec.CommandContext(ctx, "iptables", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("iptables %s: %w: %s", action, err, out)
	}
	return nil
}
