// Package certs makes certificates for what is measured: of the same kind, and
// as long, for all subjects.
package certs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"decoynet/internal/pki"
)

// Names of the files of a node in its folder, as pki.LoadIdentity finds them;
// bundle is the key and its certificate in one, as OpenSSL's users like it.
const (
	key         = "key.pem"
	certificate = "cert.pem"
	Authority   = "ca.pem"
	Bundle      = "bundle.pem"
)

// Issue makes a certificate of the CA for a node and writes what the node needs
// into the folder.
func Issue(ca *pki.CA, node, dir string) error {
	k, csr, err := pki.NewRequest()
	if err != nil {
		return err
	}
	der, err := ca.SignNode(csr, node, 1, time.Hour, time.Now())
	if err != nil {
		return err
	}
	id, err := pki.NewIdentity(pki.IdentityConfig{
		Key: k, Certificate: der, CA: ca.Certificate().Raw, Controllers: []string{"https://unused.invalid:7443"},
	})
	if err != nil {
		return fmt.Errorf("make the identity of %s: %w", node, err)
	}
	if err := id.Save(dir); err != nil {
		return fmt.Errorf("save the identity of %s: %w", node, err)
	}
	k1, err1 := os.ReadFile(filepath.Join(dir, key))
	c1, err2 := os.ReadFile(filepath.Join(dir, certificate))
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("read the identity of %s: %w", node, err)
	}
	if err := os.WriteFile(filepath.Join(dir, Bundle), append(k1, c1...), 0o600); err != nil {
		return fmt.Errorf("write the bundle of %s: %w", node, err)
	}
	return nil
}
