package enrolled_test

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"net/url"
	"runtime"
	"testing"

	"decoynet/internal/pki"
)

// setClock is a part of the command that sets this platform's clock.
var setClock = cmp.Or(map[string]string{"windows": "w32tm", "darwin": "sntp"}[runtime.GOOS], "timedatectl set-ntp true")

func parseURL(t *testing.T, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	check(t, err)
	return u
}

// caKey takes the CA's key out of its PEM form.
func caKey(t *testing.T, ca *pki.CA) *ecdsa.PrivateKey {
	t.Helper()
	_, text, err := ca.PEM()
	check(t, err)
	block, _ := pem.Decode(text)
	if key, err := x509.ParsePKCS8PrivateKey(block.Bytes); err == nil {
		return key.(*ecdsa.PrivateKey)
	}
	key, err := x509.ParseECPrivateKey(block.Bytes)
	check(t, err)
	return key
}
