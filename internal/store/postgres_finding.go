package store

import (
	"net/netip"

	"decoynet/deception"

	"github.com/jackc/pgx/v5/pgtype"
)

// insertFindings gives all findings to one statement, one array a column, since
// each statement is a round trip to the server.
const insertFindings = `INSERT INTO finding (id, session, time, node, kind, application, transport,
		source, source_port, destination, destination_port, rule, to_service, feed_lost, partial, scanner, document)
	SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::smallint[],
		$8::inet[], $9::integer[], $10::inet[], $11::integer[], $12::bigint[], $13::smallint[], $14::bigint[],
		$15::smallint[], $16::text[], $17::bytea[])
	` + ifSessionIsNews + ` source = excluded.source, source_port = excluded.source_port,
		destination = excluded.destination, destination_port = excluded.destination_port
	` + whereSessionIsNews + ` RETURNING id`

func (c *postgresConn) insertFindings(all []*finding, rules []int64) (fresh []*finding, err error) {
	byID := make(map[deception.SessionID]*finding, len(all))
	var t struct {
		id, session                      []pgtype.UUID
		time, rule, lost                 []pgtype.Int8
		node, kind, application, scanner []string
		transport, toService, partial    []int16
		source, destination              []*netip.Prefix
		sourcePort, destinationPort      []pgtype.Int4
		document                         [][]byte
	}
	for _, f := range all {
		if before := byID[f.ID]; before == nil || before.Session.IsZero() {
			byID[f.ID] = f
		}
	}
	for i, f := range all {
		if byID[f.ID] != f { // one statement may write to a row once
			continue
		}
		t.id = append(t.id, pgtype.UUID{Bytes: f.ID, Valid: true})
		t.session = append(t.session, pgtype.UUID{Bytes: f.Session, Valid: !f.Session.IsZero()})
		t.time = append(t.time, pgtype.Int8{Int64: nanos(f.Time), Valid: true})
		t.node, t.kind = append(t.node, f.Node), append(t.kind, f.Kind)
		t.application, t.scanner = append(t.application, f.Application), append(t.scanner, f.Scanner)
		t.transport = append(t.transport, int16(f.Transport))
		addr, port := endpointArray(f.Source)
		t.source, t.sourcePort = append(t.source, addr), append(t.sourcePort, port)
		addr, port = endpointArray(f.Destination)
		t.destination, t.destinationPort = append(t.destination, addr), append(t.destinationPort, port)
		t.rule = append(t.rule, pgtype.Int8{Int64: rules[i], Valid: rules[i] != 0})
		t.toService = append(t.toService, int16(bit(f.Alert != nil && f.Alert.ToService)))
		t.lost = append(t.lost, pgtype.Int8{Int64: int64(f.FeedLost), Valid: true})
		t.partial, t.document = append(t.partial, int16(bit(f.Partial))), append(t.document, f.packed)
	}
	err = c.query(insertFindings, []any{
		t.id, t.session, t.time, t.node, t.kind, t.application, t.transport, t.source, t.sourcePort,
		t.destination, t.destinationPort, t.rule, t.toService, t.lost, t.partial, t.scanner, t.document,
	}, func(values []any) error {
		row := rowReader{values: values}
		fresh = append(fresh, byID[row.id()])
		return row.err
	})
	return fresh, err
}

func endpointArray(a netip.AddrPort) (*netip.Prefix, pgtype.Int4) {
	if !a.IsValid() {
		return nil, pgtype.Int4{}
	}
	addr := a.Addr().WithZone("")
	p := netip.PrefixFrom(addr, addr.BitLen())
	return &p, pgtype.Int4{Int32: int32(a.Port()), Valid: true}
}
