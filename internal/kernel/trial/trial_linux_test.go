package trial_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/netns/netnstest"
	"decoynet/internal/kernel/trial"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// TestRun tries all features on this kernel, which has them all, but perhaps for
// 802.1Q; about that one ip(8) is asked. No namespace gets a name by it.
func TestRun(t *testing.T) {
	results := trial.Run(t.Context())
	if !slices.ContainsFunc(results, func(r trial.Result) bool { return r.Feature == trial.VLAN }) {
		t.Error("802.1Q was not tried")
	}
	for _, r := range results {
		if r.Feature == trial.VLAN {
			out, err := exec.Command("ip", "link", "add", "link", "lo", "name", "lo.2", "type", "vlan", "id", "2").CombinedOutput()
			// The kernel's own word for a kind of link that it has not.
			lacking := err != nil && strings.Contains(string(out), "Unknown device type")
			if lacking != (r.Err != nil) {
				t.Errorf("802.1Q: %v, and ip says %v: %s", r.Err, err, out)
			}
			continue
		}
		if r.Err != nil {
			t.Errorf("%s: %v", r.Feature, r.Err)
		}
	}
	left, err := netns.List(netns.SegmentName("trial"))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 0 {
		t.Errorf("namespaces are left: %v", left)
	}
}

func TestNamespaceIsAnother(t *testing.T) {
	ns, err := trial.Namespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	host, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if same, err := ns.Same(host); err != nil || same {
		t.Errorf("the new namespace is this process's own: %v, %v", same, err)
	}
}
