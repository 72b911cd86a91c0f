package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// postgresRows is how many sessions one statement carries: all of a batch, as
// each statement is a round trip to the server.
const postgresRows = 8192

// postgresConn is a connection, with the statements that carry sessions.
type postgresConn struct {
	back   *postgresBackend
	conn   *pgx.Conn
	parent context.Context
	ctx    context.Context // of the transaction, nil outside of one
	table  [len(sessionTypes)]array
	// inserted tells which identifiers were new.
	inserted map[[16]byte]bool
}

func (b *postgresBackend) connect(ctx context.Context) (connection, error) {
	conn, err := pgx.ConnectConfig(ctx, b.cfg)
	if err != nil {
		return nil, b.failed("connect to", err)
	}
	c := &postgresConn{back: b, conn: conn, parent: ctx, inserted: make(map[[16]byte]bool)}
	for i, t := range sessionTypes {
		c.table[i].oid = t.oid
	}
	limited, cancel := context.WithTimeout(ctx, postgresLimit)
	defer cancel()
	for name, text := range map[string]string{"insert": insertSessions, "replace": replaceSessions} {
		if _, err := conn.Prepare(limited, name, text); err != nil {
			return nil, errors.Join(b.failed("connect to", err), c.close())
		}
	}
	return c, nil
}

func (c *postgresConn) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return c.conn.Close(ctx)
}

// begin also sees to it that a recorder that vanishes without a word, its
// machine cut off, does not hold up the others for long. Its one message is one
// round trip.
var begin = fmt.Sprintf(`BEGIN; SET LOCAL lock_timeout = '3s'; SET LOCAL statement_timeout = '30s';
	SET LOCAL idle_in_transaction_session_timeout = '10s'; SELECT pg_advisory_xact_lock(%d)`, lockWrite)

func (c *postgresConn) transact(durable bool, do func() error) error {
	ctx, cancel := context.WithTimeout(c.parent, postgresLimit)
	defer cancel()
	c.ctx = ctx
	defer func() { c.ctx = nil }()
	text := begin
	if !durable {
		text += "; SET LOCAL synchronous_commit = off"
	}
	_, err := c.conn.PgConn().Exec(ctx, text).ReadAll()
	if err == nil {
		err = do()
	}
	if err == nil {
		_, err = c.conn.Exec(ctx, "COMMIT")
	}
	if err == nil {
		return nil
	}
	if !c.conn.IsClosed() {
		if _, e := c.conn.Exec(ctx, "ROLLBACK"); e != nil {
			err = errors.Join(err, c.close())
		}
	}
	return c.back.failed("write to", err)
}

func (c *postgresConn) usable(error) bool { return !c.conn.IsClosed() }

func (c *postgresConn) exec(text string, args ...any) (int64, error) {
	tag, err := c.conn.Exec(c.ctx, text, args...)
	return tag.RowsAffected(), err
}

func (c *postgresConn) query(text string, args []any, row func([]any) error) error {
	if c.ctx != nil {
		return c.read(c.ctx, text, args, row)
	}
	ctx, cancel := context.WithTimeout(c.parent, postgresLimit)
	defer cancel()
	if err := c.read(ctx, text, args, row); err != nil {
		return c.back.failed("read", err)
	}
	return nil
}

func (c *postgresConn) read(ctx context.Context, text string, args []any, row func([]any) error) error {
	rows, err := c.conn.Query(ctx, text, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			return err
		}
		for i, v := range values {
			switch v := v.(type) {
			case int16:
				values[i] = int64(v)
			case int32:
				values[i] = int64(v)
			case [16]byte:
				values[i] = v[:]
			}
		}
		if err := row(values); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (c *postgresConn) rows() int { return postgresRows }

// sessionTypes are the columns of the table session.
var sessionTypes = [...]struct {
	name string
	oid  uint32
}{
	{"uuid", pgtype.UUIDOID},
	{"bigint", pgtype.Int8OID},
	{"bigint", pgtype.Int8OID},
	{"bigint", pgtype.Int8OID},
	{"inet", pgtype.InetOID},
	{"integer", pgtype.Int4OID},
	{"inet", pgtype.InetOID},
	{"integer", pgtype.Int4OID},
	{"inet", pgtype.InetOID},
	{"integer", pgtype.Int4OID},
	{"inet", pgtype.InetOID},
	{"integer", pgtype.Int4OID},
	{"bigint", pgtype.Int8OID},
	{"bigint", pgtype.Int8OID},
	{"smallint", pgtype.Int2OID},
	{"smallint", pgtype.Int2OID},
	{"bytea", pgtype.ByteaOID},
	{"bytea", pgtype.ByteaOID},
	{"smallint", pgtype.Int2OID},
	{"bigint", pgtype.Int8OID},
}

// The sessions of a statement are one array a column: a text that never changes,
// and hardly a byte more than the values.
var (
	insertSessions  = "INSERT INTO session SELECT * FROM " + sessionArrays() + " ON CONFLICT (id) DO NOTHING RETURNING id"
	replaceSessions = "INSERT INTO session SELECT * FROM " + sessionArrays() + ` ON CONFLICT (id) DO UPDATE SET
		start = excluded.start, finish = excluded.finish, binding = excluded.binding,
		source = excluded.source, source_port = excluded.source_port,
		source_nat = excluded.source_nat, source_nat_port = excluded.source_nat_port,
		destination = excluded.destination, destination_port = excluded.destination_port,
		destination_nat = excluded.destination_nat, destination_nat_port = excluded.destination_nat_port,
		source_bytes = excluded.source_bytes, destination_bytes = excluded.destination_bytes,
		source_mode = excluded.source_mode, reason = excluded.reason, source_head = excluded.source_head,
		destination_head = excluded.destination_head, flags = excluded.flags, origin = excluded.origin`
)

func sessionArrays() string {
	parts := make([]string, len(sessionTypes))
	for i, t := range sessionTypes {
		parts[i] = fmt.Sprintf("$%d::%s[]", i+1, t.name)
	}
	return "unnest(" + strings.Join(parts, ", ") + ")"
}

func (c *postgresConn) insert(sessions []record) (met []int, err error) {
	clear(c.inserted)
	if err := c.send("insert", sessions, func(id []byte) { c.inserted[[16]byte(id)] = true }); err != nil {
		return nil, err
	}
	if len(c.inserted) == len(sessions) {
		return nil, nil
	}
	for i := range sessions {
		// Of two with one identifier the first was written.
		if id := [16]byte(sessions[i].id); c.inserted[id] {
			c.inserted[id] = false
		} else {
			met = append(met, i)
		}
	}
	return met, nil
}

func (c *postgresConn) replace(sessions []record) error {
	return c.send("replace", sessions, func([]byte) {})
}

// send runs a statement for the sessions and hands over the identifiers that
// it returns.
func (c *postgresConn) send(statement string, sessions []record, returned func(id []byte)) error {
	for i := range c.table {
		c.table[i].reset(len(sessions))
	}
	for i := range sessions {
		c.fill(&sessions[i])
	}
	params, formats := make([][]byte, len(c.table)), []int16{pgtype.BinaryFormatCode}
	for i := range c.table {
		params[i] = c.table[i].buf
	}
	result := c.conn.PgConn().ExecPrepared(c.ctx, statement, params, formats, formats)
	for result.NextRow() {
		returned(result.Values()[0])
	}
	_, err := result.Close()
	return err
}

// fill appends the session to the columns.
func (c *postgresConn) fill(r *record) {
	t := &c.table
	t[0].bytes(r.id)
	t[1].bigint(r.start, true)
	t[2].bigint(r.end, r.end != 0)
	t[3].bigint(r.bindingID, true)
	sourceNAT := r.sourceNAT
	if r.same {
		sourceNAT = r.source
	}
	for i, endpoint := range [][]byte{r.source, sourceNAT, r.destination, r.destinationNAT} {
		t[4+2*i].inet(endpoint)
		t[5+2*i].port(endpoint)
	}
	t[12].bigint(int64(r.up), true)
	t[13].bigint(int64(r.down), true)
	t[14].smallint(int16(r.mode))
	t[15].smallint(int16(r.reason))
	t[16].head(r.sourceHead)
	t[17].head(r.destinationHead)
	t[18].smallint(int16(r.flags))
	t[19].bigint(r.origin, r.origin != 0)
}

// array is an array of one dimension in PostgreSQL's binary form (array_send in
// its arrayfuncs.c): dimensions, whether there are nulls, the elements' type,
// their number, the first index; then each behind its length, -1 for null.
type array struct {
	oid uint32
	buf []byte
}

func (a *array) reset(n int) {
	be := binary.BigEndian
	a.buf = be.AppendUint32(a.buf[:0], 1)
	a.buf = be.AppendUint32(a.buf, 1)
	a.buf = be.AppendUint32(a.buf, a.oid)
	a.buf = be.AppendUint32(a.buf, uint32(n))
	a.buf = be.AppendUint32(a.buf, 1)
}

func (a *array) null() { a.buf = append(a.buf, 0xff, 0xff, 0xff, 0xff) }

func (a *array) bytes(b []byte) {
	a.buf = binary.BigEndian.AppendUint32(a.buf, uint32(len(b)))
	a.buf = append(a.buf, b...)
}

func (a *array) head(b []byte) {
	if len(b) == 0 {
		a.null()
		return
	}
	a.bytes(b)
}

func (a *array) bigint(v int64, present bool) {
	if !present {
		a.null()
		return
	}
	a.buf = append(a.buf, 0, 0, 0, 8)
	a.buf = binary.BigEndian.AppendUint64(a.buf, uint64(v))
}

func (a *array) smallint(v int16) {
	a.buf = append(a.buf, 0, 0, 0, 2)
	a.buf = binary.BigEndian.AppendUint16(a.buf, uint16(v))
}

// inet appends the address of an endpoint of the queue, as network_send in
// PostgreSQL's network.c writes it: family (2 for IPv4, 3 for IPv6), bits of the
// prefix, whether it is a network, length, address.
func (a *array) inet(endpoint []byte) {
	switch len(endpoint) {
	case 0:
		a.null()
	case 6:
		a.buf = append(a.buf, 0, 0, 0, 8, 2, 32, 0, 4)
		a.buf = append(a.buf, endpoint[:4]...)
	default:
		a.buf = append(a.buf, 0, 0, 0, 20, 3, 128, 0, 16)
		a.buf = append(a.buf, endpoint[:16]...)
	}
}

func (a *array) port(endpoint []byte) {
	if len(endpoint) == 0 {
		a.null()
		return
	}
	a.buf = append(a.buf, 0, 0, 0, 4)
	a.buf = binary.BigEndian.AppendUint32(a.buf, uint32(portOf(endpoint)))
}

func (c *postgresConn) size() (used, taken int64, err error) {
	err = c.query(`SELECT sum(pg_total_relation_size(c))::bigint
		FROM unnest(ARRAY['session', 'binding', 'change', 'event', 'seen', 'probe', 'rule', 'finding', 'analysis']::regclass[]) AS c`, nil, func(values []any) error {
		taken, _ = values[0].(int64)
		return nil
	})
	// The server reuses room, but gives next to none of it back: nothing can be
	// said of how much is in use.
	return 0, taken, err
}

func (c *postgresConn) shrink() (bool, error) { return false, nil }
