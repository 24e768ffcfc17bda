"""One message's whole story: its session, its fate, its parents and what it gave birth to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gateway.journal.line import summary
from gateway.journal.reader import read

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

#: How many messages one may have to do with each other before the story ends there.
RELATIVES = 1000


@dataclass(slots=True)
class Story:
    """What the journal knows of one message."""

    message: str
    #: Its own events and those of its session around it, in the order of time.
    events: list[dict[str, Any]]
    #: Id of the message that gave birth to it.
    parent: str = ""
    #: The stories of the messages that it gave birth to.
    births: list[Story] = field(default_factory=list)

    def all_events(self) -> list[dict[str, Any]]:
        """Give the events of the whole family in the order of time."""
        found = [one for birth in self.births for one in birth.all_events()]
        return sorted([*self.events, *found], key=lambda one: one["time"])


def find(folder: Path, wanted: str) -> list[str]:
    """Give the ids of messages, oldest first, that begin so, or have this sender or recipient."""
    found: dict[str, None] = {}
    for one in read(folder, having=wanted):
        message = one.get("message", "")
        if message and (message.startswith(wanted) or wanted in (one.get("sender"), one.get("recipient"))):
            found[message] = None
    return list(found)


def stories(folder: Path, ids: Iterable[str]) -> list[Story]:
    """Tell the stories of messages; what one of them has given birth to is told there, and not again."""
    found: list[Story] = []
    told: set[str] = set()
    for message in ids:
        if message not in told:
            family: set[str] = set()
            found.append(_story(folder, message, family))
            told |= family
    return found


def render(story: Story, indent: str = "") -> Iterator[str]:
    """Write a story as lines for a person: time, event, facts; births are indented under it."""
    parent = f", born from {story.parent}" if story.parent else ""
    yield f"{indent}message {story.message}{parent}"
    for one in story.events:
        yield f"{indent}  {one['time'][:23]}  {one['event']:<20}  {summary(one)}".rstrip()
    for birth in story.births:
        yield from render(birth, indent + "    ")


def _story(folder: Path, message: str, seen: set[str]) -> Story:
    seen.add(message)
    about = list(read(folder, having=message))
    own = [one for one in about if one.get("message") == message]
    sessions = {one["session"] for one in own if "session" in one}
    for session in sessions:
        own += [one for one in read(folder, having=session) if _beside(one, session)]
    own.sort(key=lambda one: one["time"])
    parent = next((one["parent"] for one in own if one.get("parent")), "")
    children = dict.fromkeys(
        one["message"] for one in about if one.get("parent") == message and "message" in one
    )
    story = Story(message, own, parent)
    for child in children:
        if child not in seen and len(seen) < RELATIVES:
            story.births.append(_story(folder, child, seen))
    return story


def _beside(one: dict[str, Any], session: str) -> bool:
    """Tell whether an event is about the session as such, and not about another message in it."""
    return one.get("session") == session and "message" not in one
