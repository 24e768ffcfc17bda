"""What people do to many entries: page by page, each page in one transaction with its entries locked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gateway import Message

from . import rows, statements

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from gateway import Entry, EntryRecipient
    from gateway.queue import Filter, RecipientState

    from .links import Connection

#: Entries of one transaction.
PAGE = 500
_WAITING: frozenset[RecipientState] = frozenset({"queued"})
_HELD: frozenset[RecipientState] = frozenset({"held"})
_COUNTS = (
    "UPDATE entry SET held = held + h, birth = birth + b "
    "FROM unnest(%s::uuid[], %s::int[], %s::float8[]) AS e (e, h, b) WHERE id = e"
)


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of the recipients that are wanted and in one of these states."""

    states: frozenset[RecipientState]
    become: Callable[[EntryRecipient], EntryRecipient]
    #: The time since a recipient was held does not count into its entry's age.
    ages: bool = False


@dataclass(slots=True)
class Page:
    """What one transaction did: the entries touched as they are after it, and where the next page begins."""

    touched: list[Entry]
    #: Of each of them the recipients that were changed.
    numbers: dict[str, list[int]]
    last: str | None


async def change(
    connection: Connection,
    wanted: Filter,
    after: str,
    what: Change,
    now: float,
    limit: int | None = None,
    free: tuple[int, Collection[str]] | None = None,
) -> Page:
    """Change recipients of the next page of entries, of `limit` recipients at most; `free`: see `heads`."""
    found = await statements.heads(connection, wanted, after, PAGE, locked=True, free=free)
    page = Page([], {}, found[-1][0][0] if len(found) == PAGE else None)
    changed: list[tuple[str, EntryRecipient]] = []
    counts: list[tuple[str, int, float]] = []
    for row, recipients in found:
        entry = rows.entry_of(row, recipients, Message(b""))
        some = [one for one in recipients if one.state in what.states and wanted.matches(entry, one)]
        some = some if limit is None else some[: max(0, limit - len(changed))]
        if not some:
            continue
        new = {one.number: what.become(one) for one in some}
        changed += [(entry.id, one) for one in new.values()]
        entry.recipients = [new.get(one.number, one) for one in recipients]
        held = sum(one.state == "held" for one in new.values()) - sum(one.state == "held" for one in some)
        aged = max(0.0, now - min(one.due for one in some)) if what.ages else 0.0
        entry.birth += aged
        counts.append((entry.id, held, aged))
        page.touched.append(entry)
        page.numbers[entry.id] = sorted(new)
    await statements.store(connection, changed, now)
    if counts:
        await connection.execute(_COUNTS, [list(column) for column in zip(*counts, strict=True)])
    return page


async def delete(connection: Connection, wanted: Filter, after: str) -> Page:
    """Forget those of the next page that match and have no claimed recipient."""
    found = await statements.heads(connection, wanted, after, PAGE, locked=True)
    gone = []
    for row, recipients in found:
        entry = rows.entry_of(row, recipients, Message(b""))
        busy = any(one.state == "attempting" for one in recipients)
        if not busy and any(wanted.matches(entry, one) for one in recipients):
            gone.append(entry)
    await statements.forget(connection, [entry.id for entry in gone])
    return Page(gone, {}, found[-1][0][0] if len(found) == PAGE else None)


async def matching(connection: Connection, wanted: Filter, after: str, *, mine: bool = False) -> Page:
    """Read those of the next page that match; `mine`: that this worker has stored."""
    found = await statements.heads(connection, wanted, after, PAGE, mine=mine)
    entries = [rows.entry_of(row, recipients, Message(b"")) for row, recipients in found]
    matching = [entry for entry in entries if any(wanted.matches(entry, one) for one in entry.recipients)]
    return Page(matching, {}, found[-1][0][0] if len(found) == PAGE else None)


def retried(now: float) -> Change:
    """Due now."""
    return Change(_WAITING, lambda one: replace(one, due=now))


def held(now: float) -> Change:
    """Wait for a person."""
    return Change(_WAITING, lambda one: replace(one, state="held", due=now))


def released(now: float) -> Change:
    """Wait no more; why they were held is forgotten."""

    def become(one: EntryRecipient) -> EntryRecipient:
        recipient = replace(one.recipient, held="", held_by="")
        return replace(one, recipient=recipient, state="queued", due=now)

    return Change(_HELD, become, ages=True)


def readdressed(now: float, change: Callable[[EntryRecipient], EntryRecipient]) -> Change:
    """Be routed anew."""

    def become(one: EntryRecipient) -> EntryRecipient:
        due = now if one.state == "queued" else one.due
        return replace(change(one), route=None, report="", status="", due=due)

    return Change(_WAITING | _HELD, become)


def taken() -> Change:
    """Be claimed, whatever the due time."""
    return Change(_WAITING | _HELD, lambda one: one.taken())
