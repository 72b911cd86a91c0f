package enrolled

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"decoynet/internal/outbound"
	"decoynet/internal/pki"
	"decoynet/internal/rpc"
)

// callTimeout bounds each attempt to reach a controller or gateway: what takes
// longer is as bad as not there.
const callTimeout = 7 * time.Second

// Read collects the facts. What cannot be read is a fact, too; there is no error.
func Read(ctx context.Context, s Subject) *Facts {
	now := s.Now
	if now == nil {
		now = time.Now
	}
	f := &Facts{Now: now(), System: runtime.GOOS, Argument: s.Argument, Running: s.Running}
	f.Data = readData(s.Data, s.Running != nil)
	identity, err := pki.LoadIdentity(s.Data)
	if err != nil {
		f.Identity.Err = err
		return f
	}
	cert, expires := identity.Certificate()
	f.Identity = Identity{Node: identity.Node(), From: cert.NotBefore, Expires: expires, RenewAt: identity.RenewAt()}
	f.readSnapshot(s)
	f.readPorts(ctx, s)

	own, err := outbound.New(identity.Proxy())
	if err != nil {
		f.Identity.Err = fmt.Errorf("the proxy in %s: %w", filepath.Join(s.Data, "identity.json"), err)
		return f
	}
	f.Proxy = proxyAddress(identity.Proxy())
	other := f.environment(identity)
	f.Controllers = make([]Controller, len(identity.Controllers()))
	var wg sync.WaitGroup
	for i, u := range identity.Controllers() {
		wg.Go(func() { f.Controllers[i] = (&caller{identity, own, other, now}).call(ctx, u) })
	}
	wg.Go(func() { f.Gateways = callGateways(ctx, f.State, identity, own) })
	wg.Wait()
	return f
}

// environment returns the way out that HTTPS_PROXY names for the controllers, nil
// where it names none or the node's own.
func (f *Facts) environment(identity *pki.Identity) *outbound.Dialer {
	for _, u := range identity.Controllers() {
		text := outbound.FromEnvironment(u)
		if text == "" || text == identity.Proxy() {
			continue
		}
		if d, err := outbound.New(text); err == nil {
			f.EnvironmentProxy = proxyAddress(text)
			return d
		}
	}
	return nil
}

// proxyAddress takes host and port out of a proxy's URL, never its password.
func proxyAddress(text string) string {
	if text == "" {
		return ""
	}
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil {
		return "a proxy"
	}
	return u.Host
}

func (f *Facts) readSnapshot(s Subject) {
	snapshot, err := rpc.LoadSnapshot(s.Data)
	if err != nil {
		f.SnapshotErr = err
		return
	}
	state, err := rpc.DecodeState(snapshot, s.Version)
	if err != nil {
		f.SnapshotErr = err
		return
	}
	f.Revision, f.State = snapshot.GetRevision(), state
}

// readPorts takes what the running agent says, or tries.
func (f *Facts) readPorts(ctx context.Context, s Subject) {
	f.PrivilegedBelow, f.Program = privilegedBelow(), program(s.Running)
	switch {
	case s.Running != nil:
		f.Ports = s.Running.Ports
	case f.State != nil && s.Ports != nil:
		f.Ports = s.Ports(ctx, f.State)
	}
}

// program is the file of the decoynet that runs, or else of this one.
func program(r *Running) string {
	if r != nil {
		if path, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(r.PID), "exe")); err == nil {
			return path
		}
	}
	path, err := os.Executable()
	if err != nil {
		return "decoynet"
	}
	return path
}

// readData writes a little into the directory, and into the spool where nobody has
// that open.
func readData(dir string, running bool) Data {
	d := Data{Path: dir}
	d.FreeBytes, d.FreeKnown = freeBytes(dir)
	places := []string{dir}
	if at := filepath.Join(dir, "spool"); !running && isDir(at) {
		places = append(places, at)
	}
	for _, place := range places {
		if err := tryWrite(place); err != nil {
			d.Err, d.Full = err, isFull(err)
			return d
		}
	}
	return d
}

func isDir(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.IsDir()
}

// tryWrite writes as much as a certificate or a batch of records takes.
func tryWrite(dir string) error {
	f, err := os.CreateTemp(dir, ".doctor-*")
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 64<<10))
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close(), os.Remove(f.Name()))
}

// addressOf returns host:port of a controller's URL.
func addressOf(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return text
	}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port)
}
