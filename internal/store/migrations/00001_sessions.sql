-- +goose Up

-- One row per thing that a session has in common with thousands of others, so
-- that a session's own row stays small. The totals are kept as sessions end;
-- counting rows instead would take seconds on a large file.
CREATE TABLE binding (
    id                INTEGER PRIMARY KEY,
    node              TEXT    NOT NULL,
    segment           TEXT    NOT NULL,
    decoy             TEXT    NOT NULL,
    service           TEXT    NOT NULL,
    transport         INTEGER NOT NULL, -- IANA protocol number
    path              TEXT    NOT NULL,
    ended             INTEGER NOT NULL DEFAULT 0,
    source_bytes      INTEGER NOT NULL DEFAULT 0,
    destination_bytes INTEGER NOT NULL DEFAULT 0,
    last              INTEGER NOT NULL DEFAULT 0, -- start of the newest ended session, ns
    UNIQUE (node, segment, decoy, service, transport, path)
) STRICT;

-- The key is a UUIDv7, so rows lie in the order of their start and arrive at the
-- end of the table. Times are nanoseconds since 1970. An endpoint is NULL (not
-- known), for IPv4 the integer address << 16 | port, for IPv6 the text
-- 'address port'. source_nat 0 stands for "the same as source".
CREATE TABLE session (
    id                BLOB    NOT NULL PRIMARY KEY,
    start             INTEGER NOT NULL,
    finish            INTEGER, -- NULL while the session runs
    binding           INTEGER NOT NULL,
    source            ANY,
    source_nat        ANY,
    destination       ANY,
    destination_nat   ANY,
    source_bytes      INTEGER NOT NULL,
    destination_bytes INTEGER NOT NULL,
    source_mode       INTEGER NOT NULL,
    reason            INTEGER NOT NULL,
    source_head       BLOB,
    destination_head  BLOB
) STRICT, WITHOUT ROWID;

-- Short sessions, almost all there are, never enter either index.
CREATE INDEX session_running ON session (id) WHERE finish IS NULL;
CREATE INDEX session_long ON session (finish) WHERE finish - start > 120000000000;

-- What changed, for readers that follow: one row per written batch, the
-- identifiers of its sessions one behind the other. Only the newest rows stay.
CREATE TABLE change (
    seq      INTEGER PRIMARY KEY,
    at       INTEGER NOT NULL,
    sessions BLOB    NOT NULL
) STRICT;

-- When the process that records last showed that it lives.
CREATE TABLE recorder (
    id    INTEGER PRIMARY KEY CHECK (id = 1),
    alive INTEGER NOT NULL
) STRICT;
INSERT INTO recorder (id, alive) VALUES (1, 0);

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
    END AS "decoynet.end_reason",
    s.source_bytes AS "source.bytes",
    s.destination_bytes AS "destination.bytes",
    hex(s.source_head) AS "decoynet.source_head.hex",
    hex(s.destination_head) AS "decoynet.destination_head.hex"
FROM (SELECT *, CASE source_nat WHEN 0 THEN source ELSE source_nat END AS seen FROM session) s
JOIN binding b ON b.id = s.binding;

PRAGMA user_version = 1;
