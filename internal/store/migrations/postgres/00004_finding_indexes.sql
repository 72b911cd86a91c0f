-- +goose Up

-- What people ask for of findings, newest first, without saying since when: one
-- kind, one intruder, one known scanner. Each session has a flow, so those are
-- found at once without an index.
CREATE INDEX finding_kind ON finding (kind, id) WHERE kind <> 'flow';
CREATE INDEX finding_source ON finding (source, id);
CREATE INDEX finding_scanner ON finding (scanner, id) WHERE scanner <> '';
