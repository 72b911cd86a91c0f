-- +goose Up

-- Sessions of a known scanner have bindings of their own.
ALTER TABLE binding ADD COLUMN scanner text NOT NULL DEFAULT ''; -- empty for everybody else
ALTER TABLE binding DROP CONSTRAINT binding_node_segment_decoy_service_transport_path_key;
ALTER TABLE binding ADD UNIQUE (node, segment, decoy, service, transport, path, scanner);

-- What one source did without reaching a service. A probe is told again while it
-- grows, and its row written anew: seq is the order of these writings.
CREATE TABLE probe (
    seq         bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id          uuid    NOT NULL UNIQUE, -- a UUIDv7
    start       bigint  NOT NULL, -- ns since 1970, as finish and last
    finish      bigint, -- NULL while it goes on
    last        bigint  NOT NULL, -- the last contact so far
    node        text    NOT NULL,
    segment     text    NOT NULL,
    source      text, -- address; NULL where many are counted together
    source_mac  text    NOT NULL,
    sources     bigint  NOT NULL,
    kind        text    NOT NULL,
    arp         bigint  NOT NULL,
    ping        bigint  NOT NULL,
    syn         bigint  NOT NULL,
    datagram    bigint  NOT NULL,
    addresses   bigint  NOT NULL,
    ports       bigint  NOT NULL,
    approximate integer NOT NULL, -- 1: addresses and ports are estimates
    first       text, -- address
    first_port  integer,
    latest      text,
    latest_port integer,
    scanner     text    NOT NULL -- empty for everybody else
);
CREATE INDEX probe_last ON probe (last);
CREATE INDEX probe_open ON probe (last) WHERE finish IS NULL;

CREATE VIEW probes AS
SELECT
    timestamptz 'epoch' + last / 1000 * interval '1 microsecond' AS "@timestamp",
    id AS "event.id",
    'event' AS "event.kind",
    'probe' AS "event.action",
    timestamptz 'epoch' + start / 1000 * interval '1 microsecond' AS "event.start",
    timestamptz 'epoch' + finish / 1000 * interval '1 microsecond' AS "event.end",
    finish - start AS "event.duration",
    CAST(source AS inet) AS "source.ip",
    NULLIF(source_mac, '') AS "source.mac",
    CAST(first AS inet) AS "destination.ip",
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
    CAST(latest AS inet) AS "decoynet.probe.latest.ip",
    NULLIF(latest_port, 0) AS "decoynet.probe.latest.port",
    NULLIF(scanner, '') AS "decoynet.scanner"
FROM probe;

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
    upper(encode(s.destination_head, 'hex')) AS "decoynet.destination_head.hex"
FROM session s
JOIN binding b ON b.id = s.binding;
