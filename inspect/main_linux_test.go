package inspect

import (
	"testing"

	"decoynet/internal/kernel/netns/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }
