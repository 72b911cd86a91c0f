package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"decoynet/internal/pki"
	"decoynet/internal/registry"
	"decoynet/internal/rpc/decoynetv1"
)

// This file is for the machine that the controller runs on: the node inside the same
// process, which needs neither token nor TLS to talk to it, and the commands that an
// administrator types there.

// ApplyDocument makes the document the desired state, in the name of actor, and
// returns its revision. Name stands for the file in errors; those of a bad document
// are config.Errors.
func (c *Controller) ApplyDocument(ctx context.Context, actor, name string, source []byte) (revision string, err error) {
	if _, err := parse(name, source); err != nil {
		return "", err
	}
	by := registry.Entry{Actor: actor, Role: "local", Method: "ApplyDocument"}
	revision, _, err = c.apply(ctx, name, source, "", by)
	return revision, err
}

// OfferDocument is ApplyDocument for a file that is read at each start: it is applied
// where it differs from what the same actor applied last under that name. One that
// somebody has replaced through the API meanwhile does not come back with a restart.
// It returns the present revision.
func (c *Controller) OfferDocument(ctx context.Context, actor, name string, source []byte) (revision string, err error) {
	last, err := c.cfg.Registry.LastOf(ctx, actor, name)
	switch {
	case errors.Is(err, registry.ErrNoDocument):
	case err != nil:
		return "", err
	case bytes.Equal(last, source):
		return c.cfg.Registry.Revision(ctx)
	}
	return c.ApplyDocument(ctx, actor, name, source)
}

// Watch calls tell with the snapshot of the node that runs in this process, then with
// each new one, until ctx is done or the controller closes; it returns nil then. Where
// tell takes long, snapshots that were replaced meanwhile are left out.
func (c *Controller) Watch(ctx context.Context, node string, tell func(*decoynetv1.Snapshot)) error {
	who := &caller{node: node}
	err := c.watch(ctx, who, func(m *decoynetv1.WatchResponse) error {
		c.presence.hear(who, "", nil, time.Now(), c.timing.lostAfter)
		if s := m.GetSnapshot(); s != nil {
			tell(s)
		}
		return nil
	})
	if ctx.Err() != nil || c.ctx.Err() != nil {
		return nil
	}
	return err
}

// Report takes what is really true on the node that runs in this process.
func (c *Controller) Report(node string, m *decoynetv1.ReportRequest) {
	who := &caller{node: node}
	c.mu.Lock()
	if id := c.local[node]; id != nil {
		_, who.expires = id.Certificate()
	}
	c.mu.Unlock()
	c.report(who, m)
	// It is reached as this controller is: its machine is the same.
	c.presence.hear(who, m.GetBoot(), hostsOf(c.cfg.URLs), time.Now(), c.timing.lostAfter)
}

func hostsOf(urls []string) []string {
	var out []string
	for _, s := range urls {
		if u, err := url.Parse(s); err == nil {
			out = append(out, u.Hostname())
		}
	}
	return out
}

// IssueIdentity returns the identity of the node that runs in this process, from the
// directory or, where there is none that is good, a new one that it saves there. The
// controller renews its certificate from now on.
func (c *Controller) IssueIdentity(ctx context.Context, node, dir string) (*pki.Identity, error) {
	id, err := pki.LoadIdentity(dir)
	if err != nil || !c.stillGood(ctx, id, node) {
		if id, err = c.newIdentity(ctx, node, dir); err != nil {
			return nil, fmt.Errorf("issue an identity for node %s: %w", node, err)
		}
	}
	c.mu.Lock()
	c.local[node] = id
	c.mu.Unlock()
	if err := c.renewLocal(ctx); err != nil {
		return nil, err
	}
	return id, nil
}

// stillGood tells whether the identity is the node's, of this authority and of the
// present generation. Its certificate may have expired.
func (c *Controller) stillGood(ctx context.Context, id *pki.Identity, node string) bool {
	if id.Node() != node || id.Pin() != c.ca.Pin() {
		return false
	}
	leaf, _ := id.Certificate()
	_, generation, err := pki.NodeOf(leaf)
	return err == nil && c.nodeAllowed(ctx, &caller{node: node, generation: generation}) == nil
}

func (c *Controller) newIdentity(ctx context.Context, node, dir string) (*pki.Identity, error) {
	key, csr, err := pki.NewRequest()
	if err != nil {
		return nil, err
	}
	var certificate []byte
	_, err = c.cfg.Registry.EnrolLocal(ctx, node, func(generation uint32) error {
		certificate, err = c.ca.SignNode(csr, node, generation, c.cfg.CertificateTTL, time.Now())
		return err
	}, registry.Entry{Actor: node, Role: "local", Method: "IssueIdentity", Object: node})
	if err != nil {
		return nil, err
	}
	id, err := pki.NewIdentity(pki.IdentityConfig{
		Key: key, Certificate: certificate, CA: c.ca.Certificate().Raw, Controllers: c.cfg.URLs,
	})
	if err != nil {
		return nil, err
	}
	if err := id.Save(dir); err != nil {
		return nil, err
	}
	return id, c.hub.refresh(ctx)
}

// renewLocal renews the certificates of nodes in this process where it is time.
func (c *Controller) renewLocal(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for node, id := range c.local {
		if time.Now().Before(id.RenewAt()) {
			continue
		}
		errs = append(errs, c.renewIdentity(ctx, node, id))
	}
	return errors.Join(errs...)
}

func (c *Controller) renewIdentity(ctx context.Context, node string, id *pki.Identity) error {
	leaf, _ := id.Certificate()
	_, generation, err := pki.NodeOf(leaf)
	if err != nil {
		return err
	}
	if err := c.nodeAllowed(ctx, &caller{node: node, generation: generation}); err != nil {
		return err
	}
	csr, err := id.Request()
	if err != nil {
		return err
	}
	certificate, err := c.ca.SignNode(csr, node, generation, c.cfg.CertificateTTL, time.Now())
	if err != nil {
		return err
	}
	return id.Update(certificate)
}

const (
	firstUserName  = "local"
	adminTokenFile = "admin.token"
)

// firstUser sees to it that the commands on this machine have a token: that of an
// admin called local, in a file that only its owner reads. Where controllers share a
// registry, each machine has a user of its own.
func (c *Controller) firstUser(ctx context.Context) error {
	if c.cfg.Data == "" {
		return nil
	}
	path := filepath.Join(c.cfg.Data, adminTokenFile)
	text, err := os.ReadFile(path)
	if err == nil {
		secret, err := registry.ParseSecret(registry.UserSecret, string(bytes.TrimSpace(text)))
		if err == nil {
			_, err = c.cfg.Registry.UserOf(ctx, secret)
		}
		if err == nil {
			return nil
		} else if !errors.Is(err, registry.ErrNoUser) && !errors.Is(err, registry.ErrSecret) {
			return err
		}
	}
	secret := registry.NewSecret(registry.UserSecret)
	by := registry.Entry{Actor: "controller", Role: "local", Method: "FirstUser", Object: firstUserName, Detail: "role " + registry.RoleAdmin}
	err = c.cfg.Registry.CreateUser(ctx, firstUserName, registry.RoleAdmin, secret, by)
	if errors.Is(err, registry.ErrUserExists) {
		if by.Object, err = c.localName(); err != nil {
			return err
		}
		err = c.cfg.Registry.ReplaceUser(ctx, by.Object, registry.RoleAdmin, secret, by)
	}
	if err != nil {
		return err
	}
	if err := writePrivate(path, secret.Text+"\n"); err != nil {
		return fmt.Errorf("write the API token for this machine's commands: %w", err)
	}
	return nil
}

// localName is the user of this machine where the plain name is taken: by another
// machine that shares the registry, or by a token of this one that was lost.
func (c *Controller) localName() (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", err
	}
	name := firstUserName + "@" + host
	if !userName.MatchString(name) {
		name = firstUserName + "@this-machine"
	}
	return name, nil
}

// writePrivate replaces a file by one that only its owner reads.
func writePrivate(path, text string) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
