package pki

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestDocumentation holds the figures in docs/security.md to the code's.
func TestDocumentation(t *testing.T) {
	text, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.Join(strings.Fields(string(text)), " ")
	const day = 24 * time.Hour
	spread := NodeLifetime / 10 // around half, see RenewAt
	for _, want := range []string{
		fmt.Sprintf("unencrypted: `controller.db` in its data directory (mode 0600), or PostgreSQL | %d years", CALifetime/(365*day)),
		fmt.Sprintf("never on a disk | %d days, made anew at half", ControllerLifetime/day),
		fmt.Sprintf("`%s` there | %d hours, renewed at half, give or take a tenth", certFile, NodeLifetime/time.Hour),
		fmt.Sprintf("expired for at most %d days", RenewGrace/day),
		fmt.Sprintf("valid from %d hours before their making", Backdate/time.Hour),
		fmt.Sprintf("an outage of %d hours is never noticed", (NodeLifetime/2-spread)/time.Hour),
		fmt.Sprintf("about %d hours against a gateway", (NodeLifetime/2-spread)/time.Hour),
		"`" + keyFile + "`", "`" + caFile + "`", "`" + infoFile + "`", "chmod",
		strings.ReplaceAll(nodeURI("NAME", 7).String(), "=7", "=N"), controllerURI().String(),
	} {
		if !strings.Contains(page, want) {
			t.Errorf("docs/security.md does not say %q", want)
		}
	}
}
