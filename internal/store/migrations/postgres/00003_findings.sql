-- +goose Up

-- The rules that alerts came of; a finding's row names one by number.
CREATE TABLE rule (
    id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    gid       bigint NOT NULL,
    sid       bigint NOT NULL,
    revision  bigint NOT NULL,
    severity  bigint NOT NULL, -- 1 (worst) to 4
    signature text NOT NULL,
    category  text NOT NULL,
    UNIQUE (gid, sid, revision, severity, signature, category)
);

-- What Suricata says of sessions: alerts, and records of all other kinds. seq is
-- the order of arrival. A document begins with a byte that says how it is packed
-- (document.go).
CREATE TABLE finding (
    seq         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id          uuid NOT NULL UNIQUE, -- a UUIDv7
    session     uuid, -- NULL where it belongs to none that is known
    time        bigint NOT NULL, -- ns since 1970
    node        text NOT NULL, -- where it was found
    kind        text NOT NULL, -- event_type of Suricata's EVE output
    application text NOT NULL, -- empty where it is not known
    transport   smallint NOT NULL, -- IANA protocol number
    source           inet,
    source_port      integer,
    destination      inet,
    destination_port integer,
    rule        bigint, -- NULL where it is no alert
    to_service  smallint NOT NULL, -- 1: what the rule matched went to the service
    feed_lost   bigint NOT NULL,
    partial     smallint NOT NULL,
    scanner     text NOT NULL, -- empty for everybody else
    document    bytea NOT NULL
);
ALTER TABLE finding ALTER COLUMN document SET STORAGE EXTERNAL; -- it is packed
CREATE INDEX finding_session ON finding (session, id) WHERE session IS NOT NULL;
-- Holds all that alerts are chosen by, in the order of which they are listed.
CREATE INDEX finding_alert ON finding (id, rule, scanner) WHERE rule IS NOT NULL;

-- What the findings of a session say, taken together, kept as they come: a
-- listing of sessions reads one row for each.
CREATE TABLE analysis (
    session     uuid NOT NULL PRIMARY KEY,
    findings    bigint NOT NULL,
    alerts      bigint NOT NULL,
    severity    smallint, -- of the worst alert; everything from here on is NULL where it is not known
    application text,
    user_agent  text,
    ja3         text,
    ja4         text,
    ssh         text,
    hassh       text,
    server_name text,
    user_name   text,
    partial     smallint NOT NULL
);

-- Alerts about known scanners are none.
CREATE VIEW findings AS
SELECT
    timestamptz 'epoch' + f.time / 1000 * interval '1 microsecond' AS "@timestamp",
    f.id AS "event.id",
    CASE WHEN f.rule IS NOT NULL AND coalesce(b.scanner, '') = '' AND f.scanner = '' THEN 'alert' ELSE 'event' END AS "event.kind",
    f.kind AS "event.action",
    r.severity AS "event.severity",
    r.sid AS "rule.id",
    r.signature AS "rule.name",
    r.category AS "rule.category",
    r.revision AS "rule.version",
    f.source AS "source.ip",
    f.source_port AS "source.port",
    f.destination AS "destination.ip",
    f.destination_port AS "destination.port",
    CASE f.transport WHEN 6 THEN 'tcp' WHEN 17 THEN 'udp' ELSE 'proto-' || f.transport END AS "network.transport",
    NULLIF(f.application, '') AS "network.protocol",
    f.session AS "decoynet.session",
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
    timestamptz 'epoch' + coalesce(s.finish, s.start) / 1000 * interval '1 microsecond' AS "@timestamp",
    s.id AS "event.id",
    timestamptz 'epoch' + s.start / 1000 * interval '1 microsecond' AS "event.start",
    timestamptz 'epoch' + s.finish / 1000 * interval '1 microsecond' AS "event.end",
    s.finish - s.start AS "event.duration",
    CASE WHEN s.finish IS NULL THEN 'session-started' ELSE 'session-ended' END AS "event.action",
    s.source AS "source.ip",
    s.source_port AS "source.port",
    s.source_nat AS "source.nat.ip",
    s.source_nat_port AS "source.nat.port",
    s.destination AS "destination.ip",
    s.destination_port AS "destination.port",
    s.destination_nat AS "destination.nat.ip",
    s.destination_nat_port AS "destination.nat.port",
    CASE b.transport WHEN 6 THEN 'tcp' WHEN 17 THEN 'udp' ELSE 'proto-' || b.transport END AS "network.transport",
    CASE family(s.source) WHEN 4 THEN 'ipv4' WHEN 6 THEN 'ipv6' END AS "network.type",
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
    upper(encode(s.source_head, 'hex')) AS "decoynet.source_head.hex",
    upper(encode(s.destination_head, 'hex')) AS "decoynet.destination_head.hex",
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
FROM session s
JOIN binding b ON b.id = s.binding
LEFT JOIN analysis a ON a.session = s.id;
