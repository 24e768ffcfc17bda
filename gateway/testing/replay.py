"""Replays a message with its envelope through the stages, and keeps what each plugin said."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import unified_diff
from typing import TYPE_CHECKING, Any

from gateway.envelope import Failure, Notice, Outcome
from gateway.hookspecs import SPECS, Stages
from gateway.testing.build import delivery, entry, message, recipient, transaction

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway.chain import Chain
    from gateway.envelope import Transaction
    from gateway.message import Message

#: Not replayed: these reach the disk, the network or a mailbox.
REACHING = frozenset({"authenticate", "open_queue", "deliver"})
#: Nor these, which belong to the gateway's own life.
LEFT_OUT = REACHING | {"event", "startup", "shutdown", "commands"}


@dataclass(slots=True)
class Letter:
    """A message and its envelope, to be replayed."""

    content: Message = field(default_factory=message)
    sender: str = "sender@example.com"
    recipients: tuple[str, ...] = ("info@example.org",)
    ip: str = "192.0.2.7"
    helo: str = "client.example"

    def transaction(self) -> Transaction:
        """Give the transaction as it is when the message is whole."""
        made = transaction(self.sender, ip=self.ip, to=self.recipients)
        if made.session is not None:
            made.session.helo, made.session.extended = self.helo, True
        return made


@dataclass(frozen=True, slots=True)
class Heard:
    """What one plugin said at one stage; `value` None is silence, or with `failed` its fault."""

    stage: str
    plugin: str
    value: Any
    failed: bool
    #: What it was asked about: a recipient, else "".
    about: str = ""
    #: The message before a plugin's edit and after it; None when it left every byte alone.
    original: bytes | None = None
    edited: bytes | None = None

    def changes(self) -> list[str]:
        """Give the lines that the edit has taken out (`-`) and put in (`+`)."""
        before, after = (
            (raw or b"").decode("utf-8", "backslashreplace").splitlines()
            for raw in (self.original, self.edited)
        )
        # The first two lines of a difference name the files.
        changed = list(unified_diff(before, after, n=0, lineterm=""))[2:]
        return [line for line in changed if not line.startswith("@@")]


async def replay(chain: Chain, letter: Letter, plugin: str = "") -> list[Heard]:
    """Ask every plugin of every stage in mail order, or one plugin alone; a refusal ends nothing.

    Each sees what those before it made of the message. Stages that would reach beyond the chain are left
    out: see LEFT_OUT.
    """
    heard: list[Heard] = []
    content = letter.content.copy()
    for stage, about, args in calls(letter):
        for step in chain.steps[stage]:
            if plugin in ("", step.plugin):
                given = tuple(content if one is letter.content else one for one in args)
                said = await _ask(chain, stage, step.plugin, given, about)
                heard.append(said)
                if said.edited is not None:
                    content = type(content).parse(said.edited)
    return heard


def calls(letter: Letter) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """Give (stage, what it is about, arguments) of every call that a letter would lead to, in mail order."""
    made = letter.transaction()
    queued = entry(letter.sender, letter.recipients, letter.content)
    attempt = delivery(queued)
    outcome = Outcome(0, "deferred", "no answer", "4.4.1")
    failures = [Failure(one.recipient, "no such user", "5.1.1") for one in queued.recipients]
    notices = [Notice(one.recipient, "delayed", "no answer", "4.4.1") for one in queued.recipients]
    once: dict[str, tuple[Any, ...]] = {
        "connect": (made.session,),
        "helo": (made.session, letter.helo),
        "mail": (made,),
        "data": (made,),
        "incoming": (made, letter.content),
        "message": (made, letter.content),
        "reset": (made,),
        "disconnect": (made.session,),
        "queued": (queued,),
        "outgoing": (attempt, letter.content),
        "retry": (attempt, outcome),
        "bounce": (queued, failures),
        "report": (queued, notices),
        "scram_keys": (made.session, letter.sender),
    }
    for stage in SPECS:
        if stage in once:
            yield stage, "", once[stage]
        elif stage not in LEFT_OUT:
            for address in letter.recipients:
                yield stage, address, _about(stage, made, address)


def _about(stage: str, made: Transaction, address: str) -> tuple[Any, ...]:
    """Give the arguments of a stage that is asked about one recipient."""
    if stage == "account":
        local, _, domain = address.rpartition("@")
        return (local or domain, domain if local else "")
    one = recipient(address)
    if stage == "route":
        return (one, made.sender)
    return (made, one) if stage in ("relay", "rcpt") else (one,)


async def _ask(chain: Chain, stage: str, plugin: str, args: tuple[Any, ...], about: str) -> Heard:
    before = bytes(args[-1]) if stage in ("incoming", "message", "outgoing") else None
    answer = await chain.ask_plugin(plugin, getattr(Stages, stage), *args)
    after = None
    if before is not None and not answer.failed:
        changed = args[-1] if stage == "message" else answer.value
        after = None if changed is None or bytes(changed) == before else bytes(changed)
    return Heard(
        stage, plugin, answer.value, answer.failed, about, before if after is not None else None, after
    )
