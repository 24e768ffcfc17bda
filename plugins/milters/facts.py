"""What filters are told of a session: the macros that the known ones need, and the message as they see it."""

from __future__ import annotations

import re
from email.utils import format_datetime
from importlib.metadata import version
from typing import TYPE_CHECKING

from gateway import Client, Message
from gateway.milter import Fields, Mail, packets

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from gateway import Session, Transaction

#: A macro's longest value; a client may choose some of them, and a packet has a bound.
LONGEST = 1000
_VERSION = version("mailward")
#: The length of a key, in the name of a cipher: AES256, AES_128.
_BITS = re.compile("128|256")
_AUTHSERV_ID = re.compile(rb"\s*(?:\([^)]*\)\s*)*\"?([^\s;\"]+)")


def shown_as(transaction: Transaction, message: Message, hostname: str) -> Mail:
    """Make what the filters see. Mail that was born here is shown as coming from this machine itself."""
    session = transaction.session
    client = session.client if session else Client("127.0.0.1", 0, "localhost")
    ip, name, port = client.ip, client.name or f"[{client.ip}]", client.port
    family = b"U" if not ip else b"6" if ":" in ip else b"4"
    connect = packets.Connect(_raw(name) if ip else b"localhost", family, port, _raw(ip))
    return Mail(
        connect,
        _raw(session.helo if session else hostname)[:LONGEST],
        transaction.sender,
        tuple(one for one in transaction.recipients if not one.discarded),
        message.copy(),
        transaction.params,
        own_received(message, hostname),
    )


def own_received(message: Message, hostname: str) -> int | None:
    """Find the Received that we have put in: the one field that filters do not see, yet count."""
    for i, field in enumerate(Fields(message.header).fields):
        name, _, value = field.partition(b":")
        if name.strip().lower() == b"received":
            return i if b"by %b " % hostname.encode() in b" ".join(value.split()) else None
    return None


def without_claims(message: Message, hostname: str) -> None:
    """Remove results of authentication that claim to be ours but came with the message (RFC 8601 section 5).

    Those above our own Received are from plugins of ours.
    """
    at = own_received(message, hostname)
    fields = Fields(message.header).fields
    trusted = 0 if at is None else at
    kept = fields[:trusted] + [field for field in fields[trusted:] if not _claims(field, hostname)]
    if len(kept) < len(fields):
        message.adopt(Message(b"".join(kept), message.body))


def _claims(field: bytes, hostname: str) -> bool:
    name, _, value = field.partition(b":")
    found = _AUTHSERV_ID.match(value) if name.strip().lower() == b"authentication-results" else None
    return found is not None and found[1].lower() == hostname.lower().encode()


def macros_of(
    transaction: Transaction, mail: Mail, hostname: str, now: datetime
) -> Mapping[type[packets.Packet], Mapping[bytes, bytes]]:
    """Give the macros by the command that they go with; those without a value are left out."""
    session, i = transaction.session, transaction.id
    user = session.user if session else ""
    domain = mail.sender.domain
    client = _of_client(session, hostname)
    table: dict[type[packets.Packet], dict[str, str]] = {
        packets.Connect: client,
        packets.Helo: _of_tls(session),
        packets.Mail: {
            "i": i,
            "client_addr": client["client_addr"],
            "client_name": client["client_name"],
            # A login that the system or a proxy vouches for has no mechanism of ours (RFC 4422 appendix A).
            "auth_type": (session.auth if session else "") or "EXTERNAL" if user else "",
            "auth_authen": user,
            "mail_addr": mail.sender.quoted(),
            "mail_host": domain,
            "mail_mailer": "smtp" if domain else "",
            # Filters that make up a Received field do so at the first recipient.
            "r": "ESMTP" if session is None or session.extended else "SMTP",
            "s": session.helo if session else hostname,
            "b": format_datetime(now),
        },
        packets.Rcpt: {"i": i},
        packets.Data: {"i": i},
        packets.EndOfHeaders: {"i": i},
        packets.EndOfMessage: {"i": i, "msg_id": next(iter(mail.message.values("Message-ID")), "")},
    }
    return {kind: _encoded(values) for kind, values in table.items()}


def _of_client(session: Session | None, hostname: str) -> dict[str, str]:
    """Give what is known when a client has connected."""
    client = session.client if session else Client("127.0.0.1", 0, "localhost")
    ip = f"IPv6:{client.ip}" if ":" in client.ip else client.ip
    here = session.local_ip if session else "127.0.0.1"
    name = client.name or "unknown"
    return {
        "j": hostname,
        "_": f"{name} [{ip}]",
        "v": f"Mailward {_VERSION}",
        # Filters that make up a Received field ask for the version of the configuration, too.
        "Z": _VERSION,
        "daemon_name": session.listener if session else "submit",
        "daemon_addr": here,
        "if_addr": here,
        "if_name": hostname,
        "client_addr": ip,
        "client_name": name,
        "client_ptr": name,
        "client_port": str(client.port),
    }


def _of_tls(session: Session | None) -> dict[str, str]:
    """Give what is known of TLS, as Sendmail says it."""
    if session is None or not session.tls:
        return {}
    version, _, cipher = session.tls.partition(" ")
    bits = "256" if "CHACHA20" in cipher else next(iter(_BITS.findall(cipher)), "")
    verify = "OK" if session.certificate else "NO"
    return {"tls_version": version, "cipher": cipher, "cipher_bits": bits, "verify": verify}


def _encoded(values: Mapping[str, str]) -> dict[bytes, bytes]:
    return {name.encode(): _raw(value)[:LONGEST] for name, value in values.items() if value}


def _raw(text: str) -> bytes:
    return text.replace("\0", "").encode("utf-8", "surrogateescape")
