package demo

import (
	"context"
	"fmt"
	"time"

	"decoynet/internal/lab"
	"decoynet/internal/suricata"
)

// suricataPatience is how long Suricata may take to be there: it reads its rules
// twice, beside everything else that starts.
const suricataPatience = 20 * time.Second

// inspectStatus is what the demo needs to know of the analysis on gw.
type inspectStatus struct {
	Feed     struct{ Lost uint64 }
	Suricata *suricata.Status // nil: decoynet runs none
}

// missing says why there is no Suricata on this machine and how to get one, "" where
// it is there, or decoynet is not to run one.
func (i *inspectStatus) missing() string {
	if i == nil || i.Suricata == nil || !noSuricata(i.Suricata.Error) {
		return ""
	}
	return i.Suricata.Error
}

// wanted tells whether decoynet is to run a Suricata, and one can be had.
func (i *inspectStatus) wanted() bool {
	return i != nil && i.Suricata != nil && i.missing() == ""
}

// awaitSuricata waits until Suricata is as far as a state, where one is to run and
// can. It is there as a process, its rules tested, before it is Running: then it has
// answered.
func (s *Stage) awaitSuricata(ctx context.Context, state suricata.State) (*inspectStatus, error) {
	var is *inspectStatus
	err := lab.Eventually(ctx, suricataPatience, func() error {
		st, err := s.status(ctx)
		if err != nil {
			return err
		}
		is = st.Inspect
		if !is.wanted() || is.Suricata.State == suricata.Running || is.Suricata.State == state && is.Suricata.PID != 0 {
			return nil
		}
		return fmt.Errorf("suricata is %s: %s", is.Suricata.State, is.Suricata.Error)
	})
	if err != nil {
		return is, fmt.Errorf("wait for Suricata: %w", err)
	}
	return is, nil
}

// alerts returns all that `decoynet get alerts` lists.
func (s *Stage) alerts(ctx context.Context) ([]alert, error) {
	return listed(ctx, s, "alerts", alertOf)
}

// Analysis says in a line whether a Suricata looks on, or how to get one.
func (s *Stage) Analysis(ctx context.Context) string {
	is, err := s.awaitSuricata(ctx, suricata.Running)
	switch {
	case err != nil:
		return fmt.Sprintf("%v; `decoynet status` on gw says more", err)
	case is.missing() != "":
		return "nothing will be detected: " + is.missing()
	case !is.wanted():
		return "no Suricata of decoynet's looks on: the document does not ask for one"
	}
	return fmt.Sprintf("Suricata %s looks on, with %d rules", is.Suricata.Version, is.Suricata.Rules.Rules)
}

// lookOn waits for Suricata, which decoynet has started beside everything else, and
// looks as whom it runs. Without one the demo goes on.
func (s *show) lookOn(ctx context.Context) error {
	s.screen.step("wait for Suricata on gw")
	is, err := s.stage.awaitSuricata(ctx, suricata.Starting)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if missing := is.missing(); err == nil && missing != "" {
		s.screen.result("there is none, so nothing will be detected", nil)
		s.screen.printed(missing)
		return nil
	}
	s.detects = true // or should
	if err != nil {
		s.screen.result("", err)
		s.blind = append(s.blind, err.Error())
		return nil
	}
	says := fmt.Sprintf("%s, %d rules, as user nobody without any privilege", is.Suricata.Version, is.Suricata.Rules.Rules)
	uid, capabilities, err := privileges(is.Suricata.PID)
	if err == nil && (uid != nobody || capabilities != "") {
		err = fmt.Errorf("suricata runs as user %s with capabilities %s", uid, capabilities)
	}
	if err != nil {
		s.blind = append(s.blind, err.Error())
	}
	s.screen.result(says, err)
	s.summary.Suricata = is.Suricata.Version
	return nil
}

// detected tells what comes out about Suricata's alerts.
func (s *show) detected(e evidence, v alertVerdict, is *inspectStatus) {
	s.summary.Alerts = len(e.Alerts)
	if !s.detects {
		s.screen.omitted("suricata", "none on this machine: nothing was detected")
		return
	}
	faults := append(v.Faults, s.blind...)
	if is.wanted() {
		if is.Suricata.Failures > 0 {
			faults = append(faults, fmt.Sprintf("it ended by itself, %d times: %s", is.Suricata.Failures, is.Suricata.LastEnd))
		}
		if is.Feed.Lost > 0 {
			faults = append(faults, fmt.Sprintf("it was not shown %d connections", is.Feed.Lost))
		}
	}
	s.check("suricata", fmt.Sprintf("%d alerts about %d of the %d connections, each at the intruder's own address and port",
		len(e.Alerts), v.Detected, v.Connections), faults)
}
