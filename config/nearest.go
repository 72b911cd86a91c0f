package config

import (
	"fmt"
	"strings"
)

// maxListed is how many names a message lists before it says "and others".
const maxListed = 12

// suggest says what an unknown name should have been: the nearest of the known
// ones where there is one, else all of them. what is their plural: "zones".
func suggest(name, what string, known []string) string {
	if n := nearest(name, known); n != "" {
		return fmt.Sprintf("did you mean %q", n)
	}
	if len(known) == 0 {
		return fmt.Sprintf("the document has no %s, add one of that name", what)
	}
	return fmt.Sprintf("known %s: %s", what, listed(known))
}

// listed writes names as a list that stays readable however many they are.
func listed(names []string) string {
	more := ""
	if len(names) > maxListed {
		more = fmt.Sprintf(" and %d others", len(names)-maxListed)
		names = names[:maxListed]
	}
	return strings.Join(names, ", ") + more
}

// nearest returns the known name that a slip of the fingers turns into this
// one, or "" where none is near: at most a third of the letters may differ.
func nearest(name string, known []string) string {
	best, bestDistance := "", max(len(name)/3, 1)+1
	for _, k := range known {
		if len(name) > len(k)+bestDistance || len(k) > len(name)+bestDistance {
			continue
		}
		if d := distance(strings.ToLower(name), k); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance counts the single-letter slips between two words: a letter missing,
// added or wrong, or two neighbours swapped (Damerau-Levenshtein, restricted).
func distance(a, b string) int {
	older, old := make([]int, len(b)+1), make([]int, len(b)+1)
	row := make([]int, len(b)+1)
	for j := range old {
		old[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(old[j]+1, row[j-1]+1, old[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], older[j-2]+1)
			}
		}
		older, old, row = old, row, older
	}
	return old[len(b)]
}
