//go:build !linux

package main

import (
	"context"
	"fmt"
	"time"

	"decoynet/deception"
	"decoynet/internal/pump"
)

// localRoles are those that live in the kernel. Here there are none: on this
// platform decoynet is an agent in listen mode.
type localRoles struct{}

func newLocalRoles(*node) *localRoles { return &localRoles{} }

func (l *localRoles) apply(_ context.Context, want desired) error {
	s := &want.state
	if len(s.Segments)+len(s.Zones) > 0 {
		return fmt.Errorf("segments and zones need Linux; this is %s, where decoys are in segment host only", platform)
	}
	return nil
}

func (l *localRoles) reloadRules(context.Context) (any, error) {
	return nil, fmt.Errorf("analysis needs Linux; this is %s", platform)
}

func (l *localRoles) doubt(int, int)                  {}
func (l *localRoles) refresh(context.Context) error   { return nil }
func (l *localRoles) close(context.Context) error     { return nil }
func (l *localRoles) status(context.Context, *status) {}

func (l *localRoles) carry(pump.Stream, *deception.Session, time.Duration) pump.Handle { return nil }
func (l *localRoles) closeCarried(func(*deception.Session) bool, deception.EndReason)  {}
func (l *localRoles) decoyUp(*deception.Decoy, deception.Transport, uint16, bool) bool { return false }
