-- +goose Up

-- Since records also come from other machines, several reports may tell of one
-- session. flags: 1 = source.nat, source_mode and destination.nat are what an
-- egress on another machine saw; 2 = so they were known before; 4 = the
-- identifier's time and start differ, because two clocks made them.
ALTER TABLE session ADD COLUMN flags INTEGER NOT NULL DEFAULT 0;
-- Who said that the session runs; NULL once it has ended.
ALTER TABLE session ADD COLUMN origin INTEGER;

CREATE INDEX session_skewed ON session (finish) WHERE flags & 4 = 4;

-- Who records: recorders write here themselves, nodes deliver. "alive" is when a
-- recorder last showed that it lives. What a node began before lost_before, and
-- did not end, is lost.
CREATE TABLE reporter (
    id          INTEGER PRIMARY KEY,
    kind        TEXT    NOT NULL, -- recorder, node
    name        TEXT    NOT NULL,
    alive       INTEGER NOT NULL DEFAULT 0,
    lost_before INTEGER NOT NULL DEFAULT 0,
    UNIQUE (kind, name)
) STRICT;
INSERT INTO reporter (kind, name, alive) SELECT 'recorder', '', alive FROM recorder;
DROP TABLE recorder;
UPDATE session INDEXED BY session_running SET origin = (SELECT id FROM reporter) WHERE finish IS NULL;

-- What an egress saw of a session that has not come yet. Endpoints are text, as
-- 192.0.2.1:80, and empty where not known.
CREATE TABLE seen (
    session         BLOB    NOT NULL PRIMARY KEY,
    at              INTEGER NOT NULL,
    source_nat      TEXT    NOT NULL,
    source_mode     INTEGER NOT NULL,
    destination_nat TEXT    NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX seen_at ON seen (at);

-- What happened to the deception network itself; seq is the order of arrival.
CREATE TABLE event (
    seq              INTEGER PRIMARY KEY AUTOINCREMENT,
    id               BLOB    NOT NULL UNIQUE, -- a UUIDv7
    time             INTEGER NOT NULL, -- ns since 1970
    kind             TEXT    NOT NULL,
    node             TEXT    NOT NULL,
    segment          TEXT    NOT NULL,
    decoy            TEXT    NOT NULL,
    session          BLOB, -- NULL where it is not about one
    source           TEXT, -- address
    source_port      INTEGER,
    destination      TEXT,
    destination_port INTEGER,
    message          TEXT    NOT NULL
) STRICT;
CREATE INDEX event_time ON event (time);

CREATE VIEW events AS
SELECT
    strftime('%Y-%m-%dT%H:%M:%S', time / 1000000000, 'unixepoch') || printf('.%09dZ', time % 1000000000) AS "@timestamp",
    lower(substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || substr(hex(id), 13, 4)
        || '-' || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21, 12)) AS "event.id",
    'event' AS "event.kind",
    kind AS "event.action",
    message,
    NULLIF(node, '') AS "decoynet.node",
    NULLIF(segment, '') AS "decoynet.segment",
    NULLIF(decoy, '') AS "decoynet.decoy",
    CASE WHEN session IS NOT NULL THEN
        lower(substr(hex(session), 1, 8) || '-' || substr(hex(session), 9, 4) || '-' || substr(hex(session), 13, 4)
            || '-' || substr(hex(session), 17, 4) || '-' || substr(hex(session), 21, 12))
    END AS "decoynet.session",
    source AS "source.ip",
    source_port AS "source.port",
    destination AS "destination.ip",
    destination_port AS "destination.port"
FROM event;

-- Two more end reasons.
DROP VIEW sessions;
CREATE VIEW sessions AS
SELECT
    strftime('%Y-%m-%dT%H:%M:%S', coalesce(s.finish, s.start) / 1000000000, 'unixepoch') || printf('.%09dZ', coalesce(s.finish, s.start) % 1000000000) AS "@timestamp",
    lower(substr(hex(s.id), 1, 8) || '-' || substr(hex(s.id), 9, 4) || '-' || substr(hex(s.id), 13, 4)
        || '-' || substr(hex(s.id), 17, 4) || '-' || substr(hex(s.id), 21, 12)) AS "event.id",
    strftime('%Y-%m-%dT%H:%M:%S', s.start / 1000000000, 'unixepoch') || printf('.%09dZ', s.start % 1000000000) AS "event.start",
    strftime('%Y-%m-%dT%H:%M:%S', s.finish / 1000000000, 'unixepoch') || printf('.%09dZ', s.finish % 1000000000) AS "event.end",
    s.finish - s.start AS "event.duration",
    CASE WHEN s.finish IS NULL THEN 'session-started' ELSE 'session-ended' END AS "event.action",
    CASE typeof(s.source)
        WHEN 'integer' THEN (s.source >> 40) || '.' || (s.source >> 32 & 255) || '.' || (s.source >> 24 & 255) || '.' || (s.source >> 16 & 255)
        WHEN 'text' THEN substr(s.source, 1, instr(s.source, ' ') - 1)
    END AS "source.ip",
    CASE typeof(s.source)
        WHEN 'integer' THEN s.source & 65535
        WHEN 'text' THEN CAST(substr(s.source, instr(s.source, ' ') + 1) AS INTEGER)
    END AS "source.port",
    CASE typeof(s.seen)
        WHEN 'integer' THEN (s.seen >> 40) || '.' || (s.seen >> 32 & 255) || '.' || (s.seen >> 24 & 255) || '.' || (s.seen >> 16 & 255)
        WHEN 'text' THEN substr(s.seen, 1, instr(s.seen, ' ') - 1)
    END AS "source.nat.ip",
    CASE typeof(s.seen)
        WHEN 'integer' THEN s.seen & 65535
        WHEN 'text' THEN CAST(substr(s.seen, instr(s.seen, ' ') + 1) AS INTEGER)
    END AS "source.nat.port",
    CASE typeof(s.destination)
        WHEN 'integer' THEN (s.destination >> 40) || '.' || (s.destination >> 32 & 255) || '.' || (s.destination >> 24 & 255) || '.' || (s.destination >> 16 & 255)
        WHEN 'text' THEN substr(s.destination, 1, instr(s.destination, ' ') - 1)
    END AS "destination.ip",
    CASE typeof(s.destination)
        WHEN 'integer' THEN s.destination & 65535
        WHEN 'text' THEN CAST(substr(s.destination, instr(s.destination, ' ') + 1) AS INTEGER)
    END AS "destination.port",
    CASE typeof(s.destination_nat)
        WHEN 'integer' THEN (s.destination_nat >> 40) || '.' || (s.destination_nat >> 32 & 255) || '.' || (s.destination_nat >> 24 & 255) || '.' || (s.destination_nat >> 16 & 255)
        WHEN 'text' THEN substr(s.destination_nat, 1, instr(s.destination_nat, ' ') - 1)
    END AS "destination.nat.ip",
    CASE typeof(s.destination_nat)
        WHEN 'integer' THEN s.destination_nat & 65535
        WHEN 'text' THEN CAST(substr(s.destination_nat, instr(s.destination_nat, ' ') + 1) AS INTEGER)
    END AS "destination.nat.port",
    CASE b.transport WHEN 6 THEN 'tcp' WHEN 17 THEN 'udp' ELSE 'proto-' || b.transport END AS "network.transport",
    CASE typeof(s.source) WHEN 'integer' THEN 'ipv4' WHEN 'text' THEN 'ipv6' END AS "network.type",
    b.segment AS "decoynet.segment",
    b.node AS "decoynet.node",
    b.decoy AS "decoynet.decoy",
    b.service AS "decoynet.service",
    b.path AS "decoynet.path",
    CASE s.source_mode WHEN 0 THEN 'kept' WHEN 1 THEN 'port_moved' WHEN 2 THEN 'masquerade' END AS "decoynet.source_mode",
    CASE s.reason
        WHEN 1 THEN 'client_closed'
        WHEN 2 THEN 'service_closed'
        WHEN 3 THEN 'client_reset'
        WHEN 4 THEN 'service_reset'
        WHEN 5 THEN 'idle'
        WHEN 6 THEN 'refused'
        WHEN 7 THEN 'shutdown'
        WHEN 8 THEN 'unbound'
        WHEN 9 THEN 'lost'
        WHEN 10 THEN 'overload'
        WHEN 11 THEN 'gateway_lost'
        WHEN 12 THEN 'denied'
    END AS "decoynet.end_reason",
    s.source_bytes AS "source.bytes",
    s.destination_bytes AS "destination.bytes",
    hex(s.source_head) AS "decoynet.source_head.hex",
    hex(s.destination_head) AS "decoynet.destination_head.hex"
FROM (SELECT *, CASE source_nat WHEN 0 THEN source ELSE source_nat END AS seen FROM session) s
JOIN binding b ON b.id = s.binding;

PRAGMA user_version = 2;
