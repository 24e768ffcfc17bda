-- Limits of all nodes. Unlogged: they cost no fsync, and start from zero after a crash of the database or a failover.

CREATE UNLOGGED TABLE hits (
  key     bytea PRIMARY KEY,
  length  double precision NOT NULL, -- seconds of a window
  started double precision NOT NULL, -- when the one that runs began
  count   bigint NOT NULL,           -- hits of it,
  former  bigint NOT NULL            -- and of the one before
) WITH (fillfactor = 50);

CREATE UNLOGGED TABLE slots (
  key   bytea NOT NULL,
  owner bigint NOT NULL REFERENCES node ON DELETE CASCADE,  -- a dead node's slots go with its epoch
  taken integer NOT NULL,
  PRIMARY KEY (key, owner)
);
CREATE INDEX slots_owner ON slots (owner);

CREATE UNLOGGED TABLE mark (
  key   bytea PRIMARY KEY,
  until double precision NOT NULL,
  note  text NOT NULL
);

-- Which worker took a message in, and tells so: its connections bear its name.
ALTER TABLE entry ADD COLUMN node text;
ALTER TABLE entry ALTER COLUMN node SET DEFAULT current_setting('application_name');
