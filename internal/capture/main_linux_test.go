package capture

import (
	"testing"

	"decoynet/internal/lab/labtest"
)

func TestMain(m *testing.M) { labtest.Main(m) }
