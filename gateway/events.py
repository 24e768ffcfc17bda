"""The vocabulary of events: one class per fact. The journal adds time, host, stream and sequence.

An event is emitted once for a fact that has happened, never for one that is hoped for. The class says how
much it matters: `fate` (what became of a message; survives any kill), `security` (who tried what), `other`.
A name never changes its meaning; a field may be added; anything else raises SCHEMA.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, fields
from itertools import compress
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.envelope import Session

Severity = Literal["debug", "info", "notice", "warning", "error", "critical"]
#: fate: what became of a message (survives any kill); security: who tried what; other: the rest.
EventClass = Literal["fate", "security", "other"]

#: Raised when the shape of events changes so that a reader must know.
SCHEMA = 1
#: name -> class, filled by `@event`.
VOCABULARY: dict[str, type[Event]] = {}

E = TypeVar("E", bound="Event")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What every event may carry; empty fields are left out of the JSON."""

    NAME: ClassVar[str] = ""
    CLASS: ClassVar[EventClass] = "other"
    SEVERITY: ClassVar[Severity] = "info"
    #: It happens once for a message, recipient and attempt, so a second one is a repeat and has the same id.
    ONCE: ClassVar[bool] = False
    KEYS: ClassVar[tuple[str, ...]] = ()
    VALUES: ClassVar[Callable[[Event], tuple[Any, ...]]]

    #: Id of the connection.
    session: str = ""
    #: Id of the queue entry; a transaction has it from MAIL on.
    message: str = ""
    #: The address that the fact is about: as the client gave it before the queue, as routed behind it.
    recipient: str = ""
    #: Number of the recipient within its entry.
    number: int = 0
    #: Counts from 1.
    attempt: int = 0
    #: Id of the message that gave birth to this one.
    parent: str = ""
    #: Address of the client.
    client_ip: str = field(default="", metadata={"key": "client.ip"})
    #: Name of the listener.
    listener: str = ""
    #: The login of the client.
    user: str = ""
    #: Stem of the plugin that decided, delivered or failed.
    plugin: str = ""
    #: A short word that says why ("relay", "unknown_recipient").
    reason: str = ""
    #: The SMTP reply that was given or got.
    reply: str = ""
    #: The person who did it, for changes by command.
    actor: str = ""
    #: Emitted at start for a fact that the journal had missed.
    recovered: bool = False

    def identity(self) -> str:
        """Give the id: made from message, recipient and attempt where a repeat is to be dropped by it."""
        if self.ONCE and self.message:
            key = f"{self.NAME}\0{self.message}\0{self.recipient}\0{self.number}\0{self.attempt}"
            return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return os.urandom(16).hex()

    def facts(self) -> dict[str, Any]:
        """Give the fields that are set, under their JSON names."""
        values = type(self).VALUES(self)
        return dict(zip(compress(self.KEYS, values), filter(None, values), strict=False))


def _prepare(cls: type[Event]) -> None:
    """Look up once what `facts` needs for every event."""
    found = fields(cls)
    cls.KEYS = tuple(one.metadata.get("key", one.name) for one in found)
    cls.VALUES = attrgetter(*(one.name for one in found))


_prepare(Event)


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
def event(
    name: str, klass: EventClass = "other", severity: Severity = "info", *, once: bool = False
) -> Callable[[type[E]], type[E]]:
    """Make a class an event of the vocabulary."""

    def mark(cls: type[E]) -> type[E]:
        made = dataclass(frozen=True, slots=True, kw_only=True)(cls)
        made.NAME, made.CLASS, made.SEVERITY, made.ONCE = name, klass, severity, once
        _prepare(made)
        VOCABULARY[name] = made
        return made

    return mark


@event("gateway.started", severity="notice")
class GatewayStarted(Event):
    """All listeners are open and the queue is being worked."""

    version: str = ""
    #: "mx smtp 0.0.0.0:25", one for each listener.
    listeners: tuple[str, ...] = ()
    pid: int = 0


@event("gateway.stopped", severity="notice")
class GatewayStopped(Event):
    """Nothing is received or delivered any more; `reason` names the signal or command."""

    #: How long it ran, in seconds.
    seconds: float = 0.0


@event("worker.started")
class WorkerStarted(Event):
    """A worker serves and delivers, at the gateway's start or after it had died."""

    #: Its stream of events, and its part of the queue.
    worker: str = ""
    pid: int = 0


@event("worker.died", "security", "error")
class WorkerDied(Event):
    """A worker has ended by itself, or was killed since it had frozen; it is started again.

    `reason` is frozen, died or refused (it could not be started again, and `error` says why). Of a frozen one
    `plugin` names the plugin whose code it was in.
    """

    worker: str = ""
    pid: int = 0
    #: Its exit status; the negative number of a signal.
    status: int = 0
    error: str = ""
    #: What its threads were doing, innermost call first.
    traceback: str = ""


@event("config.loaded", severity="notice")
class ConfigLoaded(Event):
    """A configuration is in use, at the start or by a reload."""

    folder: str = ""
    #: Stems of the plugins that run, in no order.
    plugins: tuple[str, ...] = ()
    #: Counts reloads; 1 is the start.
    generation: int = 0


@event("config.rejected", "security", "error")
class ConfigRejected(Event):
    """A new configuration is wrong; the old one stays in use."""

    folder: str = ""
    #: `file:line: message`, one for each.
    problems: tuple[str, ...] = ()


@event("plugin.loaded")
class PluginLoaded(Event):
    """A plugin's file was run and an instance made."""

    file: str = ""
    #: "bundled", "site" or "installed".
    source: str = ""


@event("plugin.replaced", "security", "notice")
class PluginReplaced(Event):
    """A file of a bundled plugin's stem took its place."""

    file: str = ""
    #: The file that does not run.
    replaced: str = ""


@event("plugin.failed", "security", "error")
class PluginFailed(Event):
    """A plugin raised an exception or gave something that its stage does not take."""

    stage: str = ""
    #: The exception on one line.
    error: str = ""
    #: The traceback; clients never see it.
    traceback: str = ""


@event("plugin.timed_out", "security", "error")
class PluginTimedOut(Event):
    """A plugin did not answer within its deadline."""

    stage: str = ""
    #: In seconds.
    deadline: float = 0.0
    #: Where it stood when its time was over.
    traceback: str = ""


@event("plugin.exited", "security", "error")
class PluginExited(Event):
    """The own process of a plugin (`isolation: process`) has ended; it is started again."""

    #: How it ended: `exit code 3`, `killed by signal 9`.
    error: str = ""
    #: How long it had run.
    seconds: float = 0.0
    #: Seconds until it is started again; its stages hear `on_error` meanwhile.
    pause: float = 0.0


@event("plugin.dry_run")
class PluginDryRun(Event):
    """A plugin with `dry_run` had an answer, which was not used."""

    stage: str = ""
    #: What it would have said.
    answer: str = ""


@event("plugin.logged")
class PluginLogged(Event):
    """A plugin said something by `self.log`."""

    text: str = ""
    #: The severity that the plugin gave it.
    level: Severity = field(default="info", metadata={"key": "severity"})
    #: What the plugin added by keyword.
    details: dict[str, Any] = field(default_factory=dict)
    traceback: str = ""


@event("library.logged")
class LibraryLogged(Event):
    """A library that the gateway uses logged a warning or worse."""

    text: str = ""
    #: The severity that the library gave it.
    level: Severity = field(default="warning", metadata={"key": "severity"})
    #: Name of the library's logger.
    logger: str = ""
    traceback: str = ""


@event("session.opened")
class SessionOpened(Event):
    """A client has connected, or a proxy has named the one that it speaks for."""

    protocol: str = ""
    #: The client's forward-confirmed name.
    client_name: str = field(default="", metadata={"key": "client.name"})
    client_port: int = field(default=0, metadata={"key": "client.port"})


@event("session.refused", "security", "notice")
class SessionRefused(Event):
    """A client was sent away at `connect` or at a limit."""

    protocol: str = ""
    client_name: str = field(default="", metadata={"key": "client.name"})
    client_port: int = field(default=0, metadata={"key": "client.port"})


@event("session.closed")
class SessionClosed(Event):
    """A connection is over; `reason` says how (quit, lost, timeout, disconnected, shutdown, xclient)."""

    helo: str = ""
    tls: str = ""
    #: How long it was open.
    seconds: float = 0.0
    #: How many messages were accepted in it.
    messages: int = 0


@event("limit.exceeded", "security", "warning")
class LimitExceeded(Event):
    """A client went over a limit of the gateway or of a plugin."""

    #: The setting: "recipients", "sessions_per_client".
    limit: str = ""
    #: Its value.
    allowed: float = 0.0


@event("command.refused")
class CommandRefused(Event):
    """The edge itself refused a command: bad syntax or sequence; `reply` is what the client heard."""

    #: "helo", "mail", "data" ...
    stage: str = ""


@event("tls.established")
class TlsEstablished(Event):
    """TLS is up: with a client of ours (`session`), or with the host of a delivery (`peer`)."""

    #: "TLSv1.3", and the cipher's name.
    version: str = ""
    cipher: str = ""
    #: What the client asked for (SNI), or whom we asked for.
    server_name: str = ""
    #: The host of a delivery, "name[ip]:port"; "" for a client.
    peer: str = ""
    #: How the other side was authenticated: "dane", "webpki", "certificate" (a client's), "" when it was not.
    verified: str = ""
    #: For a delivery: what was asked for ("may", "encrypt", "verify", "dane", "mta-sts"), and for whose mail.
    policy: str = ""
    domain: str = ""
    #: What the domain publishes, as a TLS report names it (RFC 8460): "tlsa", "sts", "no-policy-found".
    policy_type: str = ""
    #: Our own address of that connection.
    source_ip: str = ""


@event("tls.failed", "security", "warning")
class TlsFailed(Event):
    """A TLS handshake failed, or what the other side showed was not what policy asks for."""

    peer: str = ""
    #: What the library or the policy said.
    error: str = ""
    #: For a delivery: as in `tls.established`.
    policy: str = ""
    domain: str = ""
    policy_type: str = ""
    #: What a TLS report calls it (RFC 8460 section 4.3): "starttls-not-supported", "certificate-expired" ...
    result_type: str = ""
    source_ip: str = ""


@event("tls.certificate_loaded")
class TlsCertificateLoaded(Event):
    """A certificate of ours is in use: at the start, or since its files have changed."""

    file: str = ""
    names: tuple[str, ...] = ()
    #: Its last day, RFC 3339.
    expires: str = ""


@event("tls.certificate_expiring", severity="warning")
class TlsCertificateExpiring(Event):
    """A certificate of ours ends within 14 days, or has ended; told once a day."""

    file: str = ""
    expires: str = ""


@event("tls.certificate_failed", severity="error")
class TlsCertificateFailed(Event):
    """Changed files of a certificate cannot be used; the one from before stays."""

    file: str = ""
    error: str = ""


@event("auth.succeeded", "security")
class AuthSucceeded(Event):
    """A client has proved to be `user`."""

    #: "PLAIN", "LOGIN" or "SCRAM-SHA-256".
    mechanism: str = ""


@event("auth.failed", "security", "notice")
class AuthFailed(Event):
    """A client has not; `user` is what it claimed. Reasons: credentials, locked, unavailable, malformed."""

    mechanism: str = ""


@event("sender.accepted")
class SenderAccepted(Event):
    """MAIL FROM was answered with 250."""

    sender: str = ""


@event("sender.refused", "security", "notice")
class SenderRefused(Event):
    """MAIL FROM was refused or deferred."""

    sender: str = ""


@event("recipient.accepted")
class RecipientAccepted(Event):
    """RCPT TO was answered with 250."""

    sender: str = ""


@event("recipient.refused", "security", "notice")
class RecipientRefused(Event):
    """RCPT TO was refused or deferred; a relay attempt has `reason: relay`."""

    sender: str = ""


@event("recipient.rewritten")
class RecipientRewritten(Event):
    """A queued recipient was given another address; `plugin` did it."""

    #: The addresses that took its place.
    to: tuple[str, ...] = ()
    #: What decided: "conf.d/10.yaml:4: example.org -> abc".
    rule: str = ""


@event("milter.answered", "security")
class MilterAnswered(Event):
    """An MTA that asks by milter was answered; what became of its mail only that MTA knows."""

    #: "connect", "helo", "mail", "rcpt", "data", "message".
    stage: str = ""
    #: "continue", "accept", "reject", "tempfail", "discard", "quarantine" or "shutdown".
    answer: str = ""
    sender: str = ""
    #: The id of the message in that MTA's own queue and log.
    queue_id: str = ""
    #: What the MTA was told to change: "insert header X-Spam", "add recipient b@example.org".
    edits: tuple[str, ...] = ()


@event("message.accepted", "fate", once=True)
class MessageAccepted(Event):
    """A message is on stable storage; what it was born from says `origin` and `parent`."""

    sender: str = ""
    #: How many.
    recipients: int = 0
    #: Bytes, as stored.
    size: int = 0
    origin: str = ""
    helo: str = ""
    #: The header field Message-ID, without `<>`.
    message_id: str = ""


@event("message.refused", "fate", "notice", once=True)
class MessageRefused(Event):
    """A message was refused or deferred after its last byte; nothing was queued."""

    sender: str = ""
    recipients: int = 0
    size: int = 0


@event("message.discarded", "fate", "notice", once=True)
class MessageDiscarded(Event):
    """The client heard 250, and the message (or one `recipient`) was dropped on a plugin's word."""

    sender: str = ""


@event("message.held", "fate", "notice")
class MessageHeld(Event):
    """A recipient of a queued message, or all, waits for a person: `plugin` said so, or `actor`."""


@event("message.released", "fate", "notice")
class MessageReleased(Event):
    """A person let held recipients go."""


@event("message.retried", "fate", "notice")
class MessageRetried(Event):
    """A person made recipients due at once."""


@event("message.redirected", "fate", "warning")
class MessageRedirected(Event):
    """A person gave recipients another address; a bounce still names the one that the sender wrote."""

    #: The new address.
    to: str = ""
    #: Those that the sender wrote.
    recipients: tuple[str, ...] = ()


@event("message.rerouted", "fate", "notice")
class MessageRerouted(Event):
    """A person had recipients rewritten and routed anew."""


@event("message.deleted", "fate", "warning", once=True)
class MessageDeleted(Event):
    """A person took a message out of the queue; nobody gets a bounce."""

    sender: str = ""
    #: The recipients that had not ended.
    recipients: tuple[str, ...] = ()


@event("message.bounced", "fate", "notice", once=True)
class MessageBounced(Event):
    """The sender is told which recipients failed; the bounce is a message of its own, with `parent`."""

    sender: str = ""
    #: Id of the bounce; "" when there is nobody to tell (a bounce of a double bounce).
    bounce: str = ""
    #: The recipients that failed.
    recipients: tuple[str, ...] = ()


@event("message.expired", "fate", "warning", once=True)
class MessageExpired(Event):
    """A recipient was in the queue for too long and is given up."""

    #: Its age.
    seconds: float = 0.0
    #: What the last attempt said.
    text: str = ""


@event("message.finished", "fate", once=True)
class MessageFinished(Event):
    """The last recipient has ended, and the queue has forgotten the message."""

    delivered: int = 0
    failed: int = 0
    #: From its birth to its end.
    seconds: float = 0.0


@event("delivery.started")
class DeliveryStarted(Event):
    """An attempt begins, for one recipient of it."""

    #: Id of the attempt, which may have many recipients.
    delivery: str = ""
    channel: str = ""
    #: What deliveries are grouped by: a host for remote.
    destination: str = ""


@event("delivery.delivered", "fate", once=True)
class DeliveryDelivered(Event):
    """A recipient has it: in its files on stable storage, or taken over by the host that is `peer`."""

    delivery: str = ""
    channel: str = ""
    #: The host that took it, "name[ip]:port".
    peer: str = ""
    status: str = ""
    #: What the deliver plugin said.
    text: str = ""
    #: How long the attempt took.
    seconds: float = 0.0
    #: Ids of the messages that it gave birth to (forwards, list posts), stored with this end.
    births: tuple[str, ...] = ()


@event("delivery.deferred", "fate", "notice", once=True)
class DeliveryDeferred(Event):
    """An attempt failed for now; another follows at `next`."""

    delivery: str = ""
    channel: str = ""
    peer: str = ""
    status: str = ""
    text: str = ""
    seconds: float = 0.0
    #: When the next attempt is due, seconds since the epoch.
    next: float = 0.0


@event("delivery.failed", "fate", "warning", once=True)
class DeliveryFailed(Event):
    """An attempt failed for good; the sender gets a bounce."""

    delivery: str = ""
    channel: str = ""
    peer: str = ""
    status: str = ""
    text: str = ""
    seconds: float = 0.0


@event("destination.suspended", severity="warning")
class DestinationSuspended(Event):
    """Mail for a destination waits, and no attempt is made, until it is resumed."""

    #: A domain, or what a route calls its destination; may be a pattern.
    destination: str = ""
    #: When it ends by itself, seconds since the epoch; 0 when it does not.
    until: float = 0.0


@event("destination.resumed", severity="notice")
class DestinationResumed(Event):
    """A person let mail for a suspended destination go; it is due at once.

    With `reason: remote.backoff` it is an address that did not answer, and may be tried again.
    """

    destination: str = ""


@event("queue.failed", "security", "critical")
class QueueFailed(Event):
    """The store cannot take mail; clients hear 4xx, and what it holds is safe."""

    error: str = ""


@event("queue.backup", severity="notice")
class QueueBackup(Event):
    """A backup of the queue is whole on the disk."""

    file: str = ""
    #: How many messages it holds.
    messages: int = 0
    #: In bytes.
    size: int = 0
    #: How long it took.
    seconds: float = 0.0


@event("queue.backup_failed", "security", "error")
class QueueBackupFailed(Event):
    """A backup by schedule was not made; the next is tried soon."""

    error: str = ""


@event("queue.restored", "security", "warning")
class QueueRestored(Event):
    """Messages were put into the queue from an archive, or from files."""

    file: str = ""
    #: How many messages were added,
    messages: int = 0
    #: were here or had ended here before, so were not added,
    known: int = 0
    #: How many recipients were left out, since a journal tells their end.
    delivered: int = 0


@event("queue.adopted", "security", "warning")
class QueueAdopted(Event):
    """The messages that a dead gateway had left in a folder are ours."""

    folder: str = ""
    messages: int = 0
    #: How many were here or had ended here before.
    known: int = 0


@event("events.dropped", "security", "error")
class EventsDropped(Event):
    """Events were lost: how many, and why by `reason`.

    journal_full: the disk stayed full until the memory set aside for events was full too. max_size: the
    oldest segment of the journal went before its time. output_slow: the reader of `output` is too slow; the
    journal has them all. observers_slow: `plugin` did not see them; the journal has them all.
    """

    count: int = 0
    #: For journal_full: how many of each class.
    fate: int = 0
    security: int = 0
    other: int = 0
    output: str = ""


@event("journal.full", "security", "critical")
class JournalFull(Event):
    """The journal cannot be written; no recipient leaves the queue until it can."""

    error: str = ""


@event("journal.recovered", "security", "notice")
class JournalRecovered(Event):
    """The journal can be written again."""

    #: How long it could not.
    seconds: float = 0.0


def about(session: Session | None) -> dict[str, Any]:
    """Give the fields that every event of a session has."""
    if session is None:
        return {}
    return {
        "session": session.id,
        "client_ip": session.client.ip,
        "listener": session.listener,
        "user": session.user,
    }
