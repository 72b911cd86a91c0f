package conntrack

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"decoynet/deception"
)

// The questions that a course of events leads to, second by second.
func TestQuestions(t *testing.T) {
	event := func(kind EventType, at int, id uint32, edit ...func(*Event)) Event {
		e := Event{
			Type: kind, ID: id, At: time.Unix(int64(at), 0), Transport: deception.TCP, TCPState: TCPEstablished,
			Orig: Tuple{Src: netip.MustParseAddrPort("192.0.2.9:1000"), Dst: netip.MustParseAddrPort("192.0.2.100:80")},
		}
		for _, f := range edit {
			f(&e)
		}
		return e
	}
	marked := func(e *Event) { e.Mark = MarkClientClosed }
	closed := func(e *Event) { e.TCPState = TCPClose }
	foreign := func(e *Event) { e.Mark = 7 }
	udp := func(e *Event) { e.Transport = deception.UDP }
	for _, tc := range []struct {
		name   string
		events []Event
		want   []int // seconds in which one question or more is asked
		idle   bool  // nothing is waited for in the end
	}{
		{"an open connection", []Event{event(EventNew, 0, 1), event(EventUpdate, 1, 1, foreign)}, nil, true},
		{"ended in time", []Event{event(EventUpdate, 0, 1, marked), event(EventDestroy, 1, 1)}, nil, true},
		{"half-closed for ever", []Event{event(EventUpdate, 0, 1, marked)}, []int{2, 4, 8, 16, 32, 64, 128}, true},
		{"half-closed for a while", []Event{event(EventUpdate, 0, 1, marked), event(EventDestroy, 9, 1)}, []int{2, 4, 8}, true},
		{"a second sign begins anew", []Event{event(EventUpdate, 0, 1, marked), event(EventUpdate, 5, 1, closed), event(EventDestroy, 8, 1)}, []int{2, 4, 7}, true},
		{"the next flow of the tuple", []Event{event(EventUpdate, 0, 1, marked), event(EventUpdate, 0, 2, closed), event(EventDestroy, 1, 1), event(EventDestroy, 3, 2)}, []int{2}, true},
		{"datagrams", []Event{event(EventNew, 0, 1, udp)}, []int{31, 62, 93, 124, 155, 186}, false},
		{"datagrams that ended", []Event{event(EventNew, 0, 1, udp), event(EventDestroy, 40, 1, udp)}, []int{31}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := &prompter{wake: make(chan struct{}, 1), waiting: map[flowKey]uint64{}, queues: make([][]question, len(patiences)+1)}
			var asked []int
			more := false
			for second := range 200 {
				for _, e := range tc.events {
					if e.At.Unix() == int64(second) {
						p.note(&e)
					}
				}
				var due []question
				if due, more = p.dueBy(time.Unix(int64(second), 0)); len(due) > 0 {
					asked = append(asked, second)
				}
			}
			if !slices.Equal(asked, tc.want) || more == tc.idle {
				t.Errorf("asked in %v, waiting: %v; want %v", asked, more, tc.want)
			}
		})
	}
}

func TestLinesKeepNothingOld(t *testing.T) {
	p := &prompter{wake: make(chan struct{}, 1), waiting: map[flowKey]uint64{}, queues: make([][]question, len(patiences)+1)}
	at := time.Unix(0, 0)
	for id := range uint32(50000) {
		e := Event{Type: EventUpdate, ID: id, At: at, Transport: deception.TCP, Mark: MarkClientClosed}
		p.note(&e)
		e.Type = EventDestroy
		p.note(&e)
		at = at.Add(time.Millisecond)
		if id%200 == 0 {
			p.dueBy(at)
		}
	}
	p.dueBy(at.Add(time.Hour))
	for line, q := range p.queues {
		if len(q) != 0 || cap(q) > 20000 {
			t.Errorf("line %d holds %d, has room for %d", line, len(q), cap(q))
		}
	}
	if len(p.waiting) != 0 {
		t.Errorf("%d wait", len(p.waiting))
	}
}
