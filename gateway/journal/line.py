"""One event as one line of JSON, whatever bytes its strings hold. Pure: no IO."""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import orjson

from gateway.events import SCHEMA

if TYPE_CHECKING:
    from gateway.events import Event

#: A longer string is cut: clients choose what stands in an event.
LONGEST = 8192
#: A longer list, too.
MOST = 1000
#: Events are flat; what a plugin logs may nest this deep, below that it is text.
DEEPEST = 4
#: What no reader may take for the end of a line, and no terminal for a command: C1 controls, line and
#: paragraph separators, zero-width and bidirectional marks. JSON itself escapes the C0 controls.
_UNSAFE = re.compile("[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BYTE_BASE = 0xDC00
#: What every record has and people see apart from the facts, or not at all.
_HEADER = frozenset(
    {"time", "event", "schema", "severity", "class", "host", "stream", "sequence", "id", "session", "message"}
)


@lru_cache(maxsize=4)
def _second(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def stamp(event: Event, now: float, host: str, stream: str, sequence: int) -> dict[str, Any]:
    """Give the whole record: what every event has in a fixed order, then its facts."""
    second = int(now)
    return {
        "time": f"{_second(second)}.{int((now - second) * 1_000_000):06d}Z",
        "event": event.NAME,
        "schema": SCHEMA,
        "severity": event.SEVERITY,
        "class": event.CLASS,
        "host": host,
        "stream": stream,
        "sequence": sequence,
        "id": event.identity(),
        **event.facts(),
    }


def dump(record: dict[str, Any]) -> bytes:
    """Write a record as one line of JSON that ends with LF. Never raises."""
    try:
        line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a lone surrogate (a byte that was no UTF-8), or a value that JSON does not have
        record = clean(record)
        line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
    if len(line) > LONGEST:
        line = orjson.dumps(clean(record), option=orjson.OPT_APPEND_NEWLINE)
    if line.isascii() and b"\x7f" not in line:
        return line
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", line.decode()).encode()


def clean(value: Any, depth: int = DEEPEST) -> Any:
    """Give a copy of a value that JSON can hold, with strings and lists of bounded length. Never raises."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else str(value)
    if isinstance(value, dict) and depth:
        return {_text(key): clean(one, depth - 1) for key, one in value.items()}
    if isinstance(value, list | tuple) and depth:
        return [clean(one, depth - 1) for one in value[:MOST]]
    return _text(value)


def summary(record: dict[str, Any]) -> str:
    """Write the facts of a record as `key=value`, for people."""
    return " ".join(f"{key}={_plain(value)}" for key, value in record.items() if key not in _HEADER)


def _plain(value: Any) -> str:
    """Write a value so that it can neither end the line nor speak to the terminal."""
    if isinstance(value, list | tuple):
        return ",".join(map(_plain, value))
    if isinstance(value, dict):
        return ",".join(f"{_plain(key)}:{_plain(one)}" for key, one in value.items())
    text = str(value)
    return text if text.isprintable() and " " not in text else ascii(text)


def _text(value: Any) -> str:
    try:
        text = str(value)
    except Exception as error:  # noqa: BLE001 - a plugin's own __str__ may do anything
        text = f"<{type(value).__name__} that cannot be written: {type(error).__name__}>"
    if len(text) > LONGEST:
        text = f"{text[:LONGEST]}[{len(text) - LONGEST} more]"
    return _SURROGATE.sub(_show_byte, text)


def _show_byte(found: re.Match[str]) -> str:
    r"""Write a byte that was no UTF-8 as `\xff`, and any other lone surrogate by its number."""
    code = ord(found[0])
    byte = code - _BYTE_BASE
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else f"\\u{code:04x}"  # noqa: PLR2004 - what surrogateescape makes
