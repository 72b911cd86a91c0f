//go:build !linux

package main

import (
	"context"

	"decoynet/deception"
	"decoynet/internal/doctor"
	"decoynet/internal/doctor/enrolled"
)

// kernelChecks has no kernel to look at: a machine of this platform is a node of a
// controller, or has nothing to run.
func kernelChecks(ctx context.Context, _, data string, _ bool, _ lookout) ([]doctor.Finding, error) {
	return enrolled.Judge(enrolled.Read(ctx, enrolledSubject(data, nil))), nil
}

func nodeKernelChecks(context.Context, string, *deception.State, *status, lookout) ([]doctor.Finding, error) {
	return nil, nil
}
