"""Runs one gateway after the other, each in a forked child, so that a thousand starts cost no imports.

A program: it reads a line for each gateway, `FAULT<TAB>MODE<TAB>CONF`, and prints `serves PID`, later
`ended STATUS`. Mode `serve` runs until killed; `drain` until nothing is queued; `look` also gives back what
waits in memory, as a person's `queue list` does; `fail` lets the call of FAULT (`EIO 3`) fail after the
start, drains from SIGUSR1 on, and says whether a call has failed; `leave` stops gently while it holds what it
has claimed. The bounds of what is "large" are small
here, so that a message of a few kilobytes goes the ways of one of many megabytes.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

import uvloop
from injector import Injector

from gateway import faultpoint, message
from gateway.journal import writer as journal_writer
from gateway.queue import Filter, QueueError, dispatcher, ending
from gateway.worker import Configuration, Worker

#: Bodies over this are files, and an entry of more recipients is stored in several transactions.
LARGE, MANY = 2048, 4
#: As are a body's pieces of so many bytes, where it is kept in a database.
PIECE, PIECES = 16_384, 2
#: So much waits when `leave` stops: there is more than can be delivered at a time.
BACKLOG = 30


async def serve(conf, mode, injector=None):
    worker = Worker(Configuration.load(Path(conf)))
    await worker.start()
    narrow(type(worker.queue).__module__)
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, asked.set)
    if injector:
        injector.armed = True
    say(f"serves {os.getpid()}")
    if mode == "fail":
        await asked.wait()
    if mode == "serve":
        await asyncio.Event().wait()
    if mode == "leave":
        while sum(one.recipients for one in await worker.queue.stats()) < BACKLOG:  # noqa: ASYNC110
            await asyncio.sleep(0.03)
        await worker.stop()
    while await waits(worker, mode):  # noqa: ASYNC110 - no event says that a queue is empty
        await asyncio.sleep(0.03)
    await worker.stop()
    if injector:
        say(f"failed {injector.fired}")


def narrow(name):
    """Let the store of this module take little for large."""
    store, bodies = sys.modules[name], sys.modules.get(f"{name.rpartition('.')[0]}.bodies")
    if hasattr(store, "BATCH"):
        store.BATCH = MANY
    elif bodies:
        store.RECIPIENTS = bodies.RECIPIENTS = MANY
        bodies.PIECE, bodies.PIECES = PIECE, PIECES


async def waits(worker, mode):
    """Say whether anything is queued still, and hurry it."""
    try:
        if mode != "look" and await worker.queue.retry(Filter(state="queued")):
            worker.dispatchers[0].wake()
        return await worker.queue.stats() or mode == "look"
    except QueueError:
        return True


def injected(fault):
    """Make the injector; who waits for a disk to recover waits a moment only."""
    ending.PAUSE = dispatcher.PAUSE = journal_writer.RETRY = 0.05
    name, nth = fault.split()
    return Injector(name, int(nth))


def say(line):
    os.write(1, f"{line}\n".encode())


def main():
    message.IN_MEMORY = LARGE
    # One that is imported before the first fork is there for all.
    import gateway.commands.run
    import gateway.smtp.server  # noqa: F401

    for line in sys.stdin:
        fault, mode, conf = line.rstrip("\n").split("\t")
        child = os.fork()
        if not child:
            os.environ[faultpoint.VARIABLE] = "none" if mode == "fail" else fault
            try:
                uvloop.run(serve(conf, mode, injected(fault) if mode == "fail" else None))
                os._exit(0)
            except BaseException as error:  # noqa: BLE001 - the parent's loop must not run twice
                say(f"failed {error!r}")
                os._exit(1)
        say(f"ended {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")


main()
