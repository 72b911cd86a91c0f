-- +goose Up

-- The rules that alerts came of; a finding's row names one by number.
CREATE TABLE rule (
    id        INTEGER PRIMARY KEY,
    gid       INTEGER NOT NULL,
    sid       INTEGER NOT NULL,
    revision  INTEGER NOT NULL,
    severity  INTEGER NOT NULL, -- 1 (worst) to 4
    signature TEXT NOT NULL,
    category  TEXT NOT NULL,
    UNIQUE (gid, sid, revision, severity, signature, category)
) STRICT;

-- What Suricata says of sessions: alerts, and records of all other kinds. seq is
-- the order of arrival. A document begins with a byte that says how it is packed
-- (document.go).
CREATE TABLE finding (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    id          BLOB NOT NULL UNIQUE, -- a UUIDv7
    session     BLOB, -- NULL where it belongs to none that is known
    time        INTEGER NOT NULL, -- ns since 1970
    node        TEXT NOT NULL, -- where it was found
    kind        TEXT NOT NULL, -- event_type of Suricata's EVE output
    application TEXT NOT NULL, -- empty where it is not known
    transport   INTEGER NOT NULL, -- IANA protocol number
    source      ANY, -- as a session's
    destination ANY,
    rule        INTEGER, -- NULL where it is no alert
    to_service  INTEGER NOT NULL, -- 1: what the rule matched went to the service
    feed_lost   INTEGER NOT NULL,
    partial     INTEGER NOT NULL,
    scanner     TEXT NOT NULL, -- empty for everybody else
    document    BLOB NOT NULL
) STRICT;
CREATE INDEX finding_session ON finding (session, id) WHERE session IS NOT NULL;
-- Holds all that alerts are chosen by, in the order of which they are listed.
CREATE INDEX finding_alert ON finding (id, rule, scanner) WHERE rule IS NOT NULL;

-- What the findings of a session say, taken together, kept as they come: a
-- listing of sessions reads one row for each.
CREATE TABLE analysis (
    session     BLOB NOT NULL PRIMARY KEY,
    findings    INTEGER NOT NULL,
    alerts      INTEGER NOT NULL,
    severity    INTEGER, -- of the worst alert; everything from here on is NULL where it is not known
    application TEXT,
    user_agent  TEXT,
    ja3         TEXT,
    ja4         TEXT,
    ssh         TEXT,
    hassh       TEXT,
    server_name TEXT,
    user_name   TEXT,
    partial     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Alerts about known scanners are none.
CREATE VIEW findings AS
SELECT
    strftime('%Y-%m-%dT%H:%M:%S', f.time / 1000000000, 'unixepoch') || printf('.%09dZ', f.time % 1000000000) AS "@timestamp",
    lower(substr(hex(f.id), 1, 8) || '-' || substr(hex(f.id), 9, 4) || '-' || substr(hex(f.id), 13, 4)
        || '-' || substr(hex(f.id), 17, 4) || '-' || substr(hex(f.id), 21, 12)) AS "event.id",
    CASE WHEN f.rule IS NOT NULL AND coalesce(b.scanner, '') = '' AND f.scanner = '' THEN 'alert' ELSE 'event' END AS "event.kind",
    f.kind AS "event.action",
    r.severity AS "event.severity",
    r.sid AS "rule.id",
    r.signature AS "rule.name",
    r.category AS "rule.category",
    r.revision AS "rule.version",
    CASE typeof(f.source)
        WHEN 'integer' THEN (f.source >> 40) || '.' || (f.source >> 32 & 255) || '.' || (f.source >> 24 & 255) || '.' || (f.source >> 16 & 255)
        WHEN 'text' THEN substr(f.source, 1, instr(f.source, ' ') - 1)
    END AS "source.ip",
    CASE typeof(f.source)
        WHEN 'integer' THEN f.source & 65535
        WHEN 'text' THEN CAST(substr(f.source, instr(f.source, ' ') + 1) AS INTEGER)
    END AS "source.port",
    CASE typeof(f.destination)
        WHEN 'integer' THEN (f.destination >> 40) || '.' || (f.destination >> 32 & 255) || '.' || (f.destination >> 24 & 255) || '.' || (f.destination >> 16 & 255)
        WHEN 'text' THEN substr(f.destination, 1, instr(f.destination, ' ') - 1)
    END AS "destination.ip",
    CASE typeof(f.destination)
        WHEN 'integer' THEN f.destination & 65535
        WHEN 'text' THEN CAST(substr(f.destination, instr(f.destination, ' ') + 1) AS INTEGER)
    END AS "destination.port",
    CASE f.transport WHEN 6 THEN 'tcp' WHEN 17 THEN 'udp' ELSE 'proto-' || f.transport END AS "network.transport",
    NULLIF(f.application, '') AS "network.protocol",
    CASE WHEN f.session IS NOT NULL THEN lower(substr(hex(f.session), 1, 8) || '-' || substr(hex(f.session), 9, 4) || '-' || substr(hex(f.session), 13, 4)
        || '-' || substr(hex(f.session), 17, 4) || '-' || substr(hex(f.session), 21, 12)) END AS "decoynet.session",
    coalesce(b.node, f.node) AS "decoynet.node",
    b.segment AS "decoynet.segment",
    b.decoy AS "decoynet.decoy",
    b.service AS "decoynet.service",
    NULLIF(coalesce(NULLIF(f.scanner, ''), b.scanner), '') AS "decoynet.scanner",
    f.node AS "decoynet.inspect.node",
    f.feed_lost AS "decoynet.feed_lost",
    f.partial AS "decoynet.partial"
FROM finding f
LEFT JOIN rule r ON r.id = f.rule
LEFT JOIN session s ON s.id = f.session
LEFT JOIN binding b ON b.id = s.binding;

CREATE VIEW alerts AS SELECT * FROM findings WHERE "event.kind" = 'alert';

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
    hex(s.destination_head) AS "decoynet.destination_head.hex",
    a.application AS "network.protocol",
    a.user_agent AS "user_agent.original",
    a.ja3 AS "tls.client.ja3",
    a.ja4 AS "decoynet.tls.ja4",
    a.ssh AS "decoynet.ssh.client",
    a.hassh AS "decoynet.ssh.hassh",
    a.server_name AS "destination.domain",
    a.user_name AS "user.name",
    a.findings AS "decoynet.findings",
    CASE WHEN b.scanner = '' THEN a.alerts ELSE 0 * a.alerts END AS "decoynet.alerts",
    CASE WHEN b.scanner = '' THEN a.severity END AS "decoynet.severity"
FROM (SELECT *, CASE source_nat WHEN 0 THEN source ELSE source_nat END AS seen FROM session) s
JOIN binding b ON b.id = s.binding
LEFT JOIN analysis a ON a.session = s.id;

PRAGMA user_version = 4;
