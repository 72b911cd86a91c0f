//go:build linux && !race

package e2e

// raced changes nothing where these tests run without the race detector.
func raced(string) (flags, env []string, found func() bool) {
	return nil, []string{"CGO_ENABLED=0"}, func() bool { return false }
}
