"""Carries out one local delivery: the part of qmail-local that runs with the account's rights.

Blocking, and without a chain: a thread or a child that has become the account's user calls `perform`.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from . import maildir, mbox, program
from .failure import DeliveryError, NoMailboxError
from .home import Control, check_home, find_control, owner_files
from .parser import (
    BlankFirstLineError,
    Instruction,
    delivered_to,
    from_line,
    is_loop,
    owner_address,
    parse,
    quote_mbox,
    return_path,
    variables,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway import Account, Message

#: What programs find their commands in: qmail's own first, as its start script had it.
PATH = "/var/qmail/bin:/usr/local/bin:/usr/bin:/bin"
#: A report keeps this much of what programs printed, as qmail-lspawn did.
REPORT_LIMIT = 3000


@dataclass(frozen=True, slots=True)
class Job:
    """One delivery: to whom, what, and within which bounds."""

    account: Account
    #: The recipient as rewritten, split at its last `@`.
    local: str
    host: str
    #: The envelope sender, VERP expanded.
    sender: str
    message: Message
    #: Instructions where no `.qmail` file says anything.
    default_delivery: str
    limits: program.Limits
    #: The same for every attempt of this delivery, and for no other: the stem of Maildir file names.
    name: str
    #: When the message was born, and now, in seconds since the epoch.
    birth: float
    now: float
    #: Who gets the mail if no file controls the address ("" when nobody does): for postmasters.
    fallback: str = ""
    #: Only say what would be done.
    dry_run: bool = False
    #: PATH of the programs.
    path: str = PATH
    #: Whether the account is one whose programs may run.
    programs: bool = True

    @property
    def delivered_to(self) -> str:
        """The Delivered-To line of this recipient."""
        return delivered_to(self.local, self.host)


@dataclass(slots=True)
class Result:
    """How a delivery ended."""

    result: Literal["delivered", "deferred", "failed"] = "delivered"
    text: str = ""
    status: str = ""
    #: Deliveries to files, forwards and programs.
    did: tuple[int, int, int] = (0, 0, 0)
    #: Addresses for one message that goes on, from `new_sender`.
    forwards: list[str] = field(default_factory=list)
    new_sender: str = ""
    #: What was done, or would be.
    actions: list[Instruction] = field(default_factory=list)
    #: The `.qmail` file that decided, "" for the default delivery.
    control: str = ""


def perform(job: Job) -> Result:
    """Deliver to one recipient. Never raises for what the account's files or programs do."""
    result = Result(new_sender=job.sender)
    with ExitStack() as stack:
        run = _Run(job, result, stack)
        try:
            run.carry_out()
        except DeliveryError as failure:
            result.result = "failed" if failure.hard else "deferred"
            result.status = failure.status
            result.text = run.report(str(failure))
            result.forwards = []
        else:
            result.did = run.counts()
            result.text = run.report("did {}+{}+{}".format(*result.did))
    return result


class _Run:
    """One `perform` under way."""

    def __init__(self, job: Job, result: Result, stack: ExitStack) -> None:
        self.job = job
        self.result = result
        self.stack = stack
        self.default: str | None = None
        self.output = bytearray()

    def carry_out(self) -> None:
        job, account = self.job, self.job.account
        if job.limits.called_off.is_set():
            raise DeliveryError("4.3.0", "nobody waits for this delivery any more")
        check_home(account.home, editing_allowed=job.dry_run)
        if not job.dry_run and is_loop(job.message.header, _encode(job.delivered_to)):
            raise DeliveryError("5.4.6", "this message is looping: it already has my Delivered-To line")
        control = self.find_control()
        self.result.control = control.path
        self.default = control.default
        owner, owner_default = owner_files(account.home, account.dash, account.ext)
        self.result.new_sender = owner_address(
            job.sender, job.local, job.host, owner=owner, owner_default=owner_default
        )
        self.follow(control)

    def find_control(self) -> Control:
        account = self.job.account
        try:
            return find_control(account.home, account.dash, account.ext)
        except NoMailboxError:
            if not self.job.fallback:
                raise
            return Control("", f"&{self.job.fallback}\n")

    def follow(self, control: Control) -> None:
        """Carry out the lines in order; the first that fails ends it (spec 6.6)."""
        forward_only = control.forward_only
        instructions = _instructions(control.text or self.job.default_delivery)
        if not self.job.programs and any(one.kind == "program" for one in instructions):
            # Before the first line: files that were written already would be written at every attempt.
            raise DeliveryError("4.7.0", "no program runs as the gateway's own user: chown the home")
        for instruction in instructions:
            if instruction.kind == "forward_only":
                forward_only = True
                continue
            if forward_only and instruction.kind != "forward":
                raise DeliveryError("4.7.0", "a file or program line stands where only forwards are allowed")
            if not self.act(instruction):
                break

    def act(self, instruction: Instruction) -> bool:
        """Carry out one line; False when the lines behind it do not count."""
        self.result.actions.append(instruction)
        if instruction.kind == "forward":
            self.result.forwards.append(instruction.text)
        elif self.job.dry_run:
            pass
        elif instruction.kind == "program":
            return self.run_program(instruction.text)
        elif instruction.kind == "maildir":
            name = f"{self.job.name}L{instruction.line}.mailward"
            maildir.deliver(self.path(instruction), name, self.with_head(), since=self.job.birth)
        else:
            head = from_line(self.job.sender, self.job.now) + self.head
            mbox.deliver(self.path(instruction), _encode(head), quote_mbox(self.job.message.chunks()))
        return True

    def run_program(self, command: str) -> bool:
        try:
            go_on, output = program.run(
                command, self.job.account.home, self.environment, self.stdin, self.job.limits
            )
        except program.ProgramError as failure:
            self.output += failure.output
            raise
        self.output += output
        return go_on

    @property
    def head(self) -> str:
        return return_path(self.job.sender) + self.job.delivered_to

    def with_head(self) -> Iterator[bytes]:
        yield _encode(self.head)
        yield from self.job.message.chunks()

    def path(self, instruction: Instruction) -> Path:
        return Path(self.job.account.home) / instruction.text

    @cached_property
    def environment(self) -> dict[str, str]:
        """The variables of spec 6.8; nothing of the gateway's own environment."""
        job = self.job
        found = {
            "PATH": job.path,
            "USER": job.account.user,
            "HOME": job.account.home,
            "SENDER": job.sender,
            "NEWSENDER": self.result.new_sender,
            "DTLINE": job.delivered_to,
            "RPLINE": return_path(job.sender),
            "UFLINE": from_line(job.sender, job.now),
            **variables(job.local, job.host, job.account.ext),
        }
        return found if self.default is None else found | {"DEFAULT": self.default}

    @cached_property
    def stdin(self) -> int:
        """The message as a file that programs can only read; they share its position, as under qmail."""
        try:
            with tempfile.NamedTemporaryFile() as written:
                written.writelines(self.job.message.chunks())
                written.flush()
                return self.stack.enter_context(Path(written.name).open("rb")).fileno()
        except OSError as error:
            raise DeliveryError("4.3.0", "the message cannot be copied for a program") from error

    def counts(self) -> tuple[int, int, int]:
        kinds = [action.kind for action in self.result.actions]
        return kinds.count("maildir") + kinds.count("mbox"), kinds.count("forward"), kinds.count("program")

    def report(self, last: str) -> str:
        """Give what programs printed, up to the first NUL, and a last line."""
        printed = self.output[:REPORT_LIMIT].partition(b"\0")[0].decode("utf-8", "replace")
        return "\n".join(part for part in (printed.rstrip("\n"), last) if part)


def _instructions(text: str) -> list[Instruction]:
    try:
        return parse(text)
    except BlankFirstLineError as error:
        raise DeliveryError("4.2.1", "the first line of a .qmail file is blank") from error


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
