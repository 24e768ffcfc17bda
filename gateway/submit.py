"""Takes mail of this machine's own programs: by the submit socket, and out of the drop folder.

`qmail/handover.py` has the other end and describes both forms. Who submits is known by the kernel
(SO_PEERCRED, the owner of a file), not by what is said. A drop was accepted when it was written: one
that a stage refuses is bounced.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import socket
import stat
import struct
from typing import TYPE_CHECKING

from gateway import events
from gateway.address import Address
from gateway.decision import Accept, Defer, Discard, Hold, Reject
from gateway.drops import addressed, beginning, kept, read, waiting
from gateway.envelope import Client, Entry, Failure, Recipient, Session, Transaction, new_id
from gateway.errors import GatewayError
from gateway.events import about
from gateway.hookspecs import Stages
from gateway.qmail import envelope, handover
from gateway.qmail.place import CONTROL
from gateway.queue.bounce import plain_bounce
from gateway.reception import why

if TYPE_CHECKING:
    from pathlib import Path

    from gateway.decision import Decision
    from gateway.drops import Drop
    from gateway.worker import Worker

#: Seconds between two looks into the drop folder.
EVERY = 5.0
#: Submissions read at one time: of all users, and of one.
_TOGETHER = 100
_OF_ONE_USER = 10
#: Clients send what they have at hand, so silence this long is the end.
_SILENCE = 60.0
#: However busily a client sends, it gives its place to others after this many seconds.
_LONGEST = 900.0
#: At a stop, submissions under way get this many seconds.
_GRACE = 5.0
#: A drop that cannot be taken is set aside under this name, for a person.
_ASIDE = b"bad."
#: Everybody may write a drop, and see none; the gateway reads them by its group.
_OF_DROPS = 0o3733
_CREDENTIALS = struct.Struct("3i")


class _GoneError(Exception):
    """The client left before its submission was whole."""


def open_socket(state: Path, hostname: str) -> socket.socket:
    """Let every user submit: open the socket, and make the drop folder."""
    for private in (state / "queue", state / "journal"):
        if private.is_dir():
            private.chmod(stat.S_IMODE(private.stat().st_mode) & 0o770)
    state.chmod(stat.S_IMODE(state.stat().st_mode) & 0o771 | 0o011)  # others pass through
    # What programs complete addresses with, where there are no control files of qmail.
    control = state / os.fsdecode(CONTROL)
    control.mkdir(exist_ok=True)
    control.chmod(0o755)
    (control / "me").write_text(f"{hostname}\n")
    (control / "me").chmod(0o644)
    drops = state / os.fsdecode(handover.DROPS)
    drops.mkdir(exist_ok=True)
    if stat.S_IMODE(drops.stat().st_mode) != _OF_DROPS:  # a hardened unit forbids to set it again
        drops.chmod(_OF_DROPS)
    path = state / os.fsdecode(handover.SOCKET)
    path.unlink(missing_ok=True)
    one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    one.setblocking(False)
    one.bind(str(path))
    path.chmod(0o666)
    one.listen(_TOGETHER)
    return one


class Submit:
    """Takes what comes by the submit socket, which workers share; one of them looks for drops."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._state = worker.settings.gateway.state
        self._server: asyncio.Server | None = None
        self._looking: asyncio.Task[None] | None = None
        self._free = asyncio.Semaphore(_TOGETHER)
        self._users: dict[int, asyncio.Semaphore] = {}
        self._serving: set[asyncio.Task[None] | None] = set()

    async def start(self, listening: socket.socket | None = None) -> None:
        """Serve this socket, or open one; the first worker begins to look for drops."""
        one = listening or open_socket(self._state, self._worker.settings.gateway.hostname)
        self._server = await asyncio.start_unix_server(self._serve, sock=one, limit=handover.BLOCK)
        if self._worker.number == 0:
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def stop(self) -> None:
        """Take no more; who is being served gets an answer within _GRACE, so that nobody sends twice."""
        if self._server is not None:
            self._server.close()
        serving = [task for task in self._serving if task]
        if serving:
            await asyncio.wait(serving, timeout=_GRACE)
        if self._looking is not None:
            self._looking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._looking

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        uid, task = _peer(writer), asyncio.current_task()
        self._serving.add(task)
        mine = self._users.setdefault(uid, asyncio.Semaphore(_OF_ONE_USER))
        try:
            async with mine, self._free:
                answer = await self._submission(reader, uid)
            writer.write(answer)
            await writer.drain()
        except (_GoneError, OSError):
            pass
        finally:
            self._serving.discard(task)
            writer.close()

    async def _submission(self, reader: asyncio.StreamReader, uid: int) -> bytes:
        """Read one submission and give the answer to it. Raises _GoneError."""
        transaction = _transaction(new_id(), uid)
        spool = self._worker.reception.spool(transaction)
        refusal: Decision | None = None
        try:
            end = asyncio.get_running_loop().time() + _LONGEST
            while block := await _block(reader, end):
                # A refusal is told at the end: a client that still sends would not hear it.
                refusal = refusal or kept(spool.write, block)
            raw = bytearray()
            while block := await _block(reader, end):
                raw += block
                if len(raw) > envelope.MAX_BYTES:
                    raise _GoneError
            refusal = refusal or await asyncio.to_thread(addressed, transaction, bytes(raw))
            if refusal is None:
                decision = await self._worker.reception.message(transaction, spool.finish())
                return _told(decision, transaction)
        finally:
            spool.discard()
        self._tell(transaction, refusal)
        return _told(refusal, transaction)

    async def _look(self) -> None:
        while True:
            try:
                for drop in await asyncio.to_thread(waiting, self._path(b"")):
                    await self._take(drop)
            except (GatewayError, OSError) as error:  # the drops stay for the next look
                self._worker.generation.chain.emit(events.QueueFailed(error=f"drop folder: {error}"))
            await asyncio.sleep(EVERY)

    async def _take(self, drop: Drop) -> None:
        """Take one drop in; one that is deferred stays for the next look."""
        transaction = _transaction(drop.id, drop.owner)
        if await self._worker.queue.get(drop.id):
            decision: Decision = Accept()  # a crash came between the commit and the unlink
        else:
            decision = await self._read(drop, transaction)
            if isinstance(decision, Reject) and transaction.recipients:
                decision = await self._bounced(transaction, drop, decision)
        if isinstance(decision, Accept | Discard):
            os.unlink(self._path(drop.name))  # noqa: PTH108 - the name is bytes
        elif isinstance(decision, Reject):
            os.rename(self._path(drop.name), self._path(_ASIDE + drop.name))  # noqa: PTH104 - the same

    async def _read(self, drop: Drop, transaction: Transaction) -> Decision:
        spool = self._worker.reception.spool(transaction)
        try:
            refusal = await asyncio.to_thread(read, self._path(drop.name), transaction, spool)
            if refusal is None:
                return await self._worker.reception.message(transaction, spool.finish())
        finally:
            spool.discard()
        self._tell(transaction, refusal)
        return refusal

    def _tell(self, transaction: Transaction, refusal: Decision) -> None:
        """Tell a refusal that was made here, before any stage was asked."""
        assert isinstance(refusal, Reject | Defer)  # noqa: S101 - no other is made here
        event = events.MessageRefused(
            **about(transaction.session), **why(refusal), message=transaction.id, sender=transaction.sender
        )
        self._worker.generation.chain.emit(event)

    async def _bounced(self, transaction: Transaction, drop: Drop, refusal: Reject) -> Decision:
        """Queue the bounce of a drop that was refused."""
        worker = self._worker
        message = await asyncio.to_thread(beginning, self._path(drop.name), transaction)
        site, chain = worker.configuration.site, worker.generation.chain
        entry = Entry(transaction.id, transaction.sender, message, [], worker.services.clock.time(), "submit")
        entry.size = message.size
        failures = [Failure(one, f"{refusal.text}\n", refusal.status) for one in transaction.recipients]
        answer = await chain.ask(Stages.bounce, entry, failures)
        birth = answer.value or plain_bounce(entry, failures, site.hostname, site.postmaster)
        if birth is None:
            return Discard("triple_bounce")
        recipients = [Recipient(one, one) for one in birth.recipients]
        made = Transaction(new_id(), birth.sender, birth.origin, recipients=recipients, parent=transaction.id)
        return await worker.reception.message(made, birth.message)

    def _path(self, name: bytes) -> bytes:
        return b"%b/%b/%b" % (os.fsencode(self._state), handover.DROPS, name)


def _transaction(id_: str, uid: int) -> Transaction:
    session = Session(new_id(), "submit", "submit", Client("127.0.0.1", name="localhost"), user=_login(uid))
    return Transaction(id_, Address(""), "submit", session)


def _login(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _peer(writer: asyncio.StreamWriter) -> int:
    link = writer.get_extra_info("socket")
    raw = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid


async def _block(reader: asyncio.StreamReader, end: float) -> bytes:
    """Read one block, empty at the end of a part, before this time of the loop. Raises _GoneError."""
    until = min(end, asyncio.get_running_loop().time() + _SILENCE)
    try:
        async with asyncio.timeout_at(until):
            (length,) = handover.LENGTH.unpack(await reader.readexactly(handover.LENGTH.size))
            if length > handover.BLOCK:
                raise _GoneError
            return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, TimeoutError, OSError) as error:
        raise _GoneError from error


def _told(decision: Decision, transaction: Transaction) -> bytes:
    """Write a decision as the socket's answer."""
    if isinstance(decision, Accept | Discard | Hold):
        return f"K{transaction.id}".encode()
    letter = "D" if decision.status.startswith("5") else "Z"
    return f"{letter}{decision.status} {decision.text}".encode("utf-8", "backslashreplace")
