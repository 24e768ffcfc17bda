"""The workers, from both sides: `pool` keeps `seat`s, each with a `process`, whose inside is `child`.

The supervisor's: `pool`, `seat`, `process`, `watchdog`, `fanout`. A worker's own: `child`, `calls`. What goes
between them: `handover` (open sockets), `sharing` (limits and slots). They call over `gateway.link`.
"""
