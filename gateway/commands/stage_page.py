"""Writes the reference of the stages from the code, so that it cannot differ from it."""

from __future__ import annotations

import inspect
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from gateway.hookspecs import DECISIONS, SPECS, Stages
from gateway.when import NAMED, known

if TYPE_CHECKING:
    from gateway.hookspecs import Spec

_HEAD = """\
# Stages

A plugin is asked by methods that have a stage's name and are marked `@hookimpl`. They may be `def` or
`async def`, and take any of the stage's arguments, by name. `None` means "no opinion" or "unchanged".

- **decide**: plugins are asked in order; the first that gives a decision ends the stage.
- **provide**: plugins are asked in order; the first answer wins.
- **transform**: each plugin sees what the one before it made; the last argument is what is changed.
- **observe**: told after the fact; nothing waits for it, and nothing that it does changes the mail.
- **life**: the plugin's own start, end and commands.

"Asked in order" names the bundled plugins; all others are sorted by name. `before:` and
`after:` in a plugin's section change that, and `mailward stages` prints the order that your configuration
makes, and why. A plugin that fails is not silent: at a decide stage the client hears `451 4.3.0`, unless its
section says `on_error: skip`.

This page is made from `gateway/hookspecs.py` by `make docs`. [Writing a plugin](../plugins.md) shows how to
begin.
"""
_RULES = """\
At `authenticate` a Reject is 535 and a Defer 454; there and at `relay`, `Hold` and `Discard` are faults of
the plugin. At `message` the answer may also be a mapping of recipients' addresses to decisions.

## The stages
"""
_SERVERS = "listeners `smtp`, `submission` and `lmtp`"
_ALL = f"{_SERVERS}, and `milter`"
_BORN = "; also mail of local programs and mail that is born here (bounces, forwards, posts to lists)"
_ROUTING = "routing, at a message's first claim; `recipient_check` at RCPT; `mailward address`"
#: Who asks, by stage.
_ASKED_BY = {
    "connect": _ALL,
    "helo": _ALL,
    "authenticate": "listeners `smtp` and `submission` that offer AUTH",
    "scram_keys": "listeners `smtp` and `submission` that offer AUTH",
    "mail": _ALL,
    "relay": f"{_SERVERS}; never `milter`, whose MTA has decided that",
    "rcpt": _ALL,
    "data": _ALL,
    "incoming": _ALL + _BORN,
    "message": _ALL + _BORN,
    "reset": _ALL,
    "disconnect": _ALL,
    "open_queue": "the start of the gateway, and commands that own the queue of one that is stopped",
    "queued": "the queue, for mail of every origin; not for mail that a milter's MTA owns",
    "rewrite": _ROUTING,
    "route": _ROUTING,
    "account": "`dot_qmail`, whenever it needs to know who has an address",
    "exists": "`recipient_check` at RCPT; `mailward address`",
    "outgoing": "each attempt of a delivery",
    "deliver": "each attempt of a delivery: only the plugin that the route names",
    "retry": "an attempt whose outcome is deferred, for each such recipient",
    "bounce": "the end of a message of which a recipient has failed",
    "report": "the end of an attempt, where the sender wants to be told of success or delay",
    "event": "the gateway, for every event",
    "startup": "the start and each reload, before the chain is used",
    "shutdown": "the end, and a reload that replaces the plugin, after its last session and delivery",
    "commands": "`mailward`, when it lists or runs commands",
}
_REFUSED = {
    "open_queue": ["`isolation: thread` and `process` are refused here."],
    "deliver": ["`isolation: process` is refused here."],
}
#: What the client hears of a decision, in SMTP and by milter.
_DECISIONS = (
    ("decision", "connect, helo", "mail, relay, rcpt, data", "message", "by milter"),
    ("---", "---", "---", "---", "---"),
    ("`Accept()`", *["ends this stage"] * 3, "continue"),
    (
        '`Reject("5.7.1", text)`',
        "554, and the session ends",
        "550; 553 for 5.7.1 at mail, relay and rcpt; 552 for 5.3.4",
        "554; 552 for 5.3.4",
        "reject, with that reply",
    ),
    (
        '`Defer("4.7.1", text)`',
        "421, and the session ends",
        "450; 452 for 4.3.1",
        "451; 452 for 4.3.1",
        "tempfail, with that reply",
    ),
    (
        "`Discard(reason)`",
        "a fault of the plugin",
        "taken, and that sender or recipient is dropped",
        "250, and dropped",
        "discard",
    ),
    (
        "`Hold(reason)`",
        "a fault of the plugin",
        "holds that recipient; at mail and data all",
        "250, and queued as held",
        "quarantine",
    ),
    ('`Disconnect("4.7.0", text)`', "421 or 554, and the session ends", *["the session ends"] * 3),
)
_ARGUMENTS = {
    "session": "the connection: client, listener, HELO, TLS, login",
    "name": "what HELO, EHLO or LHLO said",
    "credentials": "the login, and what shows that it is its owner",
    "login": "the name that the client wants to be",
    "transaction": "the message on its way in: sender, recipients so far, session (None for mail born here)",
    "recipient": "the recipient that this is about",
    "sender": 'the envelope sender, "" for the null sender',
    "message": "its bytes, with edits of the header; yours to change",
    "entry": "the message in the queue",
    "local_part": "what stands before the `@`",
    "domain": "what stands behind it",
    "delivery": "one attempt, for the recipients of one route",
    "outcome": "how the attempt ended for one recipient",
    "failures": "the recipients to be named",
    "notices": "the recipients to be told of, and what of each",
    "event": "what happened",
}


def stages_page() -> str:
    """Write `docs/reference/stages.md`."""
    decisions = "\n".join(f"| {' | '.join(row)} |" for row in _DECISIONS)
    parts = [f"{_HEAD}\n## What a decision means\n\n{decisions}\n", _RULES]
    parts.append("| stage | kind | if nobody speaks |\n|---|---|---|")
    parts += [f"| [`{name}`](#{name}) | {spec.kind} | {spec.silence} |" for name, spec in SPECS.items()]
    for name, spec in SPECS.items():
        hook = getattr(Stages, name)
        parts += [f"\n## {name}\n", f"`{_signature(name, hook)}`\n", f"{inspect.getdoc(hook)}\n"]
        parts += [f"- {line}" for line in _lines(spec, hook)]
    return "\n".join(parts).rstrip() + "\n"


def _lines(spec: Spec, hook: Any) -> list[str]:
    lines = [f"Kind: {spec.kind}.", f"Asked by: {_ASKED_BY[spec.name]}."]
    lines += [f"`{one}`: {_ARGUMENTS[one]}." for one in spec.arguments]
    if spec.kind not in ("observe", "life"):
        lines.append(f"May return: {_answers(hook)}.")
    if spec.silence != "-":
        lines.append(f"If nobody speaks: {spec.silence}.")
    if spec.order != (...,):
        lines.append(f"Asked in order: {', '.join(map(_stem, spec.order))}.")
    if spec.strict:
        lines.append("Strict: `on_error: skip` and `dry_run` are refused here.")
    if spec.kind != "life":
        lines.append(_conditions(spec))
    return lines + _REFUSED.get(spec.name, [])


def _answers(hook: Any) -> str:
    words = hook.__annotations__["return"].replace("Decision", " | ".join(sorted(DECISIONS)), 1)
    if "dict[" in words:
        words = " | ".join([*sorted(DECISIONS), "dict[Address, Decision]", "None"])
    return ", ".join(f"`{one.strip()}`" for one in words.split(" | "))


def _conditions(spec: Spec) -> str:
    if spec.name in NAMED:
        return "`when` does not count here: the route has named the plugin."
    names = sorted(known(spec))
    return f"`when` may ask for: {', '.join(f'`{one}`' for one in names) or 'nothing'}."


def _signature(name: str, hook: Any) -> str:
    types = hook.__annotations__
    arguments = [f"{one}: {types[one]}" for one in hook.spec.arguments]
    return f"{name}(self{''.join(f', {one}' for one in arguments)}) -> {types['return']}"


def _stem(one: str | EllipsisType) -> str:
    return "all others" if isinstance(one, EllipsisType) else f"`{one}`"
