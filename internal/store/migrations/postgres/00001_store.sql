-- +goose Up

-- One row per thing that a session has in common with thousands of others, so
-- that a session's own row stays small. The totals are kept as sessions end;
-- counting rows instead would take seconds on a large table.
CREATE TABLE binding (
    id                bigint   GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    node              text     NOT NULL,
    segment           text     NOT NULL,
    decoy             text     NOT NULL,
    service           text     NOT NULL,
    transport         smallint NOT NULL, -- IANA protocol number
    path              text     NOT NULL,
    ended             bigint   NOT NULL DEFAULT 0,
    source_bytes      bigint   NOT NULL DEFAULT 0,
    destination_bytes bigint   NOT NULL DEFAULT 0,
    last              bigint   NOT NULL DEFAULT 0, -- start of the newest ended session, ns
    UNIQUE (node, segment, decoy, service, transport, path)
);

-- The key is a UUIDv7, so rows lie in the order of their start and arrive at the
-- end of the index. Times are nanoseconds since 1970; timestamptz holds
-- microseconds only. Byte counts above 2^63 are stored as negative numbers.
-- flags: 1 = source_nat, source_mode and destination_nat are what an egress on
-- another machine saw; 2 = so they were known before; 4 = the identifier's time
-- and start differ, because two clocks made them.
CREATE TABLE session (
    id                   uuid     NOT NULL PRIMARY KEY,
    start                bigint   NOT NULL,
    finish               bigint, -- NULL while the session runs
    binding              bigint   NOT NULL,
    source               inet,
    source_port          integer,
    source_nat           inet,
    source_nat_port      integer,
    destination          inet,
    destination_port     integer,
    destination_nat      inet,
    destination_nat_port integer,
    source_bytes         bigint   NOT NULL,
    destination_bytes    bigint   NOT NULL,
    source_mode          smallint NOT NULL,
    reason               smallint NOT NULL,
    source_head          bytea,
    destination_head     bytea,
    flags                smallint NOT NULL,
    origin               bigint -- who said that the session runs; NULL once it has ended
);

-- Short sessions, almost all there are, never enter any of these.
CREATE INDEX session_running ON session (id) WHERE finish IS NULL;
CREATE INDEX session_long ON session (finish) WHERE finish - start > 120000000000;
CREATE INDEX session_skewed ON session (finish) WHERE flags & 4 = 4;

-- What changed, for readers that follow: one row per written batch, the
-- identifiers of its sessions one behind the other. Only the newest rows stay.
CREATE TABLE change (
    seq      bigint PRIMARY KEY,
    at       bigint NOT NULL,
    sessions bytea  NOT NULL
);
-- Identifiers do not compress.
ALTER TABLE change ALTER COLUMN sessions SET STORAGE EXTERNAL;

-- Who records: recorders write here themselves, nodes deliver. "alive" is when a
-- recorder last showed that it lives. What a node began before lost_before, and
-- did not end, is lost.
CREATE TABLE reporter (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind        text   NOT NULL, -- recorder, node
    name        text   NOT NULL,
    alive       bigint NOT NULL DEFAULT 0,
    lost_before bigint NOT NULL DEFAULT 0,
    UNIQUE (kind, name)
);

-- What an egress saw of a session that has not come yet. Endpoints are text, as
-- 192.0.2.1:80, and empty where not known.
CREATE TABLE seen (
    session         uuid     NOT NULL PRIMARY KEY,
    at              bigint   NOT NULL,
    source_nat      text     NOT NULL,
    source_mode     smallint NOT NULL,
    destination_nat text     NOT NULL
);
CREATE INDEX seen_at ON seen (at);

-- What happened to the deception network itself; seq is the order of arrival.
CREATE TABLE event (
    seq              bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id               uuid    NOT NULL UNIQUE, -- a UUIDv7
    time             bigint  NOT NULL, -- ns since 1970
    kind             text    NOT NULL,
    node             text    NOT NULL,
    segment          text    NOT NULL,
    decoy            text    NOT NULL,
    session          uuid, -- NULL where it is not about one
    source           text, -- address
    source_port      integer,
    destination      text,
    destination_port integer,
    message          text    NOT NULL
);
CREATE INDEX event_time ON event (time);

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
    upper(encode(s.destination_head, 'hex')) AS "decoynet.destination_head.hex"
FROM session s
JOIN binding b ON b.id = s.binding;

CREATE VIEW events AS
SELECT
    timestamptz 'epoch' + time / 1000 * interval '1 microsecond' AS "@timestamp",
    id AS "event.id",
    'event' AS "event.kind",
    kind AS "event.action",
    message,
    NULLIF(node, '') AS "decoynet.node",
    NULLIF(segment, '') AS "decoynet.segment",
    NULLIF(decoy, '') AS "decoynet.decoy",
    session AS "decoynet.session",
    CAST(source AS inet) AS "source.ip",
    source_port AS "source.port",
    CAST(destination AS inet) AS "destination.ip",
    destination_port AS "destination.port"
FROM event;
