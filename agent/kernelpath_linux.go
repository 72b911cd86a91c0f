package agent

import (
	"context"

	"decoynet/internal/kernel/route"
)

type kernelPath struct{}

func (k *kernelPath) lost() uint64 { return 0 }

func (s *segment) applyKernelPath(ctx context.Context) error { return nil }
func (s *segment) closeKernelPath(ctx context.Context) error { return nil }

func hostUplinkRoutes(segment string, index int) []route.Route { return nil }
func hostUplinkRules(index int) []route.Rule                    { return nil }
