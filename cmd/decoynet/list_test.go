package main

import (
	"io"
	"strings"
	"testing"

	"decoynet/deception"
	"decoynet/internal/ecs"
)

// A listing that ends at its limit says so, to people only.
func TestListSaysThatThereMayBeMore(t *testing.T) {
	for _, c := range []struct {
		output       string
		limit, there int
		watch, says  bool
	}{
		{"table", 2, 2, false, true},
		{"wide", 2, 2, false, true},
		{"table", 2, 1, false, false},
		{"table", 0, 2, false, false},
		{"table", 2, 2, true, false},
		{"json", 2, 2, false, false},
	} {
		var b strings.Builder
		l := lister[deception.Event]{
			w: &b, output: c.output, watch: c.watch, limit: c.limit, write: ecs.NewJSON(&b).WriteEvent,
			table: func(w io.Writer, o ecs.TableOptions) table[deception.Event] { return ecs.NewEventTable(w, o) },
		}
		n, err := l.list(func(yield func(deception.Event, error) bool) {
			for range c.there {
				if !yield(deception.Event{Kind: deception.EventOverload, Message: "too many"}, nil) {
					return
				}
			}
		})
		out := b.String()
		if err != nil || n != c.there || strings.Count(out, "too many") != c.there || strings.HasPrefix(out, "{") != (c.output == "json") {
			t.Errorf("%+v: %d, %v:\n%s", c, n, err, out)
		}
		if strings.Contains(out, "(the newest 2; --limit 0 for all)") != c.says {
			t.Errorf("%+v:\n%s", c, out)
		}
	}
}
