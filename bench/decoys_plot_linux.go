package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"

	"decoynet/deception"
)

// panel is one of the plot's three axes.
type panel struct {
	metric, title, unit string
	most                float64 // the target, 0 where there is none
}

const (
	panelWidth, panelHeight = 300, 200
	panelMargin             = 60
)

// writeDecoysPlot draws memory, time and rate against the number of decoys:
// medians as points, minimum to maximum as bars. One segment is the line; the
// crowds in 256 segments stand beside it.
func writeDecoysPlot(b *bench) error {
	panels := []panel{{"rss", "resident memory", "MB", 150}, {"ready", "start to ready", "s", 5}, {"connections", "connections to random decoys", "1/s", 0}}
	rows := b.report.Rows()
	var out strings.Builder
	width, height := len(panels)*(panelWidth+panelMargin)+20, panelHeight+110
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="11">`+"\n", width, height)
	fmt.Fprintf(&out, `<rect width="%d" height="%d" fill="white"/>`+"\n", width, height)
	for i, p := range panels {
		var points []plotPoint
		for _, c := range crowds {
			for _, r := range rows {
				if r.Name == c.name && r.Metric == p.metric && r.Median != nil {
					points = append(points, plotPoint{c, *r.Median, *r.Min, *r.Max})
				}
			}
		}
		drawPanel(&out, panelMargin+i*(panelWidth+panelMargin), p, points)
	}
	out.WriteString("</svg>\n")
	path := filepath.Join(b.out, "decoys.svg")
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return fmt.Errorf("make the folder of the plot: %w", err)
	}
	if err := os.WriteFile(path, []byte(out.String()), 0o644); err != nil {
		return fmt.Errorf("write the plot: %w", err)
	}
	fmt.Fprintf(b.log, "\nplot: %s\n", path)
	return nil
}

type plotPoint struct {
	crowd
	median, low, high float64
}

func drawPanel(out *strings.Builder, left int, p panel, points []plotPoint) {
	const top = 40
	highest := p.most
	for _, v := range points {
		highest = max(highest, v.high)
	}
	highest *= 1.1
	x := func(v plotPoint) float64 {
		at := math.Log10(float64(v.segments*v.addresses)) / math.Log10(100_000) * panelWidth
		if v.segments > 1 {
			at += 12 // beside the point of the same number in one segment
		}
		return float64(left) + at
	}
	y := func(value float64) float64 { return top + panelHeight*(1-value/highest) }
	fmt.Fprintf(out, `<text x="%d" y="20" font-size="13" font-weight="bold">%s [%s]</text>`+"\n", left, p.title, p.unit)
	fmt.Fprintf(out, `<path d="M%d %d V%d H%d" fill="none" stroke="black"/>`+"\n", left, top, top+panelHeight, left+panelWidth)
	for i := range 5 {
		v := highest * float64(i) / 4
		digits := 0
		if highest < 10 {
			digits = 1
		}
		fmt.Fprintf(out, `<text x="%d" y="%.0f" text-anchor="end">%.*f</text>`+"\n", left-4, y(v)+4, digits, v)
	}
	for _, n := range []int{1, 10, 100, 1000, 10_000, 100_000} {
		at := float64(left) + math.Log10(float64(n))/5*panelWidth
		fmt.Fprintf(out, `<text x="%.0f" y="%d" text-anchor="middle">%d</text>`+"\n", at, top+panelHeight+16, n)
	}
	fmt.Fprintf(out, `<text x="%d" y="%d" text-anchor="middle">decoy addresses</text>`+"\n", left+panelWidth/2, top+panelHeight+34)
	if p.most > 0 {
		fmt.Fprintf(out, `<path d="M%d %.1f H%d" stroke="#c33" stroke-dasharray="5 4"/><text x="%d" y="%.1f" fill="#c33">at most %g</text>`+"\n",
			left, y(p.most), left+panelWidth, left+4, y(p.most)-4, p.most)
	}
	var line []string
	for _, v := range points {
		colour := "#26a"
		if v.segments > 1 {
			colour = "#e80"
			what, below := fmt.Sprintf("%d segments", v.segments), -4.0
			if v.claim == deception.ClaimProbe {
				what, below = what+", probed", 10 // two that are alike stand one above the other
			}
			fmt.Fprintf(out, `<text x="%.1f" y="%.1f" font-size="9" text-anchor="end" fill="%s">%s</text>`+"\n", x(v)-6, y(v.median)+below, colour, what)
		} else {
			line = append(line, fmt.Sprintf("%.1f %.1f", x(v), y(v.median)))
		}
		fmt.Fprintf(out, `<path d="M%.1f %.1f V%.1f" stroke="%s"/><circle cx="%.1f" cy="%.1f" r="4" fill="%s"/>`+"\n", x(v), y(v.low), y(v.high), colour, x(v), y(v.median), colour)
	}
	if len(line) > 1 {
		fmt.Fprintf(out, `<path d="M%s" fill="none" stroke="#26a"/>`+"\n", strings.Join(line, " L"))
	}
}
