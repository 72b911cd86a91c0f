package eve

import (
	"bytes"
	"errors"
	"io"
	"time"
	"unicode/utf8"

	"decoynet/deception"
)

// relearnBytes is how much of the file before the checkpoint is looked at again, to
// know of which sessions its flows are.
const relearnBytes = 1 << 20

// take reads a line that begins at an offset of its file.
func (r *Reader) take(line []byte, offset int64, now time.Time, place func() checkpoint) {
	line, offset, ok := r.parse(line, offset)
	if !ok {
		return
	}
	e := &r.event
	if e.kind == kindStats {
		if r.cfg.Stats != nil {
			r.cfg.Stats(line)
		}
		return
	}
	if r.join.learn(e) {
		r.release(e.flow)
	}
	if e.waits() {
		for _, x := range r.hold.add(held{bytes.Clone(line), offset, place(), e.flow, now, false}) {
			r.giveUp(&x)
		}
		return
	}
	r.find(e, line, offset)
}

// waits tells whether another event may tell the session of this one.
func (e *event) waits() bool { return !e.ethernet && !e.packet && e.hasFlow && e.source.IsValid() }

// torn reads the last line of a file, which has no end.
func (r *Reader) torn(end ending, now time.Time) {
	if err := new(event).parse(end.line); err != nil {
		r.broken(end.line, errors.New("the file ends within it"), func(s *Stats) { s.Torn++ })
		return
	}
	r.take(end.line, end.offset, now, func() checkpoint { return r.follow.checkpointAt(position{}) })
}

// parse reads a line into r.event. Of a broken line it tries what may be a whole
// event behind the break; it returns what it has read and where that stood.
func (r *Reader) parse(line []byte, offset int64) ([]byte, int64, bool) {
	r.count(func(s *Stats) {
		s.Lines++
		s.Bytes += uint64(len(line)) + 1
	})
	if len(bytes.TrimSpace(line)) == 0 {
		return nil, 0, false
	}
	repaired := !utf8.Valid(line)
	if repaired {
		line = bytes.ToValidUTF8(line, []byte("\uFFFD"))
	}
	err := r.event.parse(line)
	if err != nil {
		r.broken(line, err, func(s *Stats) { s.Broken++ })
		at := salvage(line)
		if at < 0 || r.event.parse(line[at:]) != nil {
			return nil, 0, false
		}
		line, offset, repaired = line[at:], offset+int64(at), true
	}
	r.count(func(s *Stats) {
		if repaired {
			s.Repaired++
		}
		if r.event.kind != kindStats {
			s.LastEvent = r.event.time
		}
	})
	return line, offset, true
}

// eventStart is what Suricata's events begin with. It is nowhere else in a valid
// line: within a text its quotes would be escaped.
var eventStart = []byte(`{"timestamp":"`)

// salvage returns where in a broken line another event begins, -1 if none does: a
// writer that died has left half a line, to which the next one has appended.
func salvage(line []byte) int {
	if at := bytes.LastIndex(line, eventStart); at > 0 {
		return at
	}
	return -1
}

// find makes a finding of an event.
func (r *Reader) find(e *event, line []byte, offset int64) {
	f := &deception.Finding{ID: e.identifier(line, offset), Time: e.time, Node: r.cfg.Node, Kind: e.kind, Application: e.application()}
	var v verdict
	f.Session, f.Partial, v = r.join.join(e)
	alert := e.kind == deception.KindAlert
	r.judged(v, alert)
	if f.Session.IsZero() && !alert && v != mismatched {
		return
	}
	f.Source, f.Destination, f.Transport = e.source, e.destination, e.transport
	if alert {
		f.Alert = e.alert()
		if !f.Session.IsZero() && e.packet {
			f.Alert.ToService = !e.turned
		}
	}
	if r.cfg.Lost != nil {
		f.FeedLost = r.cfg.Lost()
	}
	var trimmed bool
	if f.Document, trimmed = e.document(deception.FindingBytes); trimmed {
		r.count(func(s *Stats) { s.Trimmed++ })
	}
	r.batch.add(f)
}

// release finds the events that waited for a flow's session.
func (r *Reader) release(flow uint64) {
	if len(r.hold.list) == 0 {
		return
	}
	for _, x := range r.hold.take(flow) {
		var e event
		if e.parse(x.line) != nil {
			continue // it was valid before
		}
		r.join.learn(&e)
		r.find(&e, x.line, x.offset)
	}
}

// expire hands over the events that have waited long enough.
func (r *Reader) expire(now time.Time) {
	for _, x := range r.hold.due(now) {
		var e event
		if e.parse(x.line) == nil && e.kind == deception.KindAlert {
			r.find(&e, x.line, x.offset)
		}
	}
}

// giveUp ends the search for the session of an event.
func (r *Reader) giveUp(x *held) {
	var e event
	if e.parse(x.line) != nil || x.handed && e.kind == deception.KindAlert {
		return // handed over before
	}
	r.find(&e, x.line, x.offset)
}

// relearn reads again what is before the place where reading goes on, for the sake
// of the flows' sessions. Events that found none are awaited again.
func (r *Reader) relearn() {
	t := r.follow.tail
	if t == nil {
		return
	}
	end := t.base + int64(t.at)
	start := max(0, end-relearnBytes)
	b := make([]byte, end-start)
	if n, err := t.file.ReadAt(b, start); n < len(b) && err != io.EOF {
		r.failed(err)
		return
	}
	if start > 0 { // it begins within a line
		_, rest, _ := bytes.Cut(b, []byte{'\n'})
		start += int64(len(b) - len(rest))
		b = rest
	}
	for line := range bytes.Lines(b) {
		e := &r.event
		body := bytes.TrimSuffix(line, []byte{'\n'})
		if e.parse(body) == nil && e.kind != kindStats {
			if r.join.learn(e) && len(r.hold.list) > 0 {
				r.hold.take(e.flow)
			}
			if e.waits() {
				r.hold.add(held{line: bytes.Clone(body), offset: start, flow: e.flow, handed: true})
			}
		}
		start += int64(len(line))
	}
}
