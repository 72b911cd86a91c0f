package vm_test

import (
	"os"
	"testing"

	"decoynet/internal/lab/labtest"
	"decoynet/internal/lab/vm"
)

func TestMain(m *testing.M) { labtest.Main(m) }

func TestBoot(t *testing.T) {
	if !vm.Run(t, vm.Options{}) {
		return
	}
	up, err := os.ReadFile("/proc/uptime")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("up for %s", up)
}
