"""moods: makes each stage say each thing, by the local part of the sender at moods.example. A site plugin."""

from __future__ import annotations

from gateway import (
    Address,
    Decision,
    Defer,
    Discard,
    Disconnect,
    Hold,
    Plugin,
    Reject,
    Section,
    Transaction,
    hookimpl,
)

Settings = Section
_SAID: dict[str, Decision] = {
    "reject": Reject("5.7.1", "not in this mood"),
    "defer": Defer("4.7.1", "come back in a better mood"),
    "big": Reject("5.3.4", "too big for this mood"),
    "full": Defer("4.3.1", "no room in this mood"),
    "discard": Discard("mood"),
    "hold": Hold("mood"),
    "disconnect": Disconnect("5.7.0", "out of here"),
    "later": Disconnect("4.7.0", "out of here, for now"),
    "injected": Reject("5.7.1", "one\r\n250 2.0.0 two"),
}
_EACH: dict[Address, Decision] = {
    Address("info@example.org"): _SAID["reject"],
    Address("hold@example.org"): _SAID["hold"],
    Address("drop@example.org"): _SAID["discard"],
    Address("postmaster@example.org"): _SAID["full"],
}


class Moods(Plugin[Section]):
    """Answers `STAGE-WORD@moods.example`."""

    @hookimpl
    def helo(self, name: str) -> Reject | None:
        """Refuse one name."""
        return Reject("5.7.1", "not with that name") if name == "moods.example" else None

    @hookimpl
    def mail(self, transaction: Transaction) -> Decision | None:
        """Speak at MAIL."""
        return _mood("mail", transaction)

    @hookimpl
    def rcpt(self, transaction: Transaction) -> Decision | None:
        """Speak at RCPT."""
        return _mood("rcpt", transaction)

    @hookimpl
    def data(self, transaction: Transaction) -> Decision | None:
        """Speak at DATA."""
        return _mood("data", transaction)

    @hookimpl
    def message(self, transaction: Transaction) -> Decision | dict[Address, Decision] | None:
        """Speak at the end of the message; to `message-each`, of each recipient in another mood."""
        if transaction.sender == "message-each@moods.example":
            return _EACH
        return _mood("message", transaction)


def _mood(stage: str, transaction: Transaction) -> Decision | None:
    if transaction.sender.domain != "moods.example":
        return None
    where, _, word = transaction.sender.local_part.partition("-")
    if where != stage:
        return None
    if word == "raise":
        raise RuntimeError("password=hunter2")
    return _SAID[word]
