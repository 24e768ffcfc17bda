"""conf.d/*.yaml as typed settings: the sections that are the gateway's own. Plugins have the rest."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from gateway.settings.options import Block, ConfigPath, wrong
from gateway.settings.units import Address, Duration, IpNetwork, Size, Written

if TYPE_CHECKING:
    from gateway.settings.tree import Tree

_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_LATER = ("http",)


def _machine_name() -> str:
    return socket.getfqdn()


def _host_name(text: str) -> str:
    name = text.removesuffix(".")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, name.split("."))):  # noqa: PLR2004 RFC 1035 section 2.3.4
        raise ValueError("should be a host name such as mail.example.org")
    return name


def _mail_address(text: str) -> str:
    if not re.fullmatch(r"[^@\s]+@[^@\s]+", text):
        raise ValueError("should be a mail address such as postmaster@example.org")
    return text


def _workers(value: Any) -> Any:
    if value != "auto" and not (isinstance(value, int) and 1 <= value <= 64):  # noqa: PLR2004
        raise ValueError("should be auto or a number from 1 to 64")
    return value


def _known_protocol(value: Any) -> Any:
    if value in _LATER:
        raise ValueError(f"{value} is for a later version: smtp, submission, lmtp and milter are served now")
    return value


def _listener_name(data: dict[str, Any]) -> str:
    return f"{data['protocol']}-{data['address'].port or 'unix'}"


def _listener_tls(data: dict[str, Any]) -> Literal["required", "optional"]:
    return "required" if data["protocol"] == "submission" else "optional"


def _listener_auth(data: dict[str, Any]) -> Literal["required", "none"]:
    return "required" if data["protocol"] == "submission" else "none"


HostName = Annotated[str, AfterValidator(_host_name), Written("host name")]
MailAddress = Annotated[str, AfterValidator(_mail_address), Written("mail address")]


class Gateway(Block):
    """`gateway:` who this gateway is, and where it keeps things."""

    #: The gateway's own name, for greetings, Received and bounces; the name of the machine unless given.
    hostname: HostName = Field(default_factory=_machine_name)
    #: The folder of the queue, the journal and all other state.
    state: ConfigPath = Path("var")
    #: Processes that serve mail; `auto` is one for each core.
    workers: Annotated[Literal["auto"] | int, BeforeValidator(_workers)] = "auto"
    #: The user to become when started as root.
    user: str = ""
    #: What stands in the banner, and in the replies to HELO and EHLO; its first word should be a host name.
    #: The hostname unless given.
    greeting: Annotated[str, Field(pattern=r"^[!-~][ -~]*$", max_length=400)] = Field(
        default_factory=lambda data: data["hostname"]
    )
    #: Where double bounces and mail for a postmaster without an account go; `postmaster@` and the host name
    #: unless given.
    postmaster: MailAddress = Field(default_factory=lambda data: f"postmaster@{data['hostname']}")


class Listener(Block):
    """One of `listeners:` an address that the gateway serves."""

    #: What is spoken there.
    protocol: Annotated[Literal["smtp", "submission", "lmtp", "milter"], BeforeValidator(_known_protocol)]
    #: Where: `*:25` for all addresses of both families, `127.0.0.1:25`, `[::1]:25`, or `unix:/path`, for all
    #: who may enter its folder.
    address: Address
    #: Its name in events; made of protocol and port unless given.
    name: str = Field(default_factory=_listener_name, min_length=1)
    #: TLS: never, offered by STARTTLS when there is a certificate, demanded before MAIL, or from the first
    #: byte (`implicit`, port 465). `required` for submission, else `optional`.
    tls: Literal["none", "optional", "required", "implicit"] = Field(default_factory=_listener_tls)
    #: AUTH: never, offered, or demanded before MAIL. `required` for submission, else `none`.
    auth: Literal["none", "optional", "required"] = Field(default_factory=_listener_auth)
    #: Offer AUTH without TLS, too: passwords can then be read on the way.
    auth_without_tls: bool = False
    #: Networks of proxies, which must say first whom they speak for (PROXY protocol, version 1 or 2).
    proxy: tuple[IpNetwork, ...] = ()
    #: Networks whose hosts may say by XCLIENT whom they speak for; behind a proxy, the client that it names.
    xclient: tuple[IpNetwork, ...] = ()


class Certificate(Block):
    """One of `tls.certificates:` with its key. Both are read again when they change."""

    #: The certificate in PEM, followed by those that lead to its authority.
    certificate: ConfigPath
    #: Its private key in PEM, without a password.
    key: ConfigPath


class Tls(Block):
    """`tls:` how listeners speak TLS."""

    #: Certificates; a client gets the one for the name that it asks for (SNI), else the first.
    certificates: tuple[Certificate, ...] = ()
    #: The oldest version that is spoken.
    minimum: Literal["TLSv1.2", "TLSv1.3"] = "TLSv1.2"
    #: Authorities (PEM) whose client certificates count, read again when they change; without it no client is
    #: asked for one.
    client_ca: ConfigPath | None = None


class Limits(Block):
    """`limits:` what one client, session or message may take."""

    #: The largest message, as SIZE announces it; more is refused with 552 5.3.4. 0 is no limit.
    message_size: Size = Field(default=50 * 1024**2, ge=0)
    #: Recipients of one message; more are told 452 4.5.3 and come in a message of their own.
    recipients: int = Field(default=1000, gt=0)
    #: Sessions at one time, of all clients together; more are told 421.
    sessions: int = Field(default=2000, gt=0)
    #: Sessions at one time of one client address; more are told 421.
    sessions_per_client: int = Field(default=50, gt=0)
    #: Sessions at one time of one network, /24 or /64, loopback excepted; more are told 421.
    sessions_per_network: int = Field(default=200, gt=0)
    #: Refuse mail from a client that has not said EHLO or HELO.
    helo_required: bool = True
    #: `strict` is RFC 5321. `liberal` also takes what qmail-smtpd took: another MAIL within a transaction,
    #: UTF-8 in an address and parameters that nobody announced, HELO without a name, RCPT TO:<>.
    syntax: Literal["strict", "liberal"] = "strict"
    #: Received fields in a message; one with more goes in circles and is refused with 554 5.4.6.
    hops: int = Field(default=100, gt=0)
    #: Commands in one session that are unknown or malformed; then 421 and the end.
    bad_commands: int = Field(default=20, gt=0)
    #: Failed logins of one client address, or its /64, in ten minutes; then its logins are told 421 unseen.
    auth_failures: int = Field(default=20, gt=0)
    #: Commands in one session, all counted; then 421 and the end.
    commands: int = Field(default=10_000, gt=0)
    #: How long a client may take for a command, or be silent within content; then 421 and the end.
    idle: Duration = Field(default=300.0, gt=0)
    #: How long one session may last; then its next command is told 421.
    session: Duration = Field(default=3600.0, gt=0)
    #: Bytes a second that content has to come with, on average, once half a minute was waited for it; a
    #: client that is slower is told 421.
    data_rate: Size = Field(default=100, ge=0)
    #: Memory for the content of messages on their way in, in each worker. Over it bodies go to disk at once,
    #: and a header that has no room any more is told 452 4.3.1.
    memory: Size = Field(default=64 * 1024**2, gt=0)
    #: A bare CR, bare LF or NUL in a message: refuse it with 550 5.5.2, or make
    #: an LF a line end and the others a space.
    bare_newlines: Literal["refuse", "normalise"] = "refuse"


class Concurrency(Block):
    """`queue.concurrency:` deliveries at one time."""

    #: To mailboxes of this machine.
    local: int = Field(default=20, gt=0)
    #: To other hosts, all together.
    remote: int = Field(default=100, gt=0)
    #: To any one other host or route.
    per_destination: int = Field(default=10, gt=0)


class Backup(Block):
    """`queue.backup:` archives of the queue, made by schedule."""

    #: The folder that they are written to, for the gateway's user alone; made when it is not there.
    to: ConfigPath
    #: How often.
    every: Duration = Field(default=300.0, gt=0)
    #: How many are kept; the oldest go.
    keep: int = Field(default=24, gt=0)


class Queue(Block):
    """`queue:` how long and how busily mail is delivered."""

    #: How long delivery is tried before a message bounces.
    lifetime: Duration = Field(default=7 * 86400.0, gt=0)
    #: When a sender who asked to hear of a delay (DSN, NOTIFY=DELAY) is told of it, once.
    delay_warning: Duration = Field(default=4 * 3600.0, gt=0)
    #: Deliveries at one time.
    concurrency: Concurrency = Concurrency()
    #: Archives of the queue, made by schedule; none unless given.
    backup: Backup | None = None


class Output(Block):
    """One of `journal.outputs:` a copy of all events for people or other programs."""

    #: Where events go: `stdout`, `stderr` or a file.
    to: Literal["stdout", "stderr"] | ConfigPath
    #: One JSON object per line, lines for people, or the lines that qmail-send wrote.
    format: Literal["json", "console", "qmail"] = "json"


class Journal(Block):
    """`journal:` the record of every message's fate."""

    #: How long events are kept on disk.
    keep: Duration = Field(default=30 * 86400.0, gt=0)
    #: How much disk the journal may take.
    max_size: Size = Field(default=10 * 1024**3, gt=0)
    #: Where events go besides the journal.
    outputs: tuple[Output, ...] = ()


class Plugins(Block):
    """`plugins:` where plugin files are found."""

    #: Folders of drop-in plugins; of two files with one stem, that of the folder named last counts.
    folders: tuple[ConfigPath, ...] = ()


class Settings(Block):
    """The core sections, validated and frozen; plugins read their own by `Tree.section`."""

    #: A directory of qmail's control files, which counts below what stands here: `/var/qmail/control`.
    qmail_control: ConfigPath | None = None
    #: Who this gateway is, and where it keeps things.
    gateway: Gateway = Field(default_factory=Gateway)
    #: The addresses that the gateway serves.
    listeners: tuple[Listener, ...] = ()
    #: How listeners speak TLS.
    tls: Tls = Tls()
    #: What one client, session or message may take.
    limits: Limits = Limits()
    #: How long and how busily mail is delivered.
    queue: Queue = Queue()
    #: The record of every message's fate.
    journal: Journal = Journal()
    #: Where plugin files are found.
    plugins: Plugins = Plugins()

    @field_validator("listeners")
    @classmethod
    def _distinct(cls, listeners: tuple[Listener, ...]) -> tuple[Listener, ...]:
        for key in ("name", "address"):
            seen: set[object] = set()
            for i, listener in enumerate(listeners):
                value: object = getattr(listener, key)
                if value in seen and listener.address.port:
                    raise wrong(f"another listener has the {key} {value}", i, key)
                seen.add(value)
        return listeners

    @classmethod
    def of(cls, tree: Tree) -> Settings:
        """Validate the core sections of a tree. Raises ConfigError with all problems."""
        return tree.whole(cls)

    @classmethod
    def names(cls) -> frozenset[str]:
        """Name the core sections."""
        return frozenset(cls.model_fields)
