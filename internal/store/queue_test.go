package store

import (
	"testing"

	"decoynet/deception"
)

func TestTheQueueGivesUpStartsBeforeEnds(t *testing.T) {
	const limit = 64 << 10
	q := newQueue(limit)
	s := session(base, 0)
	s.SourceHead = make([]byte, deception.HeadBytes)

	for i := range 2 * limit / recordFixed {
		q.putStart(running(session(base, i)))
	}
	count, bytes, lost := q.usage()
	if bytes > limit/2+recordMax || lost.starts == 0 || count == 0 {
		t.Fatalf("%d starts of %d bytes wait, %+v", count, bytes, lost)
	}
	startsKept, startsRefused := uint64(count), lost.starts

	ends := uint64(0)
	for ; ; ends++ {
		q.putEnd(s)
		_, bytes, lost = q.usage()
		if bytes > limit {
			t.Fatalf("%d bytes", bytes)
		}
		if lost.ends > 0 {
			break
		}
	}
	if lost.starts != startsKept+startsRefused {
		t.Errorf("%d starts lost of %d before an end was", lost.starts, startsKept+startsRefused)
	}
	if whole := int(ends - lost.heads); lost.heads == 0 || whole*recordMax < limit/2 {
		t.Errorf("%d with first bytes, %d without", whole, lost.heads)
	}
	if count, _, _ := q.usage(); uint64(count) != ends {
		t.Errorf("%d in the queue, %d put in", count, ends)
	}

	// What the writer holds counts as well.
	b := q.take(true)
	q.putEnd(s)
	if _, _, after := q.usage(); after.ends != lost.ends+1 {
		t.Errorf("room for an end while %d bytes are being written", b.bytes())
	}
	q.done()
	q.putEnd(s)
	if _, _, after := q.usage(); after.ends != lost.ends+1 {
		t.Errorf("no room for an end behind a written batch of %d bytes", b.bytes())
	}
}

func TestTheQueueHandsOutEverythingOnce(t *testing.T) {
	q := newQueue(16 << 20)
	const n = 30000 // more than one batch
	for i := range n {
		s := session(base, i)
		if i%3 == 0 {
			q.putStart(running(s))
		}
		q.putEnd(s)
	}
	seen := map[string]map[deception.SessionID]bool{"start": {}, "end": {}}
	read := func(kind string, l lane) {
		for _, c := range l.chunks {
			var r record
			for buf := c.buf; len(buf) > 0; {
				buf = readRecord(buf, &r)
				if seen[kind][deception.SessionID(r.id)] {
					t.Fatalf("%s %x twice", kind, r.id)
				}
				seen[kind][deception.SessionID(r.id)] = true
			}
		}
	}
	batches := 0
	for b := q.take(true); !b.empty(); b = q.take(true) {
		if b.starts.count > 0 && len(seen["end"])+b.ends.count < n {
			t.Fatal("starts came before all ends had")
		}
		read("end", b.ends)
		read("start", b.starts)
		q.done()
		batches++
	}
	if len(seen["end"]) != n || len(seen["start"]) != n/3 || batches < 2 {
		t.Errorf("%d ends, %d starts in %d batches", len(seen["end"]), len(seen["start"]), batches)
	}
	if count, bytes, lost := q.usage(); count != 0 || bytes != 0 || lost != (losses{}) {
		t.Errorf("%d records, %d bytes left, %+v", count, bytes, lost)
	}
}
