package trial_test

import (
	"testing"

	"decoynet/internal/kernel/netns"
	"decoynet/internal/kernel/netns/netnstest"
	"decoynet/internal/kernel/trial"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// TestRun tries all features on this kernel, which has them, and looks that no
// namespace got a name by it.
func TestRun(t *testing.T) {
	for _, r := range trial.Run(t.Context()) {
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
