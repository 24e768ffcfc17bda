-- The queue of all nodes. Addresses are bytea: they may hold bytes that are no UTF-8. Times are seconds since
-- the epoch by the clock of the node that wrote them, but for node.seen, which alone decides about leases.

CREATE TABLE node (
  epoch bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,  -- a worker gets a new one whenever it opens the queue
  name  text NOT NULL,                                    -- which worker: one name may have one epoch
  lease interval NOT NULL,
  seen  timestamptz NOT NULL DEFAULT clock_timestamp(),
  batch bigint NOT NULL DEFAULT 0                         -- the last group commit of this worker
) WITH (fillfactor = 10);

CREATE TABLE entry (
  id      uuid PRIMARY KEY,
  state   text NOT NULL,             -- receiving, queued
  owner   bigint,                    -- the epoch that holds claims on it, or that receives it
  claimed integer NOT NULL,          -- how many of its recipients are claimed
  open    integer NOT NULL,          -- recipients that have not ended
  held    integer NOT NULL,          -- those of them that are held
  delivered integer NOT NULL,        -- recipients that were delivered
  numbers integer NOT NULL,          -- the number that the next new recipient gets
  sender  bytea NOT NULL,
  birth   double precision NOT NULL,
  origin  text NOT NULL,
  parent  text NOT NULL,
  size    bigint NOT NULL,
  more    text NOT NULL,             -- JSON: params, facts, notes
  header  bytea NOT NULL,
  body    bytea,                     -- NULL: it is in `body`, and
  stored  bigint,                    -- so many bytes long
  seq     bigint GENERATED ALWAYS AS IDENTITY UNIQUE  -- what is born stands behind its parent in this order
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE entry ALTER body SET STORAGE EXTERNAL;
CREATE INDEX entry_owner ON entry (owner) WHERE owner IS NOT NULL;

CREATE TABLE body (
  entry uuid NOT NULL,
  part  integer NOT NULL,
  data  bytea NOT NULL,
  PRIMARY KEY (entry, part)
);
ALTER TABLE body ALTER data SET STORAGE EXTERNAL;

-- A delivered recipient has no row; a failed one keeps its row for the bounce. Whoever changes one has its
-- entry's row locked.
CREATE TABLE recipient (
  entry    uuid NOT NULL,
  number   integer NOT NULL,
  state    text NOT NULL,            -- ready (queued, due), waiting (due later), attempting, held, failed, expired
  due      double precision NOT NULL, -- of a held one: since when it is held
  attempts integer NOT NULL,
  lane     bigint NOT NULL,          -- a hash of sender and domain
  domain   bytea NOT NULL,           -- as the sender wrote it
  address  bytea NOT NULL,
  original bytea NOT NULL,
  more     text NOT NULL,            -- JSON of the rest, empty when there is none
  PRIMARY KEY (entry, number)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02);
-- A claim hops over lanes in this one,
CREATE INDEX recipient_ready ON recipient (lane, entry, number) WHERE state = 'ready';
-- and moves rows into it from this one when their time comes.
CREATE INDEX recipient_waiting ON recipient (due) WHERE state = 'waiting';

CREATE TABLE finished (
  id uuid PRIMARY KEY,
  at double precision NOT NULL
);
CREATE INDEX finished_at ON finished (at);

CREATE TABLE suspension (
  name text PRIMARY KEY,
  more text NOT NULL                 -- JSON of the whole
);
