"""The vocabulary of events: one class per fact. The journal adds time, host, stream and sequence."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal

Severity = Literal["debug", "info", "notice", "warning", "error", "critical"]
#: fate: what became of a message (survives any kill); security: who tried what; other: the rest.
EventClass = Literal["fate", "security", "other"]

#: Raised when the shape of events changes so that a reader must know.
SCHEMA = 1
#: name -> class, filled by `@event`.
VOCABULARY: dict[str, type[Event]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What every event may carry; empty fields are left out of the JSON."""

    NAME: ClassVar[str] = ""
    CLASS: ClassVar[EventClass] = "other"
    SEVERITY: ClassVar[Severity] = "info"

    session: str = ""
    #: Id of the queue entry.
    message: str = ""
    recipient: str = ""
    attempt: int = 0
    #: Id of the message that gave birth to this one.
    parent: str = ""
    client_ip: str = field(default="", metadata={"key": "client.ip"})
    listener: str = ""
    user: str = ""
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
        """Give the id: for a fate made from message, recipient and attempt, so that a repeat can be dropped."""
        if self.CLASS == "fate" and self.message:
            key = f"{self.NAME}\0{self.message}\0{self.recipient}\0{self.attempt}\0{self.actor}"
            digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=16).digest()
            return str(uuid.UUID(bytes=digest, version=8))
        return str(uuid.uuid4())

    def facts(self) -> dict[str, Any]:
        """Give the fields that are set, under their JSON names."""
        found = {}
        for name, key in _keys(type(self)):
            value = getattr(self, name)
            if value not in ("", 0, False, None, (), []):
                found[key] = value
        return found


_KEYS: dict[type[Event], tuple[tuple[str, str], ...]] = {}
