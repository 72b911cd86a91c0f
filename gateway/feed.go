//go:build linux

package gateway

import (
	"decoynet/deception"
	"decoynet/internal/feed"
	"decoynet/internal/relay"
)

// FeedTo returns f as a gateway's Feed; nil for nil.
func FeedTo(f *feed.Feed) Feed {
	if f == nil {
		return nil
	}
	return feeding{f}
}

type feeding struct{ feed *feed.Feed }

// Begin implements Feed.
func (f feeding) Begin(s *deception.Session, lane int) relay.Watcher {
	if flow := f.feed.Begin(s, lane); flow != nil {
		return flow
	}
	return nil // and no interface that holds a nil pointer: a flow that nobody watches costs nothing
}
