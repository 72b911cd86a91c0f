package steer

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// userNamespaceEnv makes the test binary the other half of TestAutoFallsBack.
const userNamespaceEnv = "STEER_TEST_IN_USER_NAMESPACE"

// TestMain fails the run where a test left a goroutine or a descriptor behind.
func TestMain(m *testing.M) {
	if os.Getenv(userNamespaceEnv) != "" {
		os.Exit(inUserNamespace())
	}
	if path := os.Getenv(steeredNamespaceEnv); path != "" {
		os.Exit(steerUntilKilled(path))
	}
	// The runtime opens its poller with the first socket and keeps it.
	warmUp()
	before := descriptors()
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
		if after := descriptors(); after > before {
			fmt.Fprintf(os.Stderr, "%d descriptors before the tests, %d after\n", before, after)
			code = 1
		}
	}
	os.Exit(code)
}
