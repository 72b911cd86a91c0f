package store

import (
	"context"
	"errors"
	"time"

	"decoynet/deception"
)

const (
	// keptChanges is how many batches a follower may lag behind before it has
	// to search the table instead.
	keptChanges = 512
	// manyIDs is how many identifiers one statement names.
	manyIDs = 256
	// manyHints and manyBindings bound what is kept in memory to save
	// statements.
	manyHints    = 1 << 20
	manyBindings = 1 << 14
)

// writer turns batches into transactions. It belongs to one goroutine.
type writer struct {
	back     backend
	ctx      context.Context // ends what hangs
	retain   time.Duration
	maxBytes int64

	conn  connection // nil while there is none
	me    int64      // this recorder, in the table reporter
	alive int64      // when the run before last showed that it lived, ns

	rows     []record             // on their way into one statement
	ids      []int64              // rows of the table binding for the queue's binding numbers, 0 if not known yet
	bindings map[bindingKey]int64 // the same for deliveries
	nodes    map[string]int64     // rows of the table reporter
	endedIDs idSet                // fold of the ends since the queue was last empty
	running  map[uint64]struct{}  // fold of sessions that probably have a row, of their start
	rules    map[deception.Alert]int64

	// Of the transaction under way:
	tallies     []tally         // per binding number of the queue
	touched     []uint32        // the numbers in tallies that are not zero
	corrections map[int64]tally // per row of binding
	changed     []byte          // identifiers of sessions that are new or different
	met         []record        // sessions that have a row already
	ended       int             // sessions that ended
	began       int             // sessions that were written while they run
	found       int             // findings that are new

	updates   map[int]string // totalsUpdate for the numbers of rows in use
	fileBytes int64
	tended    time.Time
}

func openWriter(ctx context.Context, back backend, name string, retain time.Duration, maxBytes int64) (*writer, error) {
	w := &writer{
		back: back, ctx: ctx, retain: retain, maxBytes: maxBytes,
		bindings:    make(map[bindingKey]int64),
		nodes:       make(map[string]int64),
		updates:     make(map[int]string),
		running:     make(map[uint64]struct{}),
		rules:       make(map[deception.Alert]int64),
		corrections: make(map[int64]tally),
	}
	if err := w.open(); err != nil {
		return nil, err
	}
	err := w.transact(false, func() (err error) {
		if w.me, err = w.reporter("recorder", name); err != nil {
			return err
		}
		w.alive, err = w.number("SELECT alive FROM reporter WHERE id = $1", w.me)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// open connects, or returns at once where that was done.
func (w *writer) open() error {
	if w.conn != nil {
		return nil
	}
	conn, err := w.back.connect(w.ctx)
	if err != nil {
		return err
	}
	w.conn = conn
	if w.rows == nil {
		w.rows = make([]record, 0, conn.rows())
	}
	w.forget()
	if err := w.measure(); err != nil {
		return errors.Join(err, w.close())
	}
	return nil
}

func (w *writer) close() error {
	if w.conn == nil {
		return nil
	}
	err := w.conn.close()
	w.conn = nil
	return err
}

// forget gives up what is known of the tables binding, reporter and rule.
func (w *writer) forget() {
	clear(w.ids)
	clear(w.bindings)
	clear(w.nodes)
	clear(w.rules)
}

// transact runs do in a transaction. After a failure nothing of it is in the
// database, and the connection is as before or will be opened anew.
func (w *writer) transact(durable bool, do func() error) error {
	if err := w.open(); err != nil {
		return err
	}
	err := w.conn.transact(durable, do)
	if err == nil {
		return nil
	}
	w.forget() // rows made in a transaction that was rolled back do not exist
	if w.conn.usable(err) {
		return err
	}
	return errors.Join(err, w.close())
}

// number returns the integer that a query yields, 0 where it yields no row.
func (w *writer) number(text string, args ...any) (n int64, err error) {
	err = w.conn.query(text, args, func(values []any) error {
		n, _ = values[0].(int64)
		return nil
	})
	return n, err
}

// reporter returns the row of who records, a new one where there is none.
func (w *writer) reporter(kind, name string) (int64, error) {
	id, err := w.number("SELECT id FROM reporter WHERE kind = $1 AND name = $2", kind, name)
	if err != nil || id != 0 {
		return id, err
	}
	if _, err := w.conn.exec("INSERT INTO reporter (kind, name) VALUES ($1, $2)", kind, name); err != nil {
		return 0, err
	}
	return w.number("SELECT id FROM reporter WHERE kind = $1 AND name = $2", kind, name)
}

// node returns the row of a node that delivers.
func (w *writer) node(name string) (id int64, err error) {
	if id = w.nodes[name]; id != 0 {
		return id, nil
	}
	if id, err = w.reporter("node", name); err == nil {
		w.nodes[name] = id
	}
	return id, err
}

// write puts a batch into the database, all of it or nothing.
func (w *writer) write(b *batch) error {
	if err := w.transact(len(b.deliveries) > 0, func() error { return w.record(b) }); err != nil {
		return err
	}
	if b.drained {
		w.endedIDs.clear()
	}
	if len(w.running) > manyHints {
		clear(w.running)
	}
	return nil
}

// begin forgets the transaction before.
func (w *writer) begin() {
	for _, n := range w.touched {
		w.tallies[n] = tally{}
	}
	w.touched = w.touched[:0]
	clear(w.corrections)
	w.changed, w.met = w.changed[:0], w.met[:0]
	w.ended, w.began, w.found = 0, 0, 0
}

// record is a batch's transaction. Ends come before starts, so that a start
// whose end is here is not written at all.
func (w *writer) record(b *batch) error {
	w.begin()
	if n := len(b.keys) - len(w.tallies); n > 0 {
		w.tallies = append(w.tallies, make([]tally, n)...)
		w.ids = append(w.ids, make([]int64, n)...)
	}
	own := lot{ids: w.ids, origin: w.me, own: true}
	wantEnds := b.starts.count > 0 || !b.drained
	for _, d := range b.deliveries {
		wantEnds = wantEnds || d.starts.count > 0
	}
	if err := w.ends(&b.load, own, wantEnds); err != nil {
		return err
	}
	lots, err := w.lots(b.deliveries)
	if err != nil {
		return err
	}
	for i, d := range b.deliveries {
		if err := w.ends(&d.load, lots[i], wantEnds); err != nil {
			return err
		}
	}
	if err := w.starts(&b.load, own); err != nil {
		return err
	}
	for i, d := range b.deliveries {
		if err := w.starts(&d.load, lots[i]); err != nil {
			return err
		}
	}
	if err := w.mergeMet(); err != nil {
		return err
	}
	if err := w.notes(b); err != nil {
		return err
	}
	if err := w.addTallies(); err != nil {
		return err
	}
	return w.logChange()
}

// lot is where the sessions of a load come from.
type lot struct {
	ids    []int64          // rows of the table binding for its binding numbers
	origin int64            // who says that its sessions run; 0 if not known
	node   string           // who delivers
	lost   map[string]int64 // before when the sessions of a node are lost, ns
	own    bool             // recorded here, not delivered
}

func (w *writer) lots(deliveries []*delivery) (lots []lot, err error) {
	var lost map[string]int64
	for _, d := range deliveries {
		l := lot{ids: make([]int64, len(d.keys)), node: d.node}
		if d.starts.count > 0 {
			if lost == nil {
				if lost, err = w.lostNodes(); err != nil {
					return nil, err
				}
			}
			l.lost = lost
			if d.node != "" {
				if l.origin, err = w.node(d.node); err != nil {
					return nil, err
				}
			}
		}
		lots = append(lots, l)
	}
	return lots, nil
}

// lostNodes returns the nodes of which Lost was told.
func (w *writer) lostNodes() (map[string]int64, error) {
	lost := make(map[string]int64)
	err := w.conn.query("SELECT name, lost_before FROM reporter WHERE kind = 'node' AND lost_before > 0", nil,
		func(values []any) error {
			row := rowReader{values: values}
			name := row.text()
			lost[name] = row.number()
			return row.err
		})
	return lost, err
}

// isLost tells whether a session that is said to run was lost with its node.
func (l *lot) isLost(r *record, k *bindingKey) (before int64, lost bool) {
	before = max(l.lost[k.node], l.lost[l.node])
	return before, r.start < before
}

func (w *writer) ends(l *load, from lot, remember bool) error {
	return w.lane(l.ends, l.keys, from, func(r *record) bool {
		if remember {
			w.endedIDs.add(fold(r.id))
		}
		w.count(r, from.own)
		return true
	})
}

func (w *writer) starts(l *load, from lot) error {
	return w.lane(l.starts, l.keys, from, func(r *record) bool {
		if w.endedIDs.has(fold(r.id)) {
			return false
		}
		r.end, r.reason = 0, byte(deception.EndNone) // whatever the caller's structure held
		if before, lost := from.isLost(r, &l.keys[r.binding]); lost {
			r.end, r.reason = before, byte(deception.EndLost)
			w.count(r, from.own)
			return true
		}
		r.origin = from.origin
		w.running[fold(r.id)] = struct{}{}
		w.began++
		return true
	})
}

// lane writes the sessions of a lane that keep accepts. It takes all of them for
// new, which almost all are; the others wait in w.met.
func (w *writer) lane(l lane, keys []bindingKey, from lot, keep func(*record) bool) error {
	w.rows = w.rows[:0]
	for _, c := range l.chunks {
		for buf := c.buf; len(buf) > 0; {
			r := &w.rows[:len(w.rows)+1][len(w.rows)] // in its place, or not at all
			buf = readRecord(buf, r)
			id, err := w.binding(r.binding, keys, from)
			if err != nil {
				return err
			}
			r.bindingID = id
			r.flags = skew(r.id, r.start)
			switch {
			case !keep(r):
				continue
			case w.hasRow(r):
				w.met = append(w.met, *r)
				continue
			}
			w.rows = w.rows[:len(w.rows)+1]
			if len(w.rows) == cap(w.rows) {
				if err := w.insert(); err != nil {
					return err
				}
			}
		}
	}
	return w.insert()
}

// hasRow tells of an end whether its start was written, as far as is known.
func (w *writer) hasRow(r *record) bool {
	if r.end == 0 || len(w.running) == 0 {
		return false
	}
	_, ok := w.running[fold(r.id)]
	if ok {
		delete(w.running, fold(r.id))
	}
	return ok
}

// insert writes w.rows.
func (w *writer) insert() error {
	if len(w.rows) == 0 {
		return nil
	}
	met, err := w.conn.insert(w.rows)
	if err != nil {
		return err
	}
	for i := range w.rows {
		if len(met) > 0 && met[0] == i {
			met = met[1:]
			w.met = append(w.met, w.rows[i])
			continue
		}
		w.changed = append(w.changed, w.rows[i].id...)
	}
	w.rows = w.rows[:0]
	return nil
}

// binding returns the row of the table binding for a binding number.
func (w *writer) binding(n uint32, keys []bindingKey, from lot) (id int64, err error) {
	if id = from.ids[n]; id != 0 {
		return id, nil
	}
	key := &keys[n]
	if id = w.bindings[*key]; id == 0 {
		if id, err = w.bindingRow(key); err != nil {
			return 0, err
		}
		if len(w.bindings) == manyBindings {
			clear(w.bindings)
		}
		w.bindings[*key] = id
	}
	from.ids[n] = id
	return id, nil
}

func (w *writer) bindingRow(k *bindingKey) (int64, error) {
	c := *k
	cleanKey(&c)
	args := []any{c.node, c.segment, c.decoy, c.service, int64(c.transport), string(c.path), c.scanner}
	const search = `SELECT id FROM binding WHERE node = $1 AND segment = $2 AND decoy = $3
		AND service = $4 AND transport = $5 AND path = $6 AND scanner = $7`
	id, err := w.number(search, args...)
	if err != nil || id != 0 {
		return id, err
	}
	if _, err := w.conn.exec(`INSERT INTO binding (node, segment, decoy, service, transport, path, scanner)
		VALUES ($1, $2, $3, $4, $5, $6, $7)`, args...); err != nil {
		return 0, err
	}
	return w.number(search, args...)
}
