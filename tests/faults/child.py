"""Runs one gateway after the other, each in a forked child, so that a thousand starts cost no imports.

A program: it reads a line for each gateway, `FAULT<TAB>MODE<TAB>CONF`, and prints `serves PID`, later
`ended STATUS`. Mode `serve` runs until killed; `drain` until nothing is queued; `look` also gives back what
waits in memory, as a person's `queue list` does. The bounds of what is "large" are small here, so that a
message of a few kilobytes goes the ways of one of many megabytes.
"""

import asyncio
import os
import sys
from pathlib import Path

import uvloop

from gateway import faultpoint, message
from gateway.queue import Filter
from gateway.worker import Configuration, Worker

#: Bodies over this are files, and an entry of more recipients is stored in several transactions.
LARGE, MANY = 2048, 4


async def serve(conf, mode):
    worker = Worker(Configuration.load(Path(conf)))
    await worker.start()
    store = sys.modules[type(worker.queue).__module__]
    if hasattr(store, "BATCH"):
        store.BATCH = MANY
    say(f"serves {os.getpid()}")
    if mode == "serve":
        await asyncio.Event().wait()
    while await worker.queue.stats() or mode == "look":
        if mode == "drain" and await worker.queue.retry(Filter(state="queued")):
            worker.dispatchers[0].wake()
        await asyncio.sleep(0.03)
    await worker.stop()


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
            os.environ[faultpoint.VARIABLE] = fault
            try:
                uvloop.run(serve(conf, mode))
                os._exit(0)
            except BaseException as error:  # noqa: BLE001 - the parent's loop must not run twice
                say(f"failed {error!r}")
                os._exit(1)
        say(f"ended {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}")


main()
