//go:build !linux

package eve

import "errors"

// watch is not there: files are polled.
type watch struct{ changed <-chan struct{} }

func newWatch(string) (*watch, error) { return nil, errors.ErrUnsupported }

func (*watch) close() {}
