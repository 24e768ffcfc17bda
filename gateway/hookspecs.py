"""Every stage, in the order in which mail meets it. The class is pluggy's spec, the types and the reference.

Four kinds of stage: `decide` (a Decision; the first opinion ends the stage), `provide` (an object; the
first answer wins), `transform` (each sees the former's result), `observe` (told after the fact). `None`
means "no opinion" or "unchanged" everywhere. A plugin takes any subset of a stage's arguments, by name,
as `def` or `async def`.

`order` names the bundled plugins of a stage in the order in which they are asked; `...` marks where
plugins that it does not name stand (sorted by stem). `before:` and `after:` in YAML change it.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec, TypeVar

import pluggy

if TYPE_CHECKING:
    from types import EllipsisType

    import click

    from gateway.address import Address
    from gateway.decision import Accept, Decision, Defer, Disconnect, Reject
    from gateway.envelope import (
        Account,
        Birth,
        Credentials,
        Delivery,
        Entry,
        Failure,
        Notice,
        Outcome,
        Recipient,
        Route,
        ScramKeys,
        Session,
        Transaction,
    )
    from gateway.events import Event
    from gateway.message import Message
    from gateway.queue import Queue

P = ParamSpec("P")
R = TypeVar("R")
Kind = Literal["decide", "provide", "transform", "observe", "life"]
Stage = Callable[Concatenate[Any, P], R]
Hook = Callable[..., R | Awaitable[R]]

DECISIONS = frozenset({"Accept", "Reject", "Defer", "Discard", "Hold", "Disconnect"})

hookspec = pluggy.HookspecMarker("mailward")
hookimpl = pluggy.HookimplMarker("mailward")


@dataclass(frozen=True, slots=True)
class Spec:
    """What the chain knows of a stage."""

    name: str
    kind: Kind
    #: What happens when no plugin speaks, in words for the reference page.
    silence: str
    #: The arguments that are offered, in order.
    arguments: tuple[str, ...]
    order: tuple[str | EllipsisType, ...] = (...,)
    #: Names of the classes that a plugin may answer with.
    answers: frozenset[str] = frozenset()
    #: The longest that the whole stage may wait, in seconds.
    longest: float = 120.0
    #: `on_error: skip` and `dry_run` are refused: silence or absence here must never open a door.
    strict: bool = False


def _stage(
    kind: Kind,
    silence: str,
    order: tuple[str | EllipsisType, ...] = (...,),
    *,
    longest: float = 120.0,
    strict: bool = False,
) -> Callable[[Callable[Concatenate[Any, P], R]], Hook[R]]:
    def mark(function: Callable[Concatenate[Any, P], R]) -> Hook[R]:
        code = function.__code__
        arguments = code.co_varnames[1 : code.co_argcount]
        answers = _class_names(function.__annotations__["return"])
        spec = Spec(function.__name__, kind, silence, arguments, order, answers, longest, strict)
        function.spec = spec  # type: ignore[attr-defined]
        return hookspec(function)

    return mark


def _class_names(annotation: str) -> frozenset[str]:
    """Read `Accept | list[Route] | None` into {"Accept", "list"}; "Decision" stands for all six."""
    names = {name.strip() for name in re.sub(r"\[.*?\]", "", annotation).split("|")} - {"None"}
    return frozenset(names | DECISIONS if "Decision" in names else names)


class Stages:
    """The stages. The bundled plugins use nothing that is not here."""

    @_stage("decide", "go on", ("relay_control", ...))
    def connect(self, session: Session) -> Accept | Reject | Defer | Disconnect | None:
        """Someone has connected; nothing was said yet. Replaces tcpserver's rules.

        A Reject is 554 and the end of the connection, a Defer 421.
        """

    @_stage("decide", "go on")
    def helo(self, session: Session, name: str) -> Accept | Reject | Defer | Disconnect | None:
        """HELO, EHLO or LHLO was given; `session.helo` is set after this stage."""

    @_stage("decide", "refuse 535 5.7.8", strict=True)
    def authenticate(
        self, session: Session, credentials: Credentials
    ) -> Accept | Reject | Defer | Disconnect | None:
        """A client has shown a login and its password, or has proved by SCRAM that it knows it.

        Accept means that this is who it says; silence, that the login is not yours. Replaces checkpassword.
        """

    @_stage("provide", "no such login")
    def scram_keys(self, session: Session, login: str) -> ScramKeys | None:
        """Give what you keep in the place of a password; `authenticate` is asked after the proof."""

    @_stage("decide", "go on")
    def mail(self, transaction: Transaction) -> Decision | None:
        """MAIL FROM was given; `transaction.sender` and `.params` are set."""

    @_stage("decide", "refuse 553 5.7.1", ("relay_control", "rate_limit", "rcpthosts", ...), strict=True)
    def relay(
        self, transaction: Transaction, recipient: Recipient
    ) -> Accept | Reject | Defer | Disconnect | None:
        """May this client send to this recipient at all? Replaces RELAYCLIENT and rcpthosts.

        Silence is a refusal, so no plugin's absence opens a relay. Milter listeners do not ask.
        """

    @_stage("decide", "go on", ("badmailfrom", "rate_limit", ..., "recipient_check"))
    def rcpt(self, transaction: Transaction, recipient: Recipient) -> Decision | None:
        """RCPT TO was given and `relay` has accepted it. Policy; replaces badmailfrom."""

    @_stage("decide", "go on")
    def data(self, transaction: Transaction) -> Decision | None:
        """DATA was given; the recipients are complete."""

    @_stage("transform", "unchanged", ("received", ...))
    def incoming(self, transaction: Transaction, message: Message) -> Message | None:
        """The message is whole; edits for every message, also for those born here (`transaction.origin`).

        Edit `message` in place and return it, or return another; replaces qmail-queue's Received.
        """

    @_stage("decide", "go on", longest=600.0)
    def message(
        self, transaction: Transaction, message: Message
    ) -> Decision | dict[Address, Decision] | None:
        """The last chance to speak before the reply to the end of data. Replaces QMAILQUEUE wrappers.

        May edit `message`; edits count only when the plugin returns in time and without an error.
        """

    @_stage("observe", "-")
    def reset(self, transaction: Transaction) -> None:
        """The transaction ended without a message: RSET, a new EHLO, or the client left."""

    @_stage("observe", "-")
    def disconnect(self, session: Session) -> None:
        """The session is over."""

    @_stage("provide", "start-up error; two are an error too")
    def open_queue(self) -> Queue | None:
        """Open the queue's store. Asked once, at start. Replaces qmail-queue."""

    @_stage("observe", "-")
    def queued(self, entry: Entry) -> None:
        """A message is on stable storage."""

    @_stage(
        "transform", "unchanged", ("rcpthosts", "percenthack", "locals", "virtual_domains", "aliases", ...)
    )
    def rewrite(self, recipient: Recipient) -> Recipient | list[Recipient] | None:
        """Change where a recipient points; a list replaces it by several. No side effects.

        Runs at the first claim, and at RCPT for `recipient_check`. Replaces virtualdomains, percenthack.
        """

    @_stage("provide", "defer, loudly", ("locals", ..., "remote"))
    def route(self, recipient: Recipient, sender: Address) -> Route | None:
        """Name the deliver plugin and the destination of a rewritten recipient. No side effects.

        The answer is kept with the recipient: `destination` is what `per_destination` counts by.
        """

    @_stage("provide", "no such account", (..., "accounts"))
    def account(self, local_part: str, domain: str) -> Account | None:
        """Say who controls a local part. No side effects. Replaces qmail-getpw and users/assign."""

    @_stage("provide", "nothing is known against it")
    def exists(self, recipient: Recipient) -> bool | None:
        """Would `deliver` find anybody there? Asked of the plugin that the route names; raises on doubt."""

    @_stage("transform", "unchanged")
    def outgoing(self, delivery: Delivery, message: Message) -> Message | None:
        """Edit the copy that this attempt sends."""

    @_stage("provide", "defer, loudly", longest=86400.0)
    def deliver(self, delivery: Delivery) -> list[Outcome] | None:
        """Try to deliver; one Outcome for each recipient. Asked of the plugin that the route names.

        `deadline` does not count here: a program or a slow host may take long, and a delivery that is cut
        off behind its last byte is made twice. The plugin has bounds of its own.
        Replaces qmail-lspawn with qmail-local, and qmail-rspawn with qmail-remote.
        """

    @_stage("provide", "defer an hour", (..., "quadratic_retry"))
    def retry(self, delivery: Delivery, outcome: Outcome) -> float | None:
        """Say when to try a deferred recipient again, in seconds since the epoch.

        Replaces qmail-send's schedule.
        """

    @_stage("provide", "built-in plain bounce", (..., "bounces"))
    def bounce(self, entry: Entry, failures: list[Failure]) -> Birth | None:
        """Write the bounce of an entry whose last recipient has ended. Replaces qmail-send's bounces."""

    @_stage("provide", "nobody is told", (..., "bounces"))
    def report(self, entry: Entry, notices: list[Notice]) -> Birth | None:
        """Write what a sender wished to hear besides failures: deliveries and delays (RFC 3461)."""

    @_stage("observe", "-")
    def event(self, event: Event) -> None:
        """See every event. Nothing may be emitted from here."""

    @_stage("life", "-")
    def startup(self) -> None:
        """The chain is built and about to be used; raise to refuse the start or the reload."""

    @_stage("life", "-")
    def shutdown(self) -> None:
        """This instance is used no more."""

    @_stage("life", "-")
    def commands(self) -> list[click.Command] | None:
        """Give commands for `mailward`."""


#: name -> Spec, in mail order.
SPECS: dict[str, Spec] = {name: hook.spec for name, hook in vars(Stages).items() if hasattr(hook, "spec")}
