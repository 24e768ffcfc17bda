"""What a worker asks of the child of an account, and what that answers, as JSON.

Neither side trusts the other: a worker that was taken over must not reach more of an account than mail from
outside could, and an account's own process must not reach the gateway. So each field is read as what it has
to be; no path, no class and no user comes over.
"""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from gateway.address import Address
from gateway.envelope import (
    Account,
    Birth,
    Delivery,
    Entry,
    EntryRecipient,
    Origin,
    Outcome,
    Recipient,
    Route,
)
from gateway.errors import AgentError, GatewayError
from gateway.message import FileBody, Message

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from gateway.envelope import Result

#: The longest request; a large body is not in it, but an open file beside it.
LONGEST_REQUEST = 128 * 1024 * 1024
#: The longest answer: reading it stops the worker for that long.
LONGEST_ANSWER = 16 * 1024 * 1024
_LONGEST_TEXT = 8192
_RESULTS: tuple[Result, ...] = ("delivered", "deferred", "failed")
_ORIGINS = get_args(Origin)
_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}")
#: It becomes part of a file's name.
_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
_DASH = re.compile(r"-[^./\0]*")


class Way(NamedTuple):
    """How a line of users/assign leads to files of an account."""

    dash: str
    ext: str
    #: A local part that begins with the line's has the rest of it behind the extension.
    more: bool

    def leads_to(self, dash: str, ext: str) -> bool:
        """Whether mail that the line is for can have these two."""
        return dash == self.dash and (ext.startswith(self.ext) if self.more else ext == self.ext)


@dataclass(frozen=True, slots=True)
class Errand:
    """A request, as its child understands it."""

    stage: str
    plugin: str
    account: Account
    #: The argument of the stage: a Delivery or a Recipient.
    subject: Any
    #: Whether the body came as an open file.
    apart: bool


def asked_to_deliver(plugin: str, account: Account, delivery: Delivery) -> bytes:
    """Write a request to deliver to the first recipient; a body on disk goes beside it."""
    (one,) = delivery.recipients
    message = delivery.entry.message
    body = None if isinstance(message.body, FileBody) else base64.b64encode(message.body).decode()
    more = {
        "number": one.number,
        "id": delivery.entry.id,
        "sender": str(delivery.sender),
        "birth": delivery.entry.birth,
        "origin": delivery.entry.origin,
        "attempt": delivery.attempt,
        "header": base64.b64encode(message.header).decode(),
        "body": body,
    }
    return _written("deliver", plugin, account, one.recipient, more)


def asked_whether_exists(plugin: str, account: Account, recipient: Recipient) -> bytes:
    """Write a request to look whether an address is taken."""
    return _written("exists", plugin, account, recipient, {})


def _written(
    stage: str, plugin: str, account: Account, recipient: Recipient, more: Mapping[str, Any]
) -> bytes:
    asked = {
        "stage": stage,
        "plugin": plugin,
        "dash": account.dash,
        "ext": account.ext,
        "address": str(recipient.address),
        "original": str(recipient.original),
    }
    return json.dumps({**asked, **more}).encode()


def is_usual(dash: str, ext: str) -> bool:
    """Whether any sender reaches what these two name by writing to an extension, of whatever account."""
    return bool(_DASH.fullmatch(dash)) or not (dash or ext)


def read_request(data: bytes, account: Account, ways: Iterable[Way] = ()) -> Errand:
    """Read a request to the child of an account. Raises AgentError for anything else.

    `ways` are what the account's lines in users/assign say, where that is not usual.
    """
    try:
        asked = json.loads(data)
        stage, plugin = _text(asked["stage"]), _text(asked["plugin"])
        dash, ext = _text(asked["dash"]), _text(asked["ext"])
        if not is_usual(dash, ext) and not any(one.leads_to(dash, ext) for one in ways):
            raise AgentError(f"no file of an account is reached with the dash {dash!r}")
        recipient = Recipient(Address(_text(asked["address"])), Address(_text(asked["original"])))
        whose = Account(account.user, account.uid, account.gid, account.home, dash, ext)
        subject = recipient if stage == "exists" else _delivery(asked, plugin, recipient)
        return Errand(stage, plugin, whose, subject, stage != "exists" and asked["body"] is None)
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise AgentError(f"the request is not understood: {error!r}") from error


def _delivery(asked: Mapping[str, Any], plugin: str, recipient: Recipient) -> Delivery:
    number, attempt, birth = asked["number"], asked["attempt"], float(asked["birth"])
    if not (type(number) is type(attempt) is int and number >= 0 and 0 <= birth < math.inf):
        raise ValueError("number, attempt or birth")
    if not _ID.fullmatch(_text(asked["id"])) or asked["origin"] not in _ORIGINS:
        raise ValueError("id or origin")
    body = b"" if asked["body"] is None else _bytes(asked["body"])
    message = Message(_bytes(asked["header"]), body)
    sender, one = Address(_text(asked["sender"])), EntryRecipient(number, recipient, "attempting")
    entry = Entry(asked["id"], sender, message, [one], birth, asked["origin"])
    return Delivery("", entry, Route(plugin, "local"), (one,), sender, attempt)


def answer_of(outcomes: Sequence[Outcome], message: Message) -> dict[str, Any]:
    """Write what a child answers to `deliver`: one outcome, and its births with bodies that differ."""
    (outcome,) = outcomes
    births = [
        {
            "sender": one.sender,
            "recipients": list(one.recipients),
            "origin": one.origin,
            "header": base64.b64encode(one.message.header).decode(),
            "body": None if one.message.body is message.body else _encoded(one.message),
        }
        for one in outcome.births
    ]
    return {"result": outcome.result, "text": outcome.text, "status": outcome.status, "births": births}


def outcome_of(said: Mapping[str, Any], number: int, message: Message) -> Outcome:
    """Read what `answer_of` writes. Raises AgentError for anything else."""
    try:
        result = _RESULTS[_RESULTS.index(said["result"])]
        births = tuple(_birth(one, message) for one in said["births"])
        status = said["status"] if _STATUS.fullmatch(said["status"]) else ""
        text = _text(said["text"])[:_LONGEST_TEXT]
        return Outcome(number, result, text, status, births=births)
    except (LookupError, TypeError, ValueError, AttributeError, GatewayError) as error:
        raise AgentError(f"its answer is not understood: {error!r}") from error


def _birth(said: Mapping[str, Any], message: Message) -> Birth:
    recipients = tuple(Address(_text(one)) for one in said["recipients"])
    body = message.body if said["body"] is None else _bytes(said["body"])
    origin: Origin = "list" if said["origin"] == "list" else "forward"
    return Birth(Address(_text(said["sender"])), recipients, Message(_bytes(said["header"]), body), origin)


def _encoded(message: Message) -> str:
    return base64.b64encode(b"".join(message.chunks())[len(message.header) :]).decode()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is no text")
    return value


def _bytes(value: Any) -> bytes:
    return base64.b64decode(_text(value), validate=True)
