package eve

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"decoynet/deception"
)

// maxKinds bounds the event types that are counted each by itself.
const maxKinds = 64

// otherKinds is where the rest is counted.
const otherKinds = "other"

// Stats is the state of a reader, for status. Counters begin with the reader.
type Stats struct {
	Lines, Bytes uint64
	Behind       int64             // bytes of the file being read that are still to come
	Findings     map[string]uint64 // handed over, by kind
	Alerts       uint64            // of them alerts
	LastEvent    time.Time         // time of the newest event that was read

	// How events and sessions were joined. Unlisted have the session that their MAC
	// addresses name, though the feed does not know it (any longer). The others have
	// none: Unknown have MAC addresses of no session, Mismatched the addresses of
	// another flow, and Addressless no MAC addresses, which is so where Suricata
	// runs without `ethernet: yes` below eve-log. Of Unknown and Addressless only
	// alerts are handed over; Dropped counts the rest.
	Unlisted, Unknown, Mismatched, Addressless, Dropped uint64
	Held                                                int // events that wait for another one of their flow

	// Broken lines are no events. Of Repaired ones something was: bytes that are
	// no UTF-8, or an event behind half a line. Oversized lines are longer than is
	// read, Torn are ends of files. Trimmed documents had parts that are too large.
	Broken, Repaired, Oversized, Torn, Trimmed uint64

	// Rotations are changes to another file, Truncations files that became shorter.
	// Missed is how often events may not have been read: the file that was being read
	// was not found any more after a restart, or a compressed one is damaged.
	Rotations, Truncations, Missed uint64

	Refused      uint64 // batches that were not taken at once
	LastError    error  // the newest failure, also after it is over
	LastErrorAt  time.Time
	FailingSince time.Time // zero while reading works
}

// Stats returns the state of the reader.
func (r *Reader) Stats() Stats {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.stats
	s.Findings = maps.Clone(s.Findings)
	return s
}

func (r *Reader) noteDone(done []finished) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done = done
}

func (r *Reader) count(change func(s *Stats)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.stats)
}

// judged counts how an event was joined.
func (r *Reader) judged(v verdict, alert bool) {
	var explain bool
	r.count(func(s *Stats) {
		switch v {
		case unlisted:
			s.Unlisted++
		case mismatched:
			s.Mismatched++
		case unknown:
			s.Unknown++
		case addressless:
			s.Addressless++
			explain = s.Addressless == 1
		}
		if (v == unknown || v == addressless) && !alert {
			s.Dropped++
		}
	})
	if explain {
		r.cfg.Log.Warn("an event of Suricata tells no MAC addresses, so its session is not known; "+
			"where that is so of all, set `ethernet: yes` below eve-log in suricata.yaml", "file", r.cfg.Path)
	}
}

func (r *Reader) delivered(list []*deception.Finding) {
	r.count(func(s *Stats) {
		if s.Findings == nil {
			s.Findings = map[string]uint64{}
		}
		for _, f := range list {
			kind := f.Kind
			if _, ok := s.Findings[kind]; !ok && len(s.Findings) >= maxKinds {
				kind = otherKinds
			}
			s.Findings[kind]++
			if f.Alert != nil {
				s.Alerts++
			}
		}
	})
}

// progress copies what the files tell; n bytes came.
func (r *Reader) progress(n int) {
	behind := int64(0)
	long, holes := r.follow.long, r.follow.holes
	if t := r.follow.tail; t != nil {
		if n > 0 {
			behind = t.lag()
		} else {
			behind = int64(len(t.buf) - t.at)
		}
		long += t.long
		holes += t.holes
	}
	r.count(func(s *Stats) {
		s.Behind = behind
		s.Held = len(r.hold.list)
		s.Oversized = long
		s.Rotations, s.Truncations, s.Missed = r.follow.rotations, r.follow.truncations, r.follow.missed
	})
	if missed := r.follow.missed; missed > r.noted.missed {
		r.noted.missed = missed
		r.cfg.Log.Warn("events of Suricata may not have been read", "file", r.cfg.Path, "error", r.follow.missing)
		if r.cfg.Missed != nil {
			r.cfg.Missed(r.follow.missing)
		}
	}
	if holes > r.noted.holes {
		r.noted.holes = holes
		r.broken(nil, fmt.Errorf("%s has NUL bytes instead", r.cfg.Path), func(s *Stats) { s.Broken++ })
	}
}

// noted is what was told already.
type noted struct {
	holes  uint64
	missed uint64
	at     time.Time // the last broken line
	quiet  int       // those since
	err    string
}

const (
	noteEvery = 10 * time.Second
	noteBytes = 64
)

// broken counts a line that is no event and says so, but not too often.
func (r *Reader) broken(line []byte, err error, change func(s *Stats)) {
	r.count(change)
	if now := time.Now(); now.Sub(r.noted.at) >= noteEvery {
		r.cfg.Log.Warn("a line of Suricata's events cannot be read", "error", err, "begins", fmt.Sprintf("%q", line[:min(len(line), noteBytes)]),
			"bytes", len(line), "others", r.noted.quiet)
		r.noted.at, r.noted.quiet = now, 0
		return
	}
	r.noted.quiet++
}

func (r *Reader) refused(err error) {
	behind := r.follow.tail.lag()
	r.count(func(s *Stats) {
		s.Refused++
		s.Behind = behind
		if errors.Is(err, ErrBusy) || errors.Is(err, context.Canceled) {
			return
		}
		s.LastError, s.LastErrorAt = fmt.Errorf("hand findings over: %w", err), time.Now()
	})
}

// failed notes that reading does not work; with nil, that it does.
func (r *Reader) failed(err error) {
	if err == nil {
		if r.noted.err != "" {
			r.noted.err = ""
			r.count(func(s *Stats) { s.FailingSince = time.Time{} })
		}
		return
	}
	r.count(func(s *Stats) {
		s.LastError, s.LastErrorAt = err, time.Now()
		if s.FailingSince.IsZero() {
			s.FailingSince = s.LastErrorAt
		}
	})
	if text := err.Error(); text != r.noted.err {
		r.noted.err = text
		r.cfg.Log.Error("Suricata's events cannot be read", "error", err)
	}
}
