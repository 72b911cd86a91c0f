package main

import (
	"fmt"
	"maps"
	"slices"

	"decoynet/bench/parity/verdict"
)

// byProtocol counts the records of each kind of event apart.
func byProtocol(want, got verdict.Events) map[string]map[string]verdict.Count {
	out := map[string]map[string]verdict.Count{}
	for _, k := range slices.Sorted(maps.Keys(split(want.Records, got.Records))) {
		c, _, _ := verdict.Compare(only(want.Records, k), only(got.Records, k), false)
		out[k] = map[string]verdict.Count{"records": c}
	}
	return out
}

func split(all ...map[string]int) map[string]bool {
	out := map[string]bool{}
	for _, m := range all {
		for k := range m {
			out[verdict.KindOf(k)] = true
		}
	}
	return out
}

func only(m map[string]int, kind string) map[string]int {
	out := map[string]int{}
	for k, n := range m {
		if verdict.KindOf(k) == kind {
			out[k] = n
		}
	}
	return out
}

func (s *session) report(results []result) error {
	slices.SortFunc(results, func(a, b result) int {
		if a.feed+a.capture < b.feed+b.capture {
			return -1
		}
		return 1
	})
	for _, f := range s.feeds {
		total := map[string]verdict.Count{}
		excluded := 0
		for _, r := range results {
			if r.feed != f.name {
				continue
			}
			excluded += r.excluded
			for k, c := range r.counts {
				sum := total[k]
				sum.Add(c)
				total[k] = sum
			}
			if s.verbose {
				for _, k := range kinds {
					for _, m := range r.missed[k.name] {
						fmt.Fprintf(s.w, "MISS %s %s %s: %.700s\n", f.name, k.name, r.capture, m)
					}
					for _, m := range r.more[k.name] {
						fmt.Fprintf(s.w, "MORE %s %s %s: %.700s\n", f.name, k.name, r.capture, m)
					}
				}
			}
		}
		for _, k := range kinds {
			c := total[k.name]
			fmt.Fprintf(s.w, "%s %s: %d of %d (%.2f %%), %d more; excluded %d\n", f.name, k.name, c.Kept, c.Total, c.Share(), c.More, excluded)
		}
	}
	return nil
}
