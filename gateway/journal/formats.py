"""The fields of an event in each format that a SIEM takes, and how an exported line is read back. Pure.

One table for both ways: whoever renders a format writes a field under the name that stands here. A field
that has no name of its own in a format stands below (or, in CIM, behind) the format's REST.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any


@dataclass(frozen=True, slots=True)
class Format:
    """Where a format has our fields: `a.b` is `b` in the object `a`, or a key with that dot."""

    #: A field that every line has: by it the format is known.
    mark: str
    #: Our field -> its place.
    places: Mapping[str, str]
    #: What stands before our own name of every other field.
    rest: str


#: The format of the journal itself has each field under its own name.
OWN = Format("schema", {}, "")
FORMATS: Mapping[str, Format] = {
    "json": OWN,
    "ecs": Format(
        "event.action",
        {
            "time": "@timestamp",
            "event": "event.action",
            "id": "event.id",
            "sequence": "event.sequence",
            "host": "observer.hostname",
        },
        "mailward.",
    ),
    "ocsf": Format(
        "metadata.event_code",
        {
            "time": "time",
            "event": "metadata.event_code",
            "id": "metadata.uid",
            "sequence": "metadata.sequence",
            "host": "device.hostname",
        },
        "unmapped.",
    ),
    "cim": Format(
        "signature",
        {
            "time": "_time",
            "event": "signature",
            "id": "signature_id",
            "host": "host",
            "message": "internal_message_id",
        },
        "mailward_",
    ),
}
#: What a SIEM's own export puts around an event (Elasticsearch, Splunk).
_WRAPS = ("_source", "result")
_MILLISECONDS = 1e11


class Exported(Mapping[str, Any]):
    """One exported event under our own names."""

    def __init__(self, record: Mapping[str, Any], form: Format) -> None:
        self._record, self._form = record, form

    def __getitem__(self, name: str) -> Any:
        found = _at(self._record, self._form.places.get(name, f"{self._form.rest}{name}"))
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Any:
        return iter(self._form.places)

    def __len__(self) -> int:
        return len(self._form.places)


def own(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Give an event under our own names, whatever format it was exported in; None when it is in none."""
    for wrap in _WRAPS:
        if isinstance(inner := record.get(wrap), dict):
            record = inner
    form = next((one for one in FORMATS.values() if _at(record, one.mark) is not None), None)
    if form is None or form is OWN:
        return record if form else None
    return Exported(record, form)


def seconds(time: Any) -> float:
    """Read the time of an event: RFC 3339, or seconds or milliseconds since the epoch."""
    if isinstance(time, str) and not time.replace(".", "", 1).isdecimal():
        return datetime.fromisoformat(time).timestamp()
    number = float(time)
    return number / 1000 if number > _MILLISECONDS else number


def _at(record: Mapping[str, Any], place: str) -> Any:
    if place in record:
        return record[place]
    head, dot, rest = place.partition(".")
    inner = record.get(head) if dot else None
    return _at(inner, rest) if isinstance(inner, Mapping) else None
