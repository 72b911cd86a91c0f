-- +goose Up

-- Every transaction that changes anything else here begins by counting up the
-- one row of this table. It orders the writers, and tells controllers that share
-- the database that there is something to read.
CREATE TABLE controller_change (
    id    BIGINT PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO controller_change VALUES (1, 0);

CREATE TABLE controller_ca (
    id          BIGINT PRIMARY KEY,
    certificate BLOB NOT NULL,
    key         BLOB NOT NULL
);

-- All times are nanoseconds since 1970, 0 for never.
CREATE TABLE controller_document (
    sequence   INTEGER PRIMARY KEY AUTOINCREMENT,
    hash       TEXT NOT NULL,
    name       TEXT NOT NULL,
    source     BLOB NOT NULL,
    machine    TEXT NOT NULL,
    applied_by TEXT NOT NULL,
    applied_at BIGINT NOT NULL
);

CREATE TABLE controller_node (
    name        TEXT PRIMARY KEY,
    generation  BIGINT NOT NULL,
    enrolled_at BIGINT NOT NULL,
    revoked_at  BIGINT NOT NULL DEFAULT 0,
    seen_at     BIGINT NOT NULL DEFAULT 0,
    lost_at     BIGINT NOT NULL DEFAULT 0,
    boot        TEXT NOT NULL DEFAULT '',
    reach       TEXT NOT NULL DEFAULT '',
    addresses   TEXT NOT NULL DEFAULT '',
    report      TEXT NOT NULL DEFAULT ''
);

CREATE TABLE controller_token (
    id         TEXT PRIMARY KEY,
    hash       BLOB NOT NULL,
    node       TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at    BIGINT NOT NULL DEFAULT 0,
    used_by    TEXT NOT NULL DEFAULT ''
);

CREATE TABLE controller_user (
    id           TEXT PRIMARY KEY,
    hash         BLOB NOT NULL,
    name         TEXT NOT NULL UNIQUE,
    role         TEXT NOT NULL,
    created_at   BIGINT NOT NULL,
    last_used_at BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE controller_audit (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    at       BIGINT NOT NULL,
    actor    TEXT NOT NULL,
    role     TEXT NOT NULL,
    method   TEXT NOT NULL,
    object   TEXT NOT NULL,
    result   TEXT NOT NULL,
    detail   TEXT NOT NULL,
    peer     TEXT NOT NULL
);
CREATE INDEX controller_audit_at ON controller_audit (at);

CREATE TABLE controller_url (
    url     TEXT PRIMARY KEY,
    seen_at BIGINT NOT NULL
);
