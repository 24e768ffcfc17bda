"""dot_qmail: deliver to accounts as their `.qmail` files say. Replaces qmail-lspawn and qmail-local.

Options: `default_delivery` (where no `.qmail` file says anything), `program_time`, `program_path`, and what
programs may take of the host: `program_memory`, `program_processes`, `program_files`.
Events: none of its own; the dispatcher tells each delivery's fate with the text given here:
`did files+forwards+programs`.

Mail for a postmaster whom no account takes is forwarded to `gateway.postmaster`.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from pydantic import ConfigDict, Field

from gateway import Account, Address, Birth, Duration, Message, Outcome, Plugin, Stages, accounts, hookimpl

from .execute import PATH, Job, perform
from .failure import DeliveryError, NoMailboxError
from .home import check_home, find_control
from .parser import delivered_to, is_loop
from .program import Limits

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from gateway import Context, Delivery, EntryRecipient, Recipient

    from .execute import Result

    T = TypeVar("T")

#: qmail's own ceiling for deliveries at a time (conf-spawn); `queue.concurrency.local` is what a site sets.
THREADS = 120


class Settings(accounts.ProgramLimits):
    """What holds for every account."""

    model_config = ConfigDict(extra="forbid")

    #: Instructions for accounts without a `.qmail` file, or with an empty one; may be several lines.
    default_delivery: str = "./Maildir/"
    #: A program line is ended, with all that it has started, when it runs longer than this. Under root, so
    #: is a whole delivery that takes a minute longer.
    program_time: Duration = Field(default=600.0, gt=0)
    #: Where program lines find their commands; qmail's own programs (`preline`, `forward`) are among them.
    program_path: str = PATH


class DotQmail(Plugin[Settings]):
    """Finds out whether an account takes an address, and delivers to it."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        # Disks and programs block; threads keep that away from the event loop.
        self._threads = ThreadPoolExecutor(THREADS, "dot_qmail")

    @hookimpl
    async def exists(self, recipient: Recipient) -> bool:
        """Say whether a `.qmail` file or the default delivery would take this mail; raises on doubt."""
        local = _split(recipient.address)[0]
        if not local or self._fallback(recipient):
            return True
        account = await self._account(recipient.address)
        return account is not None and await self._in_thread(lambda: _takes(account))

    @hookimpl
    async def deliver(self, delivery: Delivery) -> list[Outcome]:
        """Deliver to each recipient, and say what is to be forwarded."""
        return [await self._deliver(delivery, one) for one in delivery.recipients]

    async def explain(self, recipient: Recipient) -> list[str]:
        """Say which file and lines would take this mail, for `mailward address`; raises on doubt."""
        local, host = _split(recipient.address)
        account, fallback = await self._account(recipient.address), self._fallback(recipient)
        if account is None or not local:
            return [f"forward {fallback}" if fallback else "nobody takes it"]
        job = Job(
            account=account,
            local=local,
            host=host,
            sender="",
            message=Message(b""),
            default_delivery=self.settings.default_delivery,
            limits=self._limits(),
            name="",
            birth=0.0,
            now=self.clock.time(),
            fallback=fallback,
            dry_run=True,
        )
        result = await self._in_thread(lambda: perform(job))
        where = result.control or "default_delivery"
        lines = [f"{where}:{one.line}: {one.kind} {one.text}" for one in result.actions]
        return lines if result.result == "delivered" else [*lines, f"{where}: {result.text}"]

    @hookimpl
    def shutdown(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False)

    async def _deliver(self, delivery: Delivery, one: EntryRecipient) -> Outcome:
        address = one.recipient.address
        local, host = _split(address)
        if "@" not in address:
            return Outcome(one.number, "failed", "the recipient has no domain (#5.1.3)", "5.1.3")
        if not local:
            return Outcome(one.number, "delivered", "did 0+0+0")
        try:
            account = await self._account(address)
        except DeliveryError as failure:
            return Outcome(one.number, "deferred", str(failure), failure.status)
        fallback = self._fallback(one.recipient)
        if account is None:
            return _without_account(delivery, one, fallback)
        job = Job(
            account=account,
            local=local,
            host=host,
            sender=delivery.sender,
            message=delivery.entry.message,
            default_delivery=self.settings.default_delivery,
            limits=self._limits(),
            name=f"{int(delivery.entry.birth)}.{delivery.entry.id}R{one.number}",
            birth=delivery.entry.birth,
            now=self.clock.time(),
            fallback=fallback,
            path=self.settings.program_path,
            # Where accounts are become, who is delivered to from here is nobody but the gateway.
            programs=self.agency is None,
        )
        try:
            result = await self._in_thread(lambda: perform(job))
        except DeliveryError as failure:
            job.limits.called_off.set()  # what no thread was had for waits for one all the same
            return Outcome(one.number, "deferred", str(failure), failure.status)
        except asyncio.CancelledError:
            job.limits.called_off.set()
            raise
        return _outcome(job, one.number, result)

    async def _account(self, address: Address) -> Account | None:
        """Ask who controls an address. Raises DeliveryError when nobody can tell now, or when it is root."""
        answer = await self.chain.ask(Stages.account, *_split(address))
        if answer.failed:
            raise DeliveryError("4.3.0", "the account cannot be looked up")
        if answer.value is not None and answer.value.uid == 0:
            raise DeliveryError("4.3.0", "the account is root's, and nothing is ever delivered as root")
        return answer.value

    def _fallback(self, recipient: Recipient) -> str:
        """Give who takes a postmaster's mail where no account does, "" for other recipients."""
        original, postmaster = recipient.original, self.site.postmaster
        if original.local_part.lower() != "postmaster" or original.lower() == postmaster.lower():
            return ""
        return postmaster

    def _limits(self) -> Limits:
        return Limits(self.settings.program_time, threading.Event(), self.settings.program_memory)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Do what blocks. Raises DeliveryError when no thread can be started for it."""
        try:
            working = asyncio.get_running_loop().run_in_executor(self._threads, work)
        except RuntimeError as error:
            text = "no thread can be started: too many processes, or no memory"
            raise DeliveryError("4.3.0", text) from error
        return await working


def _split(address: Address) -> tuple[str, str]:
    """Split at the last `@`, keeping the case of both halves."""
    local, _, host = address.rpartition("@")
    return local, host


def _takes(account: Account) -> bool:
    """Look whether a `.qmail` file takes the account's address. Raises DeliveryError on doubt."""
    check_home(account.home)
    try:
        find_control(account.home, account.dash, account.ext)
    except NoMailboxError:
        return False
    return True


def _without_account(delivery: Delivery, one: EntryRecipient, fallback: str) -> Outcome:
    """End a delivery that no account takes; a postmaster's goes on."""
    line = delivered_to(*_split(one.recipient.address)).encode("utf-8", "surrogateescape")
    if not fallback:
        return Outcome(one.number, "failed", str(NoMailboxError()), "5.1.1")
    if is_loop(delivery.entry.message.header, line):
        return Outcome(one.number, "failed", "this message is looping (#5.4.6)", "5.4.6")
    birth = _forward(delivery.entry.message, line, delivery.sender, [fallback])
    return Outcome(one.number, "delivered", "did 0+1+0", births=(birth,))


def _outcome(job: Job, number: int, result: Result) -> Outcome:
    births: tuple[Birth, ...] = ()
    if result.forwards:
        line = job.delivered_to.encode("utf-8", "surrogateescape")
        births = (_forward(job.message, line, result.new_sender, result.forwards),)
    return Outcome(number, result.result, result.text, result.status, births=births)


def _forward(message: Message, line: bytes, sender: str, recipients: list[str]) -> Birth:
    """Make the one message that carries all forwards: Delivered-To, then every byte as it was."""
    forwarded = Message(line + message.header, message.body)
    return Birth(Address(sender), tuple(map(Address, recipients)), forwarded, "forward")
