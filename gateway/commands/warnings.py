"""What `mailward check` warns of: settings that are valid and still do not do what was meant."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway import controls
from gateway.address import Address, lower
from gateway.commands.walk import STRANGER
from gateway.decision import Accept
from gateway.envelope import Recipient, Session, Transaction, new_id
from gateway.errors import Place, Problem
from gateway.hookspecs import Stages
from gateway.routing import resolve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from gateway.commands.assembly import Assembly
    from gateway.envelope import Account

#: A local part that no `.qmail` file names, so that only a catch-all takes it.
PROBE = "mailward-check"
UNKNOWN = "an unknown account: add it to accounts.virtual, or a user"


async def warnings(assembly: Assembly) -> list[Problem]:
    """Give all warnings, each with its place where it has one."""
    found = [Problem(line) for line in assembly.logged]
    found += _whole(assembly)
    homes: dict[str, bool] = {}
    for key, (account, place) in virtual_domains(assembly).items():
        if account:
            found += [Problem(text, place) async for text in _virtual(assembly, key, account, homes)]
    found += [one async for one in _postmaster(assembly)]
    return found


def _whole(assembly: Assembly) -> Iterator[Problem]:
    """Warn of a gateway that takes no mail at all."""
    configuration = assembly.configuration
    if not configuration.settings.listeners:
        yield Problem("listeners: there is none, so no mail comes in")
    elif not (
        _given(assembly, "relay_control", "clients", "rules")
        or _given(assembly, "rcpthosts", "domains", "file", "cdb")
    ):
        text = "no domain in rcpthosts and no client in relay_control: every recipient will be refused"
        yield Problem(text, configuration.tree.place("listeners"))


def _given(assembly: Assembly, stem: str, *keys: str) -> bool:
    """Whether a plugin runs with any of these settings; a site's own may have others, and is trusted."""
    plugin = assembly.generation.plugins.get(stem)
    if plugin is None:
        return False
    return any(getattr(plugin.settings, key, True) for key in keys)


def virtual_domains(assembly: Assembly) -> dict[str, tuple[str, Place | None]]:
    """Give key -> (account, place) of every virtual domain, those of the control file too."""
    place = assembly.configuration.tree.place
    file = _setting(assembly, "virtual_domains", "file")
    path = assembly.configuration.tree.base / (file or "")
    lines = controls.colon_map(controls.read_list(path) or ()) if file else {}
    found: dict[str, tuple[str, Place | None]] = {
        key: (account, Place(str(path), number)) for key, (number, account) in lines.items()
    }
    return found | {
        lower(key): (account, place("virtual_domains", "domains", key))
        for key, account in (_setting(assembly, "virtual_domains", "domains") or {}).items()
    }


def _setting(assembly: Assembly, stem: str, key: str) -> Any:
    plugin = assembly.generation.plugins.get(stem)
    return getattr(plugin.settings, key, None) if plugin else None


async def _virtual(assembly: Assembly, key: str, owner: str, homes: dict[str, bool]) -> AsyncIterator[str]:
    """Warn of one virtual domain or address by what the chain says of mail for it."""
    shown = key or "(everything else)"
    domain, address = key.rpartition("@")[2], address_in(key)
    for text in await _refused(assembly, address) if key else ():
        yield f"{shown} is virtual but {text}"
    if domain in local_domains(assembly):
        yield f"{shown} is both local and virtual: it counts as local, and {owner} gets none of its mail"
        return
    account, why = await account_of(assembly, owner, address)
    if account is None:
        doubt = f"whose account cannot be looked up: {why}"
        yield f"{shown} belongs to {owner}, {doubt if why else UNKNOWN}"
        return
    texts = () if account.home in homes else tuple(unsafe(account))
    homes.setdefault(account.home, not texts)
    for text in texts:
        yield f"{shown} belongs to {owner}, whose home {text}"
    if not homes[account.home]:
        return
    doubt, taken = await _exists(assembly, address)
    if doubt and account.uid == _own(assembly):
        yield f"{shown} belongs to {owner}, and whether its mail is taken cannot be told: {doubt}"
    if not taken and not _has_files(account, key):
        yield f"{shown} belongs to {owner}, in whose home {account.home} no .qmail file would take its mail"


def address_in(key: str) -> str:
    """Give an address that a key of `virtual_domains` is for; of a whole domain, a catch-all's."""
    return key if "@" in key else f"{PROBE}@{PROBE}{key}" if key.startswith(".") else f"{PROBE}@{key}"


async def account_of(assembly: Assembly, owner: str, address: str) -> tuple[Account | None, str]:
    """Give the account of a virtual domain's owner, or why it cannot be looked up; neither if unknown."""
    local, _, at = f"{owner}-{address}".rpartition("@")
    answer = await assembly.generation.chain.ask(Stages.account, local, at)
    account: Account | None = answer.value
    if answer.failed:
        return None, assembly.failure(answer.plugin)
    # Whoever gets all that nobody has (`alias`) has all of it as extension, the owner's name too.
    return (None if account is None or account.ext.endswith(local) else account), ""


async def _refused(assembly: Assembly, address: str) -> Sequence[str]:
    """Say why a stranger may not send there; nothing when he may."""
    session = Session(new_id(), "command", "smtp", STRANGER)
    transaction = Transaction(new_id(), Address(""), "smtp", session)
    answer = await assembly.generation.chain.ask(Stages.relay, transaction, Recipient.of(address))
    if answer.failed:
        why = assembly.failure(answer.plugin)
        return [f"{answer.plugin} cannot tell whether its mail from outside is taken: {why}"]
    if isinstance(answer.value, Accept):
        return []
    return ["not in rcpthosts: its mail from outside will be refused"]


def local_domains(assembly: Assembly) -> dict[str, Place | None]:
    """Give every local domain with its place, those of the control file too."""
    place = assembly.configuration.tree.place
    file = _setting(assembly, "locals", "file")
    path = assembly.configuration.tree.base / (file or "")
    lines = controls.read_list(path) or () if file else ()
    found: dict[str, Place | None] = {lower(line): Place(str(path), number) for number, line in lines}
    inline = enumerate(_setting(assembly, "locals", "domains") or ())
    return found | {lower(name): place("locals", "domains", number) for number, name in inline}


def unsafe(account: Account) -> Iterator[str]:
    """Say why nothing can be delivered into a home."""
    try:
        status = Path(account.home).stat()
    except OSError as error:
        yield f"{account.home} cannot be used: {error.strerror}"
        return
    if not stat.S_ISDIR(status.st_mode):
        yield f"{account.home} is no folder"
    if status.st_mode & stat.S_IWOTH:
        yield f"{account.home} is writable for everybody: run chmod o-w"
    if status.st_uid != account.uid:
        yield f"{account.home} belongs to uid {status.st_uid}, not to the account's uid {account.uid}"


def _own(assembly: Assembly) -> int:
    """Give whom the gateway is; to other accounts root may have to deliver, and sees what we may not."""
    try:
        return pwd.getpwnam(assembly.configuration.settings.gateway.user).pw_uid
    except KeyError:
        return os.geteuid()


async def _exists(assembly: Assembly, address: str) -> tuple[str, bool]:
    """Say why nobody can tell whether somebody takes it, and whether somebody does; a doubt counts as yes."""
    chain = assembly.generation.chain
    for routed in await resolve(chain, Recipient.of(address)):
        if routed.failed or routed.route is None:
            return "", True
        answer = await chain.ask_plugin(routed.route.plugin, Stages.exists, routed.recipient)
        if answer.failed:
            return assembly.failure(answer.plugin), True
        if answer.value is not False:
            return "", True
    return "", False


def _has_files(account: Account, key: str) -> bool:
    """Whether any `.qmail` file takes some addresses of a whole domain."""
    if "@" in key:
        return False
    before = account.ext.removesuffix(PROBE).replace(".", ":").lower()
    return any(Path(account.home).glob(f".qmail{account.dash}{before}*"))


async def _postmaster(assembly: Assembly) -> AsyncIterator[Problem]:
    configuration = assembly.configuration
    address = configuration.settings.gateway.postmaster
    if not configuration.settings.gateway.state.is_dir():
        return  # before the first start plugins have not made their mailboxes
    _, taken = await _exists(assembly, address)
    if not taken:
        place = configuration.tree.place("gateway", "postmaster")
        yield Problem(f"gateway.postmaster: {address} leads nowhere: nobody takes mail for it", place)
