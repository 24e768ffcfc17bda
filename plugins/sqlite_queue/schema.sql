-- Addresses are BLOBs: they may hold bytes that are no UTF-8.
CREATE TABLE entry (
  seq     INTEGER PRIMARY KEY,
  id      TEXT NOT NULL UNIQUE,
  state   TEXT NOT NULL,              -- receiving, queued
  open    INTEGER NOT NULL,           -- recipients that have not ended
  held    INTEGER NOT NULL,           -- those of them that are held
  delivered INTEGER NOT NULL,         -- recipients that were delivered
  numbers INTEGER NOT NULL,           -- the number that the next new recipient gets
  sender  BLOB NOT NULL,
  birth   REAL NOT NULL,
  origin  TEXT NOT NULL,
  parent  TEXT NOT NULL,
  size    INTEGER NOT NULL,
  more    TEXT NOT NULL,              -- JSON: params, facts, notes
  file    INTEGER,                    -- size of bodies/ID; NULL: the body is in this row
  header  BLOB NOT NULL,
  body    BLOB
);

-- A delivered recipient has no row; a failed one keeps its row for the bounce.
CREATE TABLE recipient (
  entry    INTEGER NOT NULL,
  number   INTEGER NOT NULL,
  state    TEXT NOT NULL,             -- ready (queued, due), waiting (queued, due later), attempting, held, failed, expired
  due      REAL NOT NULL,             -- of a held one: since when it is held
  attempts INTEGER NOT NULL,
  lane     BLOB NOT NULL,             -- sender, NUL, domain
  address  BLOB NOT NULL,
  original BLOB NOT NULL,
  more     TEXT NOT NULL,             -- JSON of the rest, empty when there is none
  PRIMARY KEY (entry, number)
) WITHOUT ROWID;

-- The dispatcher hops over lanes in this one,
CREATE INDEX ready ON recipient (lane) WHERE state = 'ready';
-- and moves rows into it from this one when their time comes.
CREATE INDEX waiting ON recipient (due) WHERE state = 'waiting';

-- What a start looks for, without reading a million rows.
CREATE INDEX receiving ON entry (seq) WHERE state = 'receiving';
CREATE INDEX filed ON entry (id) WHERE file IS NOT NULL;

-- Messages whose last recipient has ended: no archive may bring one back while a copy of it may be about.
CREATE TABLE finished (
  id   BLOB PRIMARY KEY,              -- the 16 bytes of the id, which begin with its time
  time REAL NOT NULL                  -- when it ended
) WITHOUT ROWID;

PRAGMA user_version = 2;
