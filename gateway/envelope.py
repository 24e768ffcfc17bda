"""What mail is while it moves: session, transaction, recipient, route, account, entry, delivery, outcome."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from typing import TYPE_CHECKING, Any, Literal

from gateway.address import Address

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.message import Message

#: What a recipient can be in the queue; the table of moves stands at the head of `queue/store.py`.
RecipientState = Literal["queued", "attempting", "delivered", "failed", "expired", "held"]
#: Where a transaction was born.
Origin = Literal["smtp", "submission", "lmtp", "submit", "bounce", "forward", "list"]
Result = Literal["delivered", "deferred", "failed"]
#: The two delivery channels of qmail-send; they have schedules and concurrency of their own.
Channel = Literal["local", "remote"]


def new_id() -> str:
    """Make a UUIDv7 (RFC 9562): unique without a central place, sorted by time.

    The bits behind the milliseconds are their fraction (section 6.2, method 3), so that the messages of one
    session sort in their order too.
    """
    stamp, rest = divmod(time.time_ns(), 1_000_000)
    fraction = (rest << 12) // 1_000_000
    random = int.from_bytes(os.urandom(8)) >> 2
    return str(uuid.UUID(int=stamp << 80 | 7 << 76 | fraction << 64 | 2 << 62 | random))


def first_id(when: float) -> str:
    """Give an id that sorts before all that were made at or after a time (seconds since the epoch)."""
    return str(uuid.UUID(int=max(0, int(when * 1000)) << 80 | 7 << 76 | 2 << 62))


@dataclass(slots=True)
class Client:
    """Who speaks to us. `name` is set only when forward-confirmed (A/AAAA of the PTR name gives `ip`)."""

    ip: str
    port: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        """Take IPv4 for what it is: a socket for both families, or a proxy's, gives `::ffff:192.0.2.7`."""
        if (found := _ipv6(self.ip)) and found.ipv4_mapped:
            self.ip = str(found.ipv4_mapped)

    @property
    def prefix(self) -> str:
        """Who is counted as one: the address, or for IPv6 its /64, which one host has as a rule."""
        found = _ipv6(self.ip)
        return found.packed[:8].hex(":", 2) if found else self.ip

    @property
    def network(self) -> str:
        """Its /24, or its /64; "" for loopback, and for no address at all."""
        if "." in self.ip:
            return "" if self.ip.startswith("127.") else self.ip.rpartition(".")[0]
        return "" if self.ip == "::1" else self.prefix


def _ipv6(ip: str) -> IPv6Address | None:
    try:
        return IPv6Address(ip.partition("%")[0]) if ":" in ip else None
    except ValueError:
        return None


@dataclass(slots=True)
class Session:
    """One connection, from its first byte to its last."""

    id: str
    #: Name of the listener, and its protocol: "smtp", "submission", "lmtp", "milter" or "submit".
    listener: str
    protocol: str
    client: Client
    #: The address that the client reached, without port.
    local_ip: str = ""
    #: What HELO, EHLO or LHLO said; "" before it came.
    helo: str = ""
    #: EHLO was used, so extensions count.
    extended: bool = False
    #: Cipher and version once TLS is up: "TLSv1.3 TLS_AES_256_GCM_SHA384".
    tls: str = ""
    #: The largest message that this client may send, 0 for any; None when the gateway's limit counts.
    message_size: int | None = None
    #: Fingerprint (SHA-256) of the client's certificate, "" when it has shown none that is valid.
    certificate: str = ""
    #: The login, once authenticated, and the mechanism by which it was.
    user: str = ""
    auth: str = ""
    #: The client is gone; nobody reads a reply any more.
    closed: bool = False
    #: What plugins keep: stem -> their own object; use `Plugin.state`.
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who a client says it is at AUTH, and what it has shown for it."""

    #: "PLAIN", "LOGIN" or "SCRAM-SHA-256".
    mechanism: str
    login: str
    #: None when the mechanism has proved that the client knows it, by the keys that `scram_keys` gave.
    password: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """What is kept in the place of a password, for SCRAM-SHA-256 (RFC 5802 section 3)."""

    salt: bytes
    iterations: int
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Recipient:
    """One recipient, a value: `rewrite` plugins return changed copies (`recipient.at(...)`)."""

    address: Address
    #: As the client gave it; bounces show this one (RFC 3464's original recipient).
    original: Address
    #: Which rewrite plugin has claimed it ("locals", "virtual_domains"), "" when none has.
    claimed: str = ""
    #: What decided the last rewrite, for `mailward address`: "conf.d/10.yaml:4: example.org -> abc".
    rule: str = ""
    #: ESMTP parameters of RCPT (names in upper case, values as sent); `warned` once a delay was reported.
    params: Mapping[str, str] = field(default_factory=dict)
    #: Why a stage holds this recipient, "" when none does; and the plugin that said so.
    held: str = ""
    held_by: str = ""
    #: A stage said Discard: the client heard yes, and this recipient is dropped.
    discarded: str = ""
    #: One of several that took the place of `original`: it is routed, but not rewritten again.
    expanded: bool = False
    #: The address that a person chose instead of `original`, "" when nobody did.
    chosen: str = ""

    @classmethod
    def of(cls, address: str, **more: Any) -> Recipient:
        """Make a recipient whose original address is the same."""
        return cls(Address(address), Address(address), **more)

    def at(self, address: str, *, claimed: str = "", rule: str = "") -> Recipient:
        """Give this recipient under another address."""
        return replace(
            self, address=Address(address), claimed=claimed or self.claimed, rule=rule or self.rule
        )

    def redirected(self, to: Address) -> Recipient:
        """Give this recipient at an address that a person chose; `original` stays, for the bounce."""
        return replace(self, address=to, claimed="", rule="", chosen=str(to))

    def rerouted(self) -> Recipient:
        """Give this recipient as it was before `rewrite`, back at `original`.

        One of several is not: its name rewritten again would stand for the others too.
        """
        if self.expanded:
            return self.redirected(Address(self.chosen)) if self.chosen else self
        return replace(self, address=self.original, claimed="", rule="", chosen="")

    @property
    def final(self) -> bool:
        """Whether `rewrite` has had its say for good."""
        return self.expanded and not self.chosen


@dataclass(slots=True)
class Transaction:
    """One message on its way in, from MAIL to the reply after its last byte (or RSET)."""

    #: Becomes the id of the queue entry.
    id: str
    sender: Address
    origin: Origin
    #: None for mail that was born here.
    session: Session | None = None
    recipients: list[Recipient] = field(default_factory=list)
    #: ESMTP parameters of MAIL (names in upper case, values as sent).
    params: Mapping[str, str] = field(default_factory=dict)
    #: Id of the message that gave birth to this one (bounce, forward, list post).
    parent: str = ""
    #: Why a stage holds the whole message, and the plugin that said so.
    held: str = ""
    held_by: str = ""
    #: A stage said Discard: the client hears yes, nothing is queued.
    discarded: str = ""
    notes: dict[str, Any] = field(default_factory=dict)
    #: What plugins store with the message: stem -> their own object; use `Plugin.saved`.
    saved: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Account:
    """Who controls a local part: the six strings of qmail-getpw and users/assign (qmail spec 6.1)."""

    user: str
    uid: int
    gid: int
    home: str
    #: "" or "-": what stands between `.qmail` and the extension in file names.
    dash: str = ""
    #: The extension, in the case that the sender used.
    ext: str = ""
    #: What decided: "conf.d/30.yaml:7", "users/assign:3", "passwd".
    rule: str = ""


@dataclass(frozen=True, slots=True)
class Route:
    """Where a recipient goes: the deliver plugin, and what its deliveries have in common."""

    #: Stem of the plugin whose `deliver` is asked: "dot_qmail", "remote".
    plugin: str
    channel: Channel
    #: Deliveries are grouped and limited by it: a host for remote, "" for local.
    destination: str = ""
    rule: str = ""


@dataclass(slots=True)
class EntryRecipient:
    """A recipient in the queue. `number` names it within its entry, for good."""

    number: int
    recipient: Recipient
    state: RecipientState = "queued"
    #: None until `rewrite` and `route` have run (at the first claim).
    route: Route | None = None
    #: Attempts that have ended.
    attempts: int = 0
    #: When to try next, seconds since the epoch.
    due: float = 0.0
    #: What the last attempt said; bounces and `queue show` print it.
    report: str = ""
    #: Enhanced status of that attempt ("5.1.1"), "" when unknown.
    status: str = ""

    def taken(self) -> EntryRecipient:
        """Give this one claimed. One that was held has a `due` below 0, so that it can be held again."""
        return replace(self, state="attempting", due=-self.due if self.state == "held" else self.due)

    def given_back(self) -> EntryRecipient:
        """Give a claimed one as it was before it was taken."""
        return replace(self, state="held" if self.due < 0 else "queued", due=abs(self.due))

    def anew(self, recipient: Recipient, now: float) -> EntryRecipient:
        """Give this one at another address, to be routed anew and, unless it is held, at once."""
        due = now if self.state == "queued" else self.due
        return replace(self, recipient=recipient, route=None, due=due, report="", status="")


@dataclass(slots=True)
class Entry:
    """A message in the queue."""

    id: str
    sender: Address
    message: Message
    recipients: list[EntryRecipient]
    #: When it was accepted, seconds since the epoch; time spent held does not count into its age.
    birth: float
    origin: Origin = "smtp"
    parent: str = ""
    #: ESMTP parameters of MAIL that matter behind the queue (BODY, SMTPUTF8, REQUIRETLS, RET, ENVID).
    params: Mapping[str, str] = field(default_factory=dict)
    #: Facts for events and `queue list`: session, client_ip, listener, user, message_id, subject.
    facts: Mapping[str, str] = field(default_factory=dict)
    #: What plugins keep with the entry: stem -> JSON.
    notes: dict[str, Any] = field(default_factory=dict)
    size: int = 0


@dataclass(frozen=True, slots=True)
class Delivery:
    """One attempt of one entry, for one or many recipients with the same route."""

    id: str
    entry: Entry
    route: Route
    recipients: tuple[EntryRecipient, ...]
    #: The envelope sender of this attempt: VERP `-@[]` is expanded, `#@[]` kept.
    sender: Address
    #: Counts from 1.
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Birth:
    """A message that a delivery or a bounce gives birth to; it is committed with the outcome."""

    sender: Address
    recipients: tuple[Address, ...]
    message: Message
    origin: Origin


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one attempt ended for one recipient (`number`)."""

    number: int
    result: Result
    #: For the log, and for the bounce when it failed; lines are separated by LF.
    text: str = ""
    #: Enhanced status (RFC 3463), "" when there is none.
    status: str = ""
    #: What the remote host said, "" for local delivery.
    reply: str = ""
    #: The host that was spoken to, "name[ip]:port".
    peer: str = ""
    births: tuple[Birth, ...] = ()
    #: Who tells of a delivery, where the sender wished it: "" we, it ends here; "relayed" we, since that host
    #: gives no reports; "passed" that host, which has the wish now (RFC 3461 section 5.2).
    handed: Literal["", "relayed", "passed"] = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """A recipient that a bounce has to name."""

    recipient: Recipient
    text: str
    status: str = ""
    expired: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """What a report tells of a recipient that has not failed: what its sender wished to hear (RFC 3461)."""

    recipient: Recipient
    action: Literal["delivered", "relayed", "expanded", "delayed"]
    text: str
    status: str = ""
    #: For a delay: until when delivery is tried, seconds since the epoch.
    until: float = 0.0


def expand_verp(sender: Address, recipient: Address) -> Address:
    """Expand `pre@host-@[]` for one recipient: `pre` + `box=dom` + `@host` (qmail spec 5.2)."""
    stem = sender.removesuffix("-@[]")
    if stem == sender or "@" not in stem or "@" not in recipient:
        return sender
    prefix, _, host = stem.rpartition("@")
    box, _, domain = recipient.rpartition("@")
    return Address(f"{prefix}{box}={domain}@{host}")
