-- +goose Up

-- Sessions of a known scanner have bindings of their own.
DROP VIEW sessions;
CREATE TABLE binding_known (
    id                INTEGER PRIMARY KEY,
    node              TEXT    NOT NULL,
    segment           TEXT    NOT NULL,
    decoy             TEXT    NOT NULL,
    service           TEXT    NOT NULL,
    transport         INTEGER NOT NULL, -- IANA protocol number
    path              TEXT    NOT NULL,
    scanner           TEXT    NOT NULL, -- empty for everybody else
    ended             INTEGER NOT NULL DEFAULT 0,
    source_bytes      INTEGER NOT NULL DEFAULT 0,
    destination_bytes INTEGER NOT NULL DEFAULT 0,
    last              INTEGER NOT NULL DEFAULT 0, -- start of the newest ended session, ns
    UNIQUE (node, segment, decoy, service, transport, path, scanner)
) STRICT;
INSERT INTO binding_known (id, node, segment, decoy, service, transport, path, scanner, ended, source_bytes, destination_bytes, last)
    SELECT id, node, segment, decoy, service, transport, path, '', ended, source_bytes, destination_bytes, last FROM binding;
DROP TABLE binding;
ALTER TABLE binding_known RENAME TO binding;

-- What one source did without reaching a service. A probe is told again while it
-- grows, and its row written anew: seq is the order of these writings.
CREATE TABLE probe (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          BLOB    NOT NULL UNIQUE, -- a UUIDv7
    start       INTEGER NOT NULL, -- ns since 1970, as finish and last
    finish      INTEGER, -- NULL while it goes on
    last        INTEGER NOT NULL, -- the last contact so far
    node        TEXT    NOT NULL,
    segment     TEXT    NOT NULL,
    source      TEXT, -- address; NULL where many are counted together
    source_mac  TEXT    NOT NULL,
    sources     INTEGER NOT NULL,
    kind        TEXT    NOT NULL,
    arp         INTEGER NOT NULL,
    ping        INTEGER NOT NULL,
    syn         INTEGER NOT NULL,
    datagram    INTEGER NOT NULL,
    addresses   INTEGER NOT NULL,
    ports       INTEGER NOT NULL,
    approximate INTEGER NOT NULL, -- 1: addresses and ports are estimates
    first       TEXT, -- address
    first_port  INTEGER,
    latest      TEXT,
    latest_port INTEGER,
    scanner     TEXT    NOT NULL -- empty for everybody else
) STRICT;
CREATE INDEX probe_last ON probe (last);
CREATE INDEX probe_open ON probe (last) WHERE finish IS NULL;

CREATE VIEW probes AS
SELECT
    strftime('%Y-%m-%dT%H:%M:%S', last / 1000000000, 'unixepoch') || printf('.%09dZ', last % 1000000000) AS "@timestamp",
    lower(substr(hex(id), 1, 8) || '-' || substr(hex(id), 9, 4) || '-' || substr(hex(id), 13, 4)
        || '-' || substr(hex(id), 17, 4) || '-' || substr(hex(id), 21, 12)) AS "event.id",
    'event' AS "event.kind",
    'probe' AS "event.action",
    strftime('%Y-%m-%dT%H:%M:%S', start / 1000000000, 'unixepoch') || printf('.%09dZ', start % 1000000000) AS "event.start",
    strftime('%Y-%m-%dT%H:%M:%S', finish / 1000000000, 'unixepoch') || printf('.%09dZ', finish % 1000000000) AS "event.end",
    finish - start AS "event.duration",
    source AS "source.ip",
    NULLIF(source_mac, '') AS "source.mac",
    first AS "destination.ip",
    NULLIF(first_port, 0) AS "destination.port",
    NULLIF(node, '') AS "decoynet.node",
    segment AS "decoynet.segment",
    kind AS "decoynet.probe.kind",
    arp AS "decoynet.probe.contacts.arp",
    ping AS "decoynet.probe.contacts.ping",
    syn AS "decoynet.probe.contacts.syn",
    datagram AS "decoynet.probe.contacts.datagram",
    arp + ping + syn + datagram AS "decoynet.probe.count",
    addresses AS "decoynet.probe.addresses",
    ports AS "decoynet.probe.ports",
    approximate AS "decoynet.probe.approximate",
    sources AS "decoynet.probe.sources",
    latest AS "decoynet.probe.latest.ip",
    NULLIF(latest_port, 0) AS "decoynet.probe.latest.port",
    NULLIF(scanner, '') AS "decoynet.scanner"
FROM probe;

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
    NULLIF(b.scanner, '') AS "decoynet.scanner",
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

PRAGMA user_version = 3;
