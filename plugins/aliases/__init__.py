"""aliases: names that stand for other addresses, as in /etc/aliases. Replaces the add-on fastforward.

Options: `names` (name to addresses), `file` (in the syntax of /etc/aliases, seen anew when it changes) and
`domains`. A name counts, in any case, at every local domain and at `domains`; `name@domain` there alone.
Inline wins over the file.

An address without `@` is one at the same domain; `:include:/path` stands for the addresses in that file. A
name among its own addresses, or with a backslash before it, is the account itself. Programs and files are
refused: they belong into a `.qmail` file, whose owner they run as.

A name that leads back to itself over others is `unknown` at RCPT, and fails with 5.4.6 behind it.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from gateway import (
    ConfigError,
    GatewayError,
    Outcome,
    Plugin,
    Problem,
    Recipient,
    Route,
    Section,
    Stages,
    controls,
    hookimpl,
    lower,
)

from .syntax import INCLUDE, Alias, checked, parse_aliases, parse_list

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gateway import Context, Delivery

#: What one name may stand for in the end, and how many names deep.
MOST, DEEPEST = 10_000, 50
#: Lists are read whole; a larger file is a mistake.
LARGEST_LIST = 4 * 1024 * 1024


class Settings(Section):
    """Names, and where they count."""

    #: Name to addresses: `info: [ann, bob@example.com, ":include:/srv/lists/info"]`.
    names: dict[str, list[str]] = {}
    #: A file in the syntax of /etc/aliases.
    file: str = ""
    #: Domains besides the local ones whose names these are.
    domains: list[Annotated[str, AfterValidator(lower)]] = []


@dataclass(frozen=True, slots=True)
class _Step:
    """A recipient on the way, and the addresses that have led to it."""

    recipient: Recipient
    path: tuple[str, ...] = ()
    #: It is the account itself, whatever names there are.
    last: bool = False


class Aliases(Plugin[Settings]):
    """Puts addresses in the place of a name."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._inline = {lower(name): self._written(name) for name in self.settings.names}
        self._lists: dict[str, controls.ControlFile[tuple[str, ...]]] = {}
        self._file = None
        if self.settings.file:
            path = self.site.base / self.settings.file
            self._file = controls.ControlFile(path, parse_aliases, "aliases.file", self.place("file"))

    @hookimpl
    async def rewrite(self, recipient: Recipient) -> list[Recipient] | None:
        """Follow a name to all that it stands for; raises when a list cannot be read, or is too long."""
        if self._find(recipient) is None:
            return None
        found: dict[str, Recipient] = {}
        followed: set[str] = set()
        waiting = [_Step(recipient)]
        while waiting:
            step = waiting.pop()
            one, key = step.recipient, lower(step.recipient.address)
            alias = None if step.last else self._find(one)
            if alias and (key in step.path or len(step.path) >= DEEPEST):
                one, alias = one.at(one.address, claimed=self.stem), None
            if not alias:
                found.setdefault(one.address, one)
            elif key not in followed:
                followed.add(key)
                waiting += reversed(await self._follow(step, alias))
            if len(waiting) + len(found) > MOST:
                raise GatewayError(f"{recipient.address} stands for more than {MOST} addresses")
        return list(found.values())

    @hookimpl
    def route(self, recipient: Recipient) -> Route | None:
        """Take what goes in circles, so that it ends here."""
        return Route(self.stem, "local", rule=recipient.rule) if recipient.claimed == self.stem else None

    @hookimpl
    def exists(self) -> bool:
        """Say that nobody is at the end of a circle."""
        return False

    @hookimpl
    def deliver(self, delivery: Delivery) -> list[Outcome]:
        """Fail: a name leads back to itself."""
        text = "this alias leads back to itself (#5.4.6)\n"
        return [Outcome(one.number, "failed", text, "5.4.6") for one in delivery.recipients]

    def _find(self, recipient: Recipient) -> Alias | None:
        address = recipient.address
        listed = not recipient.claimed and address.domain in self.settings.domains
        if recipient.claimed != "locals" and not listed:
            return None
        in_file = self._file.get() if self._file else {}
        keys = lower(address), lower(address.local_part)
        return next((found for key in keys if (found := self._inline.get(key) or in_file.get(key))), None)

    async def _follow(self, step: _Step, alias: Alias) -> list[_Step]:
        """Give the next steps: each address, after the plugins that came before this one."""
        came = step.recipient
        key = lower(came.address)
        steps: list[_Step] = []
        for target in self._with_lists(alias):
            text = target.removeprefix("\\")
            text = text if "@" in text else f"{text}@{came.address.rpartition('@')[2]}"
            rule = f"{alias.place}: {alias.name} -> {target}"
            for one in await self._rewritten(replace(came.at(text), claimed="")):
                last = target.startswith("\\") or lower(one.address) == key
                steps.append(_Step(replace(one, rule=rule), (*step.path, key), last))
        return steps

    async def _rewritten(self, recipient: Recipient) -> list[Recipient]:
        found = [recipient]
        for stem in (step.plugin for step in self.chain.steps["rewrite"]):
            if stem == self.stem:
                break
            answers = [await self.chain.ask_plugin(stem, Stages.rewrite, one) for one in found]
            if any(answer.failed for answer in answers):
                raise GatewayError(f"{stem} failed")
            values = [answer.value or one for answer, one in zip(answers, found, strict=True)]
            found = [one for value in values for one in (value if isinstance(value, list) else [value])]
        return found

    def _with_lists(self, alias: Alias) -> Iterator[str]:
        for target in alias.targets:
            if target.startswith(INCLUDE):
                yield from self._list(target.removeprefix(INCLUDE))
            else:
                yield target

    def _list(self, name: str) -> tuple[str, ...]:
        """Read a list as it is now. Raises OSError, GatewayError."""
        path = self.site.base / name
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_LIST:
            raise GatewayError(f"{path}: is no file, or larger than {LARGEST_LIST} bytes")
        if name not in self._lists:
            self._lists[name] = controls.ControlFile(path, parse_list, INCLUDE, None)
        return self._lists[name].get()

    def _written(self, name: str) -> Alias:
        """Read a name of the settings. Raises ConfigError."""
        targets = [
            checked(target, self.place("names", name, number))
            for number, target in enumerate(self.settings.names[name])
        ]
        place = self.place("names", name)
        if not targets:
            raise ConfigError(Problem(f"{name}: stands for nothing", place))
        return Alias(name, tuple(targets), str(place or self.stem))
