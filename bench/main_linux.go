// Command bench measures decoynet against its peers: the same work, side by
// side in one run, in network namespaces of its own. It prints a table and
// writes the figures to bench/out/NAME.json.
//
// All subjects are up at once and take turns within every round. Load, service
// and gateway share the machine's cores, so the ratios count, not the figures:
// each is the median of the ratios within the rounds. What keeps them honest:
//
//   - The service tells every client which source it saw. One wrong address
//     voids the figure; moved ports are counted.
//   - Load and service are one thread each that does little more than the
//     system calls, so that the gateway is what is measured.
//   - The peers run on machines that are tuned for them (TIME_WAIT, splicing,
//     threads, limits), decoynet on one that is not.
//   - What a gateway process is charged for holds the network's share that the
//     kernel does in its name: the hops over the bridges, too. That share is
//     the same for all relays.
//   - Two machines of a chain have what is between them for themselves. A long
//     way is a process that carries whole frames with a delay, so that TCP and
//     QUIC see it as they see a long line; what it loses voids the figure.
//   - Connections per second are taken at one decoy, where source ports come
//     round in order and no subject gets two flows from one port; what happens
//     over many decoys is a figure of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"decoynet/bench/subject"
)

// options are the command's flags.
type options struct {
	only     string
	subjects string
	figures  string
	rounds   int
	duration time.Duration
	decoynet string
	out      string
	closes   string
	verbose  bool
	quick    bool
	decoys   int
}

func main() {
	if handled, err := runRole(os.Args[1:]); handled {
		exit(err)
	}
	var o options
	only := flag.String("only", strings.Join(usualSuites, ","), "comma-separated suites to run: "+strings.Join(suiteNames(), ", "))
	flag.StringVar(&o.subjects, "subjects", "", "comma-separated subjects (default: all of the suite)")
	flag.StringVar(&o.figures, "figures", "", "comma-separated groups of figures: "+strings.Join(groupNames(), ", ")+"; of carriers, names of metrics or their beginnings (default: all)")
	flag.IntVar(&o.rounds, "rounds", 0, fmt.Sprintf("rounds; subjects take turns within each (default: the suite's own: %d, carriers and scale 3, endurance 1)", defaultRounds))
	flag.DurationVar(&o.duration, "duration", 0, "of a single measurement (default: the suite's own: 1.5s, delay 5s, carriers 1s, scale 10s, decoys and sensing 2s, endurance 5m)")
	flag.StringVar(&o.decoynet, "decoynet", "bin/decoynet", "the binary to measure; peers alone are measured where it is missing")
	flag.StringVar(&o.out, "out", "bench/out", "folder of the JSON files")
	flag.StringVar(&o.closes, "close", "client", "who closes a connection first: client or service")
	flag.BoolVar(&o.verbose, "v", false, "print every sample as it is taken")
	flag.BoolVar(&o.quick, "quick", false, "one short round, to see that everything works; its figures say nothing")
	flag.IntVar(&o.decoys, "decoys", subject.Decoys, fmt.Sprintf("decoys to spread connections over where a figure does so; %d at most", subject.Decoys))
	flag.Parse()
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	exit(runAll(ctx, *only, o))
}

// runAll runs suites one after the other; one that fails does not hold up the
// others.
func runAll(ctx context.Context, only string, o options) error {
	var errs []error
	for name := range strings.SplitSeq(only, ",") {
		if ctx.Err() != nil {
			break
		}
		o.only = name
		if err := run(ctx, o, os.Stdout); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}
