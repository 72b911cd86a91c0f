-- +goose Up

-- What people ask for of findings, newest first, without saying since when: one
-- kind, one intruder, one known scanner. Each session has a flow, so those are
-- found at once without an index.
CREATE INDEX finding_kind ON finding (kind, id) WHERE kind <> 'flow';
-- The address without its port. The program writes the same expression.
CREATE INDEX finding_source ON finding (CASE typeof(source) WHEN 'integer' THEN source >> 16 ELSE substr(source, 1, instr(source, ' ') - 1) END, id);
CREATE INDEX finding_scanner ON finding (scanner, id) WHERE scanner <> '';

PRAGMA user_version = 5;
