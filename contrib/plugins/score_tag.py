"""score_tag: mark spam, and hold what is surely spam, by the score that a filter wrote into the header.

It is read from the field of rspamd (`X-Spamd-Result`), SpamAssassin (`X-Spam-Status`) or any other that
begins with a number. Where there are several, the highest counts: a sender can write such a field, too, and
gains nothing by it.

    score_tag:
      tag_at: 6
      hold_at: 15
      after: [milters]

At `tag_at` the message gets `X-Spam-Flag: YES`, and `subject` in front of its subject if that is set; a flag
that it came with is taken out. At `hold_at` it waits in the queue until a person looks at it: `mailward queue
list --state held`, and then `release` or `delete`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway import Hold, Plugin, Section, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway import Message

#: `True, score=7.3 required=5.0` (SpamAssassin), `default: True [7.30 / 15.00]` (rspamd), `7.3`.
SCORE = re.compile(r"(?:^|score=|\[)\s*(-?[0-9]{1,6}(?:\.[0-9]{1,6})?)\b")
CONTROLS = re.compile(r"[\x00-\x1f]+")
FLAG = "X-Spam-Flag"


class Settings(Section):
    """Where the score stands, and what is done."""

    #: Header fields that hold a score.
    fields: list[str] = ["X-Spamd-Result", "X-Spam-Status", "X-Spam-Score"]
    #: The score from which a message is marked.
    tag_at: float = 6.0
    #: The score from which a message is held.
    hold_at: float = 15.0
    #: What is put in front of the subject of a marked message; nothing unless given.
    subject: str = ""


class ScoreTag(Plugin[Settings]):
    """Reads the score when the filters have spoken."""

    @hookimpl
    def message(self, message: Message) -> Hold | None:
        """Mark the message, and hold it when its score is high."""
        if message.values(FLAG):
            message.remove(FLAG)
        found = scores(value for name in self.settings.fields for value in message.values(name))
        if not found:
            return None
        highest = max(found)
        if highest >= self.settings.tag_at:
            self._tag(message)
        return Hold(f"spam score {highest:g}") if highest >= self.settings.hold_at else None

    def _tag(self, message: Message) -> None:
        message.prepend(FLAG, "YES")
        if self.settings.subject:
            subject = CONTROLS.sub(" ", " ".join(message.values("Subject")))
            message.remove("Subject")
            message.append("Subject", f"{self.settings.subject} {subject}".strip())


def scores(values: Iterable[str]) -> list[float]:
    """Give the first score of each field that has one."""
    return [float(found[1]) for value in values if (found := SCORE.search(value))]
