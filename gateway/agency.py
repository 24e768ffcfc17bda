"""A worker's side of the agent: deliveries as other users, files of TLS, sockets of new listeners.

What comes back from a child is the account's own word, not ours: see `gateway.errand`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gateway.accounts.ownership import refuse_changeable
from gateway.endpoint import Endpoint
from gateway.envelope import Outcome
from gateway.errand import LONGEST_ANSWER, asked_to_deliver, asked_whether_exists, outcome_of
from gateway.errors import AgentError
from gateway.hookspecs import Stages
from gateway.message import FileBody
from gateway.passing import send_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from gateway.chain import Step
    from gateway.envelope import Account, Delivery, EntryRecipient, Recipient
    from gateway.listeners import Sockets
    from gateway.plugin import Plugin
    from gateway.settings import Listener

#: The plugins that deliver as the account that a recipient belongs to.
AS_ACCOUNT = ("dot_qmail",)
#: A file that the agent reads for us.
_LONGEST_FILE = 1024 * 1024
#: The agent answers at once; children that deliver have limits of their own.
_WAIT = 30.0
#: What a delivery may take besides the time of a program; its account could hold the child for ever.
_MORE = 60.0
#: The time of a program, where a site's own plugin has no setting for it.
_PROGRAM = 600.0
_MOST_FILES = 253
_BUSY = 0.05


class Agency:
    """Asks the agent over the socket that the supervisor has inherited."""

    def __init__(self, door: socket.socket) -> None:
        #: The way to the agent, which all processes of the gateway share.
        self.door = door
        self.uid = os.geteuid()

    def bound(self, step: Step, plugin: Plugin[Any], stage: str) -> Step:
        """Give the step of a plugin at `deliver` or `exists` that works as the account of the recipient."""
        return replace(step, call=_AsAccount(self, plugin, step.call).at(stage))

    def read(self, path: Path, within: float) -> bytes:
        """Read a file of TLS; where we may not, have root open it within so many seconds.

        Not for the event loop: it waits. Raises OSError.
        """
        with contextlib.suppress(PermissionError):
            return path.read_bytes()
        try:
            said, files = self._ask_now({"do": "read", "path": str(path)}, within)
        except AgentError as error:
            raise TimeoutError(errno.ETIMEDOUT, str(error), str(path)) from error
        if not files:
            raise PermissionError(13, said.get("error", "the agent did not answer"), str(path))
        with os.fdopen(files[0], "rb") as file:
            return file.read(_LONGEST_FILE)

    async def notify(self, word: str) -> None:
        """Have systemd told: it listens to the agent alone. Mail does not depend on it."""
        with contextlib.suppress(AgentError):
            await asyncio.to_thread(self._ask_now, {"do": "notify", "word": word})

    async def adopt(self) -> None:
        """Have root go by the configuration that `bind` had read. Raises AgentError."""
        said, _ = await asyncio.to_thread(self._ask_now, {"do": "adopt"})
        if "error" in said:
            raise AgentError(said["error"])

    async def unbind(self) -> None:
        """Have sockets removed whose listener is no more. To connect there is refused in any case."""
        with contextlib.suppress(AgentError):
            await asyncio.to_thread(self._ask_now, {"do": "unbind"})

    async def bind(self, listeners: Sequence[Listener], workers: int) -> list[Sockets]:
        """Have the configuration read by root's reader, and these of its listeners opened.

        Raises AgentError with what is wrong with it.
        """
        wanted = [str(one.address) for one in listeners]
        said, files = await asyncio.to_thread(self._ask_now, {"do": "reload", "bind": wanted})
        if "error" in said:
            raise AgentError(said["error"])
        shares: list[Sockets] = []
        for counts in said["bound"]:
            share: Sockets = {}
            for address, count in counts:
                taken, files = files[:count], files[count:]
                share[Endpoint.parse(address)] = [socket.socket(fileno=one) for one in taken]
            shares.append(share)
        return shares or [{} for _ in range(workers)]

    async def ask(
        self, account: Account, request: bytes, body: FileBody | None, within: float = _WAIT
    ) -> dict[str, Any]:
        """Have the child of an account do something, within so many seconds; to be cancelled is to hang up.

        Raises AgentError.
        """
        with contextlib.ExitStack() as stack:
            files = [_in_memory(request)]
            stack.callback(os.close, files[0])
            if body is not None:
                files.append(os.open(body.path, os.O_RDONLY | os.O_CLOEXEC))
                stack.callback(os.close, files[1])
            asked = {"do": "account", "account": account.user, "home": account.home}
            said = await self._asked(asked, files, within)
        if "error" in said:
            raise AgentError(f"as {account.user}: {said['error']}")
        return said

    async def login(self, plugin: str, credentials: int) -> int:
        """Have root run a plugin's program on a login, with this file as its fd 3; gives its exit code.

        Raises AgentError.
        """
        said = await self._asked({"do": "login", "plugin": plugin}, [credentials], 2 * _WAIT)
        if "error" in said:
            raise AgentError(str(said["error"]))
        return int(said["exit"])

    async def _asked(self, asked: dict[str, Any], files: Sequence[int], within: float) -> dict[str, Any]:
        """Ask what may take its time. Raises AgentError."""
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_unix_connection(sock=ours, limit=LONGEST_ANSWER)
        try:
            with theirs:
                await self._send(asked, [*files, theirs.fileno()])
            async with asyncio.timeout(within):
                return await _all(reader)
        except TimeoutError:
            raise AgentError(f"no answer came within {within:g} s") from None
        finally:
            writer.close()

    async def _send(self, asked: dict[str, Any], files: Sequence[int]) -> None:
        data = json.dumps(asked).encode()
        async with asyncio.timeout(_WAIT):
            while True:
                try:
                    send_files(self.door, data, files)
                except BlockingIOError:
                    await asyncio.sleep(_BUSY)
                except OSError as error:
                    raise AgentError(f"the agent is gone: {error.strerror}") from error
                else:
                    return

    def _ask_now(self, asked: dict[str, Any], within: float = _WAIT) -> tuple[dict[str, Any], list[int]]:
        """Ask, in a thread, what is answered at once. Raises AgentError."""
        end = time.monotonic() + within
        ours, theirs = socket.socketpair()
        with ours:
            try:
                with theirs:
                    self._send_now(json.dumps(asked).encode(), theirs.fileno(), end)
                ours.settimeout(max(end - time.monotonic(), 0))
                data, files, _, _ = socket.recv_fds(ours, _LONGEST_FILE, _MOST_FILES, socket.MSG_CMSG_CLOEXEC)
            except OSError as error:
                raise AgentError(f"the agent does not answer: {error.strerror or error}") from error
        return (json.loads(data) if data else {"error": "the agent hung up"}), list(files)

    def _send_now(self, data: bytes, reply: int, end: float) -> None:
        """Send, until then, what has to wait for room. Raises OSError."""
        while time.monotonic() < end:
            try:
                send_files(self.door, data, [reply])
            except BlockingIOError:
                time.sleep(_BUSY)
            else:
                return
        raise TimeoutError("timed out")


class _AsAccount:
    """One plugin's `deliver` and `exists`, as the account of each recipient."""

    def __init__(self, agency: Agency, plugin: Plugin[Any], call: Callable[..., Any]) -> None:
        self._agency = agency
        self._plugin = plugin
        self._call = call
        self._within = getattr(plugin.settings, "program_time", _PROGRAM) + _MORE

    def at(self, stage: str) -> Callable[..., Any]:
        """Give the call of a stage."""
        return self._deliver if stage == "deliver" else self._exists

    async def _deliver(self, delivery: Delivery) -> list[Outcome]:
        return [await self._deliver_one(delivery, one) for one in delivery.recipients]

    async def _deliver_one(self, delivery: Delivery, one: EntryRecipient) -> Outcome:
        sent = replace(delivery, recipients=(one,))
        message = delivery.entry.message
        body = message.body if isinstance(message.body, FileBody) else None
        try:
            account = await self._account(one.recipient)
            if account is None:
                outcome: Outcome = (await self._inline(sent))[0]
                return outcome
            request = asked_to_deliver(self._plugin.stem, account, sent)
            said = await self._agency.ask(account, request, body, self._within)
            return outcome_of(said, one.number, message)
        except AgentError as error:
            return Outcome(one.number, "deferred", f"{error}", "4.3.0")

    async def _exists(self, recipient: Recipient) -> bool:
        account = await self._account(recipient)
        if account is None:
            found: bool = await self._inline(recipient)
            return found
        request = asked_whether_exists(self._plugin.stem, account, recipient)
        return (await self._agency.ask(account, request, None)).get("value") is not False

    async def _inline(self, subject: Any) -> Any:
        said = self._call(subject)
        return await said if hasattr(said, "__await__") else said

    async def _account(self, recipient: Recipient) -> Account | None:
        """Give the account to become; None when nobody has it, or it is what we are already.

        Raises AgentError for a home of ours that others could put another in the place of.
        """
        local, _, host = recipient.address.rpartition("@")
        answer = await self._plugin.chain.ask(Stages.account, local, host)
        account: Account | None = None if answer.failed else answer.value
        if account is None or account.uid != self._agency.uid:
            return account
        # What we cannot look at we cannot deliver to, and the plugin says so.
        with contextlib.suppress(OSError):
            await asyncio.to_thread(refuse_changeable, account.home, account.uid)
        return None


def _in_memory(data: bytes) -> int:
    number = os.memfd_create("request")
    with os.fdopen(os.dup(number), "wb") as file:
        file.write(data)
    return number


async def _all(reader: asyncio.StreamReader) -> dict[str, Any]:
    """Read an answer to its end. Raises AgentError."""
    data = bytearray()
    while block := await reader.read(1024 * 1024):
        data += block
        if len(data) > LONGEST_ANSWER:
            raise AgentError("its answer is too long")
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise AgentError("no answer came: too many processes, or no memory (see dot_qmail.program_*)")
    return said
