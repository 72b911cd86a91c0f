package store

import (
	"slices"
	"unsafe"

	"decoynet/deception"
	"decoynet/internal/evedoc"
)

// finding is a finding on its way into its row: made on its teller's time, so that
// the one writer has little to do.
type finding struct {
	deception.Finding        // without document
	packed            []byte // the document
	says              deception.Analysis
}

const (
	// maxSignature and maxCategory bound what is kept of a rule's texts, in bytes.
	maxSignature = 1024
	maxCategory  = 255
	// maxFindings is how many the writer takes at once.
	maxFindings = 4096
)

func newFinding(f *deception.Finding) *finding {
	n := &finding{Finding: *f, packed: pack(f.Document)}
	n.Document, n.Of = nil, deception.Place{}
	n.Node, n.Kind, n.Application = clean(f.Node, maxName), clean(f.Kind, maxName), clean(f.Application, maxName)
	n.Scanner = clean(f.Scanner, maxName)
	n.FeedLost = min(f.FeedLost, maxCount)
	if f.Alert != nil {
		rule := *f.Alert
		rule.Signature, rule.Category = clean(rule.Signature, maxSignature), clean(rule.Category, maxCategory)
		n.Alert = &rule
	}
	if f.Session.IsZero() {
		return n
	}
	a := &n.says
	evedoc.Analyse(f.Kind, f.Document, a)
	for _, text := range a.Texts() {
		*text = clean(*text, maxName)
	}
	if n.Application != "failed" { // Suricata's word for "looked in vain"
		a.Application = n.Application
	}
	a.Findings, a.Partial = 1, f.Partial
	if n.Alarming() {
		a.Alerts, a.Severity = 1, n.Alert.Severity
	}
	return n
}

// bytes is about the memory that it takes.
func (f *finding) bytes() int {
	n := int(unsafe.Sizeof(*f)) + len(f.packed) + len(f.Node) + len(f.Kind) + len(f.Application)
	if f.Alert != nil {
		n += int(unsafe.Sizeof(*f.Alert)) + len(f.Alert.Signature) + len(f.Alert.Category)
	}
	for _, text := range f.says.Texts() {
		n += len(*text)
	}
	return n
}

// Finding records what Suricata says of a session. It copies what it needs, never
// waits and may be called from any thread. The same finding told twice is recorded
// once; one without an identifier is none.
//
// What does not fit is counted as lost. Who can wait asks Room first.
func (r *Recorder) Finding(f *deception.Finding) {
	if !f.ID.IsZero() {
		r.queue.putFinding(newFinding(f))
	}
}

// Room tells whether there is room for findings, with some to spare: a thousand
// told after it was asked are not lost.
func (r *Recorder) Room() bool { return r.queue.room() }

// putFinding has half of the queue, as putProbe does.
func (q *queue) putFinding(f *finding) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed || q.bytes() > q.limit/2 {
		q.lost.findings++
		return
	}
	q.waiting.addFinding(f)
	switch n := len(q.waiting.findings); {
	case n == maxFindings:
		signal(q.urgent)
	case q.waiting.count() == 1:
		signal(q.wake)
	}
}

// room is less than findings may have, so that who asks and tells in turns never
// meets the limit.
func (q *queue) room() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.closed && q.bytes() <= q.limit/4
}

func (l *load) addFinding(f *finding) {
	l.findings = append(l.findings, f)
	l.findingBytes += f.bytes()
}

// cutFindings takes the oldest.
func (l *load) cutFindings(most int) (out []*finding, bytes int) {
	n := min(len(l.findings), most)
	out, l.findings = l.findings[:n:n], l.findings[n:]
	for _, f := range out {
		bytes += f.bytes()
	}
	l.findingBytes -= bytes
	return out, bytes
}

// A finding is told a second time where its session was not known the first time.
const (
	ifSessionIsNews    = "ON CONFLICT (id) DO UPDATE SET session = excluded.session, partial = excluded.partial, scanner = excluded.scanner,"
	whereSessionIsNews = "WHERE finding.session IS NULL AND excluded.session IS NOT NULL"
)

// findings writes those that are not there yet, and what they say of their
// sessions.
func (w *writer) findings(all []*finding) error {
	for part := range slices.Chunk(all, maxFindings) {
		rules := make([]int64, len(part))
		for i, f := range part {
			if f.Alert == nil {
				continue
			}
			var err error
			if rules[i], err = w.rule(f.Alert); err != nil {
				return err
			}
		}
		fresh, err := w.conn.insertFindings(part, rules)
		if err != nil {
			return err
		}
		w.found += len(fresh)
		if err := w.analyse(fresh); err != nil {
			return err
		}
	}
	return nil
}

// manyRules bounds what is kept in memory of the table rule.
const manyRules = 1 << 16

// rule returns the row of an alert's rule, a new one where there is none.
func (w *writer) rule(a *deception.Alert) (id int64, err error) {
	key := *a
	key.ToService = false // that is the alert's, not its rule's
	if id = w.rules[key]; id != 0 {
		return id, nil
	}
	args := []any{int64(a.GID), int64(a.SID), int64(a.Revision), int64(a.Severity), a.Signature, a.Category}
	const search = `SELECT id FROM rule WHERE gid = $1 AND sid = $2 AND revision = $3
		AND severity = $4 AND signature = $5 AND category = $6`
	if id, err = w.number(search, args...); err == nil && id == 0 {
		if _, err = w.conn.exec(`INSERT INTO rule (gid, sid, revision, severity, signature, category)
			VALUES ($1, $2, $3, $4, $5, $6)`, args...); err == nil {
			id, err = w.number(search, args...)
		}
	}
	if err != nil {
		return 0, err
	}
	if len(w.rules) == manyRules {
		clear(w.rules)
	}
	w.rules[key] = id
	return id, nil
}
