package figure

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// writeTable prints one block for each metric, so that the subjects to compare
// stand below each other.
func writeTable(w io.Writer, metrics []Metric, peers []string, rows []Row) error {
	for _, m := range metrics {
		var block []Row
		for _, row := range rows {
			if row.Metric == m.Name {
				block = append(block, row)
			}
		}
		if len(block) == 0 {
			continue
		}
		if err := writeBlock(w, m, peers, block); err != nil {
			return err
		}
	}
	return nil
}

func writeBlock(w io.Writer, m Metric, peers []string, rows []Row) error {
	if allZero(rows) {
		if _, err := fmt.Fprintf(w, "\n%s [%s]: %s: 0 everywhere\n", m.Name, m.Unit, m.What); err != nil {
			return fmt.Errorf("write the table: %w", err)
		}
		return nil
	}
	if _, err := fmt.Fprintf(w, "\n%s [%s]: %s\n", m.Name, m.Unit, m.What); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	cells := [][]string{header(peers)}
	for _, row := range rows {
		cells = append(cells, line(row, peers))
	}
	if err := align(w, cells); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	for _, row := range rows {
		if row.Void != "" {
			if _, err := fmt.Fprintf(w, "  ! %s is void: %s\n", row.Name, row.Void); err != nil {
				return fmt.Errorf("write the table: %w", err)
			}
		}
	}
	return nil
}

func header(peers []string) []string {
	cells := []string{"", "median", "min", "max"}
	for _, p := range peers {
		cells = append(cells, "/ "+p)
	}
	return append(cells, "target", "reached")
}

func line(row Row, peers []string) []string {
	cells := []string{row.Name, "VOID", "", ""}
	if row.Void == "" {
		cells = []string{row.Name, number(*row.Median), number(*row.Min), number(*row.Max)}
	}
	for _, p := range peers {
		ratio := ""
		if r, ok := row.RatioTo[p]; ok {
			ratio = fmt.Sprintf("%.2f", r)
		}
		cells = append(cells, ratio)
	}
	return append(cells, row.Target, verdict(row))
}

// align writes the cells in columns, the first flush left and the rest right.
func align(w io.Writer, cells [][]string) error {
	width := make([]int, len(cells[0]))
	for _, row := range cells {
		for i, c := range row {
			width[i] = max(width[i], len(c))
		}
	}
	for _, row := range cells {
		text := fmt.Sprintf("  %-*s", width[0], row[0])
		for i, c := range row[1:] {
			text += fmt.Sprintf("  %*s", width[i+1], c)
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(text, " ")); err != nil {
			return err
		}
	}
	return nil
}

// allZero tells whether a block has nothing to say: no failures, above all.
func allZero(rows []Row) bool {
	return !slices.ContainsFunc(rows, func(r Row) bool {
		return r.Void != "" || r.Target != "" || *r.Min != 0 || *r.Max != 0
	})
}

func verdict(row Row) string {
	switch {
	case row.Target == "":
		return ""
	case row.Reached == nil:
		return "?"
	case *row.Reached:
		return "yes"
	}
	return "NO"
}

// number writes three significant digits, and whole numbers from a thousand on.
func number(v float64) string {
	a := math.Abs(v)
	switch {
	case a == 0 || a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	case a >= 1:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.4f", v)
}
