"""qmail-inject: completes a message and queues it (qmail spec 8.1)."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING

from gateway.qmail import PERMANENT, queueing, tokens
from gateway.qmail.addresses import Completion, ListError, rewrite
from gateway.qmail.header import name_of, read_header
from gateway.qmail.options import OptionError, options

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from gateway.qmail.place import Place

#: The column behind which lines of addresses are folded.
WIDTH = 80
_RECIPIENTS = ("to", "cc", "bcc", "apparently-to")
_RESENT_RECIPIENTS = ("resent-to", "resent-cc", "resent-bcc")
_SENDERS = (
    *("sender", "from", "reply-to", "return-receipt-to", "errors-to", "return-path"),
    *("resent-sender", "resent-from", "resent-reply-to"),
)
_MAKES_RESENT = (
    *("resent-sender", "resent-from", "resent-reply-to", "resent-to", "resent-cc", "resent-bcc"),
    *("resent-date", "resent-message-id"),
)
#: Fields that are read but not passed on.
_REMOVED = ("bcc", "resent-bcc", "return-path", "content-length")
_NOBODY = b"Cc: recipient list not shown: ;\n"


class InjectError(Exception):
    """Why the message cannot be queued, ever."""


def main(name: str, arguments: list[bytes], place: Place) -> int:
    """Run the program."""
    try:
        given, rest = options(arguments, "aAhHnNf:")
    except OptionError as error:
        sys.stderr.write(f"{name}: {error}\n{name}: usage: {name} [ -nNaAhH ] [ -fsender ] [ recip ... ]\n")
        return PERMANENT
    with open(0, "rb", closefd=False) as file:
        return inject(name, Injection(place, given, rest), file, file)


def inject(name: str, message: Injection, header: BinaryIO, body: BinaryIO) -> int:
    """Read the header, and queue it with the body; gives the exit code."""
    try:
        message.read(header)
        if message.printed:
            _print(message, body)
        else:
            queueing.enqueue(message.place, message.content(body), message.sender, message.recipients)
    except InjectError as error:
        sys.stderr.write(f"{name}: fatal: {error}\n")
        return PERMANENT
    except queueing.Failure as failure:
        sys.stderr.write(f"{name}: fatal: {failure}\n")
        return failure.code
    return 0


def _print(message: Injection, file: BinaryIO) -> None:
    sys.stdout.buffer.write(b"Return-Path: <%b>\n" % tokens.quote(message.sender))
    for block in message.content(file):
        sys.stdout.buffer.write(block)
    sys.stdout.buffer.flush()


class Injection:
    """One message on its way through: its header is read, its body passes."""

    def __init__(self, place: Place, given: list[tuple[str, bytes]], arguments: list[bytes]) -> None:
        self._env = place.env
        self.place = place
        self._letters = place.env.get(b"QMAILINJECT", b"")
        flags = [letter for letter, _ in given]
        #: -n prints the message, the last of -n and -N counts.
        self.printed = [letter for letter in flags if letter in "nN"][-1:] == ["n"]
        mode = ([letter for letter in flags if letter in "aAhH"] or ["A"])[-1]
        self._use_header = mode in "hH" or (mode == "A" and not arguments)
        self._now = time.time()
        self._kept: list[bytes] = []
        self._seen: set[str] = set()
        self._found: dict[bool, list[bytes]] = {False: [], True: []}
        self._shown: list[bytes] = []
        self._return_path: bytes | None = None
        self._arguments = [] if mode == "h" else arguments
        self._senders = [value for letter, value in given if letter == "f"]
        self._start = b""

    def read(self, file: BinaryIO) -> None:
        """Read the header, and complete what was given. Raises InjectError."""
        self._completion = self._made_completion()
        self._arguments = [self._complete(one) for one in self._arguments]
        self._senders = [self._complete(one) for one in self._senders]
        fields, self._start = read_header(file)
        for field in fields:
            self._field(name_of(field), field)

    @property
    def sender(self) -> bytes:
        """The envelope sender."""
        if self._senders:
            return self._senders[-1]
        if self._return_path is not None:
            return self._return_path + (b"-@[]" if b"r" in self._letters else b"")
        return self._default_sender()

    @property
    def recipients(self) -> list[bytes]:
        """The envelope recipients."""
        resent = any(name in self._seen for name in _MAKES_RESENT)
        return self._arguments + (self._found[resent] if self._use_header else [])

    def content(self, file: BinaryIO) -> Iterator[bytes]:
        """Give the message as it goes on; `file` holds the rest of its body."""
        yield b"".join([*self._added(), *self._kept]) + self._start
        last = b"\n"
        while block := file.read(65536):
            yield block
            last = block
        if not last.endswith(b"\n"):
            yield b"\n"

    def _field(self, name: str, field: bytes) -> None:
        if self._dropped(name):
            return
        self._seen.add(name)
        if name in _SENDERS:
            field = self._rewritten(name, field)
        elif name in _RECIPIENTS or name in _RESENT_RECIPIENTS:
            field = self._with_recipients(name, field)
        if name not in _REMOVED:
            self._kept.append(field)

    def _dropped(self, name: str) -> bool:
        letters = {"from": b"f", "message-id": b"i", "return-path": b"s"}
        return name in letters and letters[name] in self._letters

    def _rewritten(self, name: str, field: bytes) -> bytes:
        """Complete the addresses of a field that must be one of addresses."""
        found: list[list[tokens.Token]] = []
        try:
            written = rewrite(tokens.parse(field), self._completion, found)
        except (tokens.TokenError, ListError):
            raise InjectError(
                f"unable to parse this line: {field.decode('utf-8', 'backslashreplace')}"
            ) from None
        if name == "return-path" and found and self._return_path is None:
            self._return_path = tokens.unquote(found[0])
        return tokens.write(written, WIDTH)

    def _with_recipients(self, name: str, field: bytes) -> bytes:
        """Complete the addresses of a field and take them; what cannot be read stays as it is."""
        found: list[list[tokens.Token]] = []
        with contextlib.suppress(tokens.TokenError, ListError):
            field = tokens.write(rewrite(tokens.parse(field), self._completion, found), WIDTH)
        addresses = [tokens.unquote(one) for one in found]
        self._found[name in _RESENT_RECIPIENTS] += addresses
        if name in ("to", "cc"):
            self._shown += addresses
        return field

    def _added(self) -> Iterator[bytes]:
        """Give the fields that the message lacks."""
        resent = any(name in self._seen for name in _MAKES_RESENT)
        prefix, lower = (b"Resent-", "resent-") if resent else (b"", "")
        if f"{lower}date" not in self._seen:
            yield prefix + self._date()
        if f"{lower}message-id" not in self._seen:
            yield prefix + self._message_id()
        if f"{lower}from" not in self._seen:
            yield self._from(prefix + b"From")
        if f"{lower}to" not in self._seen and f"{lower}cc" not in self._seen:
            yield prefix + _NOBODY
        if not resent and "mail-followup-to" not in self._seen and self._names_a_list():
            yield b"Mail-Followup-To: %b\n" % b",\n  ".join(tokens.quote(one) for one in self._shown[::-1])

    def _date(self) -> bytes:
        now = time.gmtime(self._now)
        return b"Date: %d " % now.tm_mday + time.strftime("%b %Y %H:%M:%S -0000\n", now).encode()

    def _message_id(self) -> bytes:
        stamp = time.strftime("%Y%m%d%H%M%S", time.gmtime(self._now)).encode()
        return b"Message-ID: <%b.%d.qmail@%b>\n" % (stamp, os.getpid(), self._control("idhost"))

    def _from(self, name: bytes) -> bytes:
        address = self._completed(tokens.quote_local(self._user()), self._host())
        full = self._first("QMAILNAME", "MAILNAME", "NAME")
        field: list[tokens.Token] = [(tokens.ATOM, name), (":", b":")]
        if full is None:
            field += address
        elif b"c" in self._letters:
            field += [*address, (tokens.COMMENT, full)]
        else:
            field += [(tokens.QUOTE, full), ("<", b"<"), *address, (">", b">")]
        return tokens.write(field, WIDTH)

    def _names_a_list(self) -> bool:
        """Whether the message is for a list that QMAILMFTFILE names."""
        path = self._env.get(b"QMAILMFTFILE")
        if not path:
            return False
        try:
            with open(path, "rb") as file:
                lists = {line.rstrip(b" \t\n").lower() for line in file if not line.startswith(b"#")}
        except FileNotFoundError:
            return False
        return any(one.lower() in lists for one in self._shown if one)

    def _default_sender(self) -> bytes:
        user = self._first("QMAILSUSER")
        host = self._first("QMAILSHOST")
        user = self._user() if user is None else user
        if b"m" in self._letters:
            user += b"-%d.%d" % (self._now, os.getpid())
        if b"r" in self._letters:
            user += b"-"
        sender = tokens.unquote(
            self._completed(tokens.quote_local(user), self._host() if host is None else host)
        )
        return sender + (b"-@[]" if b"r" in self._letters else b"")

    def _user(self) -> bytes:
        user = self._first("QMAILUSER", "MAILUSER", "USER", "LOGNAME")
        return b"anonymous" if user is None else user

    def _host(self) -> bytes:
        host = self._first("QMAILHOST", "MAILHOST")
        return self._control("defaulthost") if host is None else host

    def _complete(self, address: bytes) -> bytes:
        """Complete an address that was given without quotes, as in an argument."""
        local, at, host = address.rpartition(b"@")
        if not address:
            return b""
        if not at:
            local, host = host, b""
        return tokens.unquote(self._completed(tokens.quote_local(local), host))

    def _completed(self, local: bytes, host: bytes) -> list[tokens.Token]:
        try:
            return self._completion(tokens.parse(b"%b@%b" % (local, host)))
        except tokens.TokenError:
            raise InjectError(f"unable to parse the host {os.fsdecode(host)}") from None

    def _made_completion(self) -> Completion:
        parts = (b"@" + self._control("defaulthost"), b"." + self._control("defaultdomain"))
        try:
            return Completion(*map(tokens.parse, (*parts, b"." + self._control("plusdomain"))))
        except tokens.TokenError:
            raise InjectError("unable to parse a default host name") from None

    def _control(self, name: str) -> bytes:
        """Give a control file's value: the environment's, the file's, `me`, or the name itself."""
        given = self._env.get(f"QMAIL{name}".upper().encode())
        if given is None:
            given = self.place.control(name.encode())
        if given is None:
            given = self.place.control(b"me")
        return name.encode() if given is None else given

    def _first(self, *names: str) -> bytes | None:
        """Give the first of these variables that is set."""
        return next((self._env[one.encode()] for one in names if one.encode() in self._env), None)
