/* Claim, lease and finish of postgres_queue, for one message and two nodes that may die, stop or be cut off.
 *
 * What is atomic here is one transaction there, or one step of one node. Time is a promise that the code keeps with
 * clocks: the database fences an epoch only after its lease, and a node is sure of its lease only while it is not
 * fenced (`sure` falls before `live`). A stopped node knows nothing of time: what it looked at before may be old.
 *
 * Checked for every path by tests/faults/test_postgres_model.py:
 *   - no state forgets a message that nobody has taken (the assertion at FINISH, and `kept`);
 *   - without REPEATS a second delivery violates the assertion at DELIVER: that happens;
 *   - where no node stops, dies or is cut off between its last look and the end of FINISH (PROMPT) it does not,
 *     so the cases that docs/plugins/postgres_queue.md names are all that there are;
 *   - nor does it without faults (CALM).
 */
#define NODES 2
#define NOBODY 255

bool stored = true;          /* the row of the message is there */
byte owner = NOBODY;         /* which epoch has claimed it */
byte copies = 0;             /* deliveries that the other side has taken */
bool live[NODES] = true;     /* the epoch of the node is in the table `node` */
bool sure[NODES] = true;     /* by its own clock it is */
bool running[NODES] = true;  /* neither dead nor stopped */
bool linked[NODES] = true;   /* the database hears it */
bool dead[NODES] = false;
byte faults = 0;
byte refused = 0;
bool busy = false;           /* node 0, the one that may fail, must not do so now */

#ifdef CALM
#define MAY_FAIL false
#else
#define MAY_FAIL (faults < 2 && !busy)
#endif
#ifdef PROMPT
#define LOOK(n) (sure[n] && linked[n])
#define BUSY(n, is) if :: n == 0 -> busy = is :: else fi
#else
#define LOOK(n) sure[n]
#define BUSY(n, is) skip
#endif

/* A step of node n that touches nothing but itself; one that talks to the database. */
#define STEP(n) running[n]
#define ASK(n) (running[n] && linked[n])

active [NODES] proctype node() {
  byte me = _pid;

claim:
  do
  :: atomic { ASK(me) && live[me] && sure[me] && stored && owner == NOBODY -> owner = me; break }
  :: atomic { ASK(me) && !live[me] -> live[me] = true; sure[me] = true }   /* a new epoch */
  :: atomic { STEP(me) && !stored -> goto end }
  :: atomic { dead[me] -> goto end }
  od;

  /* confirm: no delivery begins while the lease is not sure */
  if
  :: atomic { STEP(me) && sure[me] && owner == me -> skip }
  :: atomic { STEP(me) && !sure[me] -> goto lost }
  :: atomic { dead[me] -> goto end }
  fi;

  /* the last look, before the final dot */
  if
  :: atomic { STEP(me) && LOOK(me) -> BUSY(me, true) }
  :: atomic { STEP(me) && !sure[me] -> goto lost }
  :: atomic { dead[me] -> goto end }
  fi;

deliver:
  if
  :: atomic { STEP(me) ->
       copies++;
#ifndef REPEATS
       assert(copies == 1);
#endif
       skip }
  :: atomic { STEP(me) && refused < 2 -> refused++; goto give_back }        /* the other side does not want it yet */
  :: atomic { dead[me] -> goto end }
  fi;

  /* finish: one transaction, in the epoch of the claim, or none */
  do
  :: atomic { ASK(me) && live[me] && owner == me ->
       assert(copies > 0);
       stored = false; owner = NOBODY; BUSY(me, false); goto end }
  :: atomic { ASK(me) && (!live[me] || owner != me) -> goto lost }
  :: atomic { dead[me] -> goto end }
  od;

give_back:
  do
  :: atomic { ASK(me) && live[me] && owner == me -> owner = NOBODY; BUSY(me, false); goto claim }
  :: atomic { ASK(me) && (!live[me] || owner != me) -> goto lost }
  :: atomic { dead[me] -> goto end }
  od;

lost:   /* ClaimLost: what is known of the attempt cannot be stored */
  BUSY(me, false);
  do
  :: atomic { ASK(me) && !live[me] -> live[me] = true; sure[me] = true; goto claim }
  :: atomic { ASK(me) && live[me] && owner != me -> goto claim }
  :: atomic { ASK(me) && live[me] && owner == me -> owner = NOBODY; goto claim }
  :: atomic { dead[me] -> goto end }
  od;

end:
  skip
}

/* Clocks: a node that does not renew stops being sure, and later is fenced by whoever lives. */
active proctype clock() {
  byte n;
end:
  do
  :: atomic { sure[0] && live[0] && !(running[0] && linked[0]) -> sure[0] = false }
  :: atomic { sure[1] && live[1] && !(running[1] && linked[1]) -> sure[1] = false }
  :: atomic { live[0] && !sure[0] -> live[0] = false; if :: owner == 0 -> owner = NOBODY :: else fi }
  :: atomic { live[1] && !sure[1] -> live[1] = false; if :: owner == 1 -> owner = NOBODY :: else fi }
  :: atomic { live[0] && !sure[0] && running[0] && linked[0] -> sure[0] = true }
  :: atomic { live[1] && !sure[1] && running[1] && linked[1] -> sure[1] = true }
  od
}

/* Faults: at most two, of one node; the other stays, as somebody must take over. */
active proctype fate() {
end:
  do
  :: atomic { MAY_FAIL && running[0] -> running[0] = false; faults++ }                          /* SIGSTOP */
  :: atomic { MAY_FAIL && running[0] -> running[0] = false; dead[0] = true; faults = 2 }        /* SIGKILL */
  :: atomic { MAY_FAIL && linked[0] -> linked[0] = false; faults++ }                            /* cut off */
  :: atomic { !running[0] && !dead[0] -> running[0] = true }                                    /* SIGCONT */
  :: atomic { !linked[0] -> linked[0] = true }
  od
}

/* The row stays until somebody has taken the message: no reachable state loses it. */
ltl kept { [] (stored || copies > 0) }
/* It does not stay for ever, where the living are given their turns. */
ltl arrives { <> (!stored) }
