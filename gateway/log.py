"""structlog set-up: where events go besides the journal, and how log lines become events.

Nothing global of structlog is configured: two gateways may live in one process. An output is a structlog
logger whose processors end in bytes; a new format is a processor more in `_FORMATS`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import traceback
from collections import deque
from typing import TYPE_CHECKING, Any, BinaryIO

import structlog

from gateway.errors import ConfigError
from gateway.events import LibraryLogged, PluginLogged
from gateway.journal.line import clean, dump, summary
from gateway.journal.qmail import QmailLines
from gateway.settings import Concurrency

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, MutableMapping, Sequence

    from structlog.typing import FilteringBoundLogger, Processor

    from gateway.events import Event, Severity
    from gateway.journal.writer import Record
    from gateway.settings import Output as OutputSettings

#: Events that wait for a slow reader of an output; beyond it that output misses some, counted.
BACKLOG = 10_000
#: At the end a slow reader gets this many seconds to take what waits.
PATIENCE = 2.0
_COLOURS = {"debug": 2, "info": 0, "notice": 36, "warning": 33, "error": 31, "critical": 41}
_LEVELS: dict[str, Severity] = {
    "debug": "debug",
    "warning": "warning",
    "error": "error",
    "critical": "critical",
}
#: Keywords of a log line that are fields of every event, so that `trace` finds the line.
_LIFTED = ("session", "message", "recipient", "client_ip", "listener", "user", "reason", "reply")


class Log:
    """The outputs of one gateway, and the loggers that end in its events."""

    def __init__(
        self, outputs: Iterable[OutputSettings], concurrency: Callable[[], Concurrency] = Concurrency
    ) -> None:
        """Open the outputs. Raises ConfigError."""
        self.outputs = [StreamOutput(str(one.to), _open(one), one.format, concurrency) for one in outputs]
        self._handler: _Handler | None = None
        self._emit: Callable[[Event], None]

    def start(self, emit: Callable[[Event], None]) -> None:
        """From now on turn what plugins and libraries log into events."""
        self._emit = emit
        self._handler = _Handler(emit)
        logging.getLogger().addHandler(self._handler)

    def close(self) -> None:
        """Let libraries log as before."""
        if self._handler:
            logging.getLogger().removeHandler(self._handler)

    def plugin(self, stem: str) -> FilteringBoundLogger:
        """Make the logger of one plugin: each line of level info or above is a `plugin.logged` event."""
        logger: FilteringBoundLogger = structlog.wrap_logger(
            _Sink(self._emit),
            processors=[structlog.processors.format_exc_info, _to_event],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            plugin=stem,
        ).bind()
        return logger


class StreamOutput:
    """Writes events to a stream by a thread of its own: a reader that stands still costs mail nothing."""

    def __init__(
        self,
        name: str,
        stream: BinaryIO,
        form: str,
        concurrency: Callable[[], Concurrency] = Concurrency,
    ) -> None:
        self.name = name
        self._stream = stream
        chain = [_record, _qmail(concurrency) if form == "qmail" else _FORMATS[form](stream)]
        self._log = structlog.wrap_logger(
            _Lines(stream), processors=chain, wrapper_class=structlog.BoundLoggerBase
        ).bind()
        self._waiting: deque[Record] = deque()
        self._wake = threading.Condition()
        self._dropped = 0
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"output-{name}", daemon=True)
        self._thread.start()

    def write(self, records: Sequence[Record]) -> int:
        """Take records for the thread. Gives how many were dropped before there was room again."""
        with self._wake:
            if len(self._waiting) + len(records) > BACKLOG and self._waiting:
                self._dropped += len(records)
                return 0
            self._waiting.extend(records)
            self._wake.notify()
            dropped, self._dropped = self._dropped, 0
            return dropped

    def close(self) -> None:
        """Write what waits, for a bounded time."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(PATIENCE)

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._waiting or self._closing)
                batch, self._waiting = self._waiting, deque()
            if not batch:
                return
            # A full disk or a reader that left: these events are in the journal, and mail goes on.
            with contextlib.suppress(OSError, ValueError):
                for record in batch:
                    self._log._proxy_to_logger("msg", record)  # noqa: SLF001 - structlog's own door for wrappers
                self._stream.flush()


class _Lines:
    """The end of an output: bytes into its stream."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def msg(self, line: bytes) -> None:
        self._stream.write(line)


class _Sink:
    """The end of a plugin's logger: an event."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = emit


class _Handler(logging.Handler):
    """What libraries log. Only warnings and worse: below that aiosmtpd logs what clients say."""

    def __init__(self, emit: Callable[[Event], None]) -> None:
        super().__init__(logging.WARNING)
        self._emit = emit

    def emit(self, record: logging.LogRecord) -> None:
        """Make it an event; never raises, as a handler must not."""
        try:
            text = record.getMessage()
        except Exception as error:  # noqa: BLE001 - the caller's arguments do not fit its format
            text = f"{record.msg!r}: {error}"
        found = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        level = _LEVELS.get(record.levelname.lower(), "error")
        self._emit(LibraryLogged(logger=record.name, text=text, level=level, traceback=found))


def _open(output: OutputSettings) -> BinaryIO:
    if output.to in ("stdout", "stderr"):
        return open(1 if output.to == "stdout" else 2, "wb", closefd=False)
    try:
        descriptor = os.open(output.to, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise ConfigError(f"journal.outputs: cannot write {output.to}: {error.strerror}") from error
    return open(descriptor, "wb")  # noqa: PTH123 - a descriptor, not a path


def _record(_logger: Any, _name: str, event_dict: MutableMapping[str, Any]) -> Any:
    """Take the record as it is: structlog would put its `event` last."""
    return event_dict["event"]


def _json(_logger: Any, _name: str, record: MutableMapping[str, Any]) -> bytes:
    return dump(dict(record))


def _console(stream: BinaryIO) -> Processor:
    colour = stream.isatty()

    def render(_logger: Any, _name: str, record: MutableMapping[str, Any]) -> bytes:
        name = f"{record['event']:<20}"
        if colour:
            name = f"\x1b[{_COLOURS[record['severity']]}m{name}\x1b[0m"
        short = record.get("message", "")[-8:]
        short = short if short.isprintable() else "?"  # a plugin may name any text as its message
        line = f"{record['time'][11:23]} {name} {short:<8} {summary(dict(record))}"
        return line.rstrip().encode("utf-8", "backslashreplace") + b"\n"

    return render


def _qmail(concurrency: Callable[[], Concurrency]) -> Processor:
    lines = QmailLines(concurrency)

    def render(_logger: Any, _name: str, record: MutableMapping[str, Any]) -> bytes:
        return "".join(f"{line}\n" for line in lines.lines(dict(record))).encode("ascii")

    return render


#: format -> the processor that makes a record into bytes.
_FORMATS: dict[str, Callable[[BinaryIO], Processor]] = {"json": lambda _: _json, "console": _console}


def _to_event(
    _logger: Any, level: str, event_dict: MutableMapping[str, Any]
) -> tuple[tuple[Event], dict[str, Any]]:
    """Make a plugin's log line an event; what it logs may change later, so it is copied now."""
    lifted: dict[str, Any] = {name: str(event_dict.pop(name)) for name in _LIFTED if name in event_dict}
    logged = PluginLogged(
        plugin=event_dict.pop("plugin"),
        text=str(event_dict.pop("event")),
        level=_LEVELS.get(level, "info"),
        traceback=event_dict.pop("exception", ""),
        details=clean(dict(event_dict)),
        **lifted,
    )
    return (logged,), {}
