"""Every bundled plugin, and every one in contrib, keeps to the contract of a plugin."""

import sqlite3
from pathlib import Path

import pytest

from gateway.testing import contract

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(
    path
    for folder in (ROOT / "plugins", ROOT / "contrib" / "plugins")
    for path in folder.iterdir()
    if path.suffix == ".py" or (path / "__init__.py").is_file()
)
#: Section of a plugin that says nothing, or nothing of interest, without one.
SETTINGS = {
    "accounts": "accounts: {system: true}",
    "accounts_sql": "accounts_sql: {database: accounts.sqlite}",
    "aliases": "aliases: {names: {info: [ann@example.com]}}\nlocals: {domains: [example.org]}",
    "badmailfrom": "badmailfrom: {senders: [sender@example.com]}",
    "bounces": "",
    "locals": "locals: {domains: [example.org]}",
    "percenthack": "percenthack: {domains: [example.org]}",
    "rcpthosts": "rcpthosts: {domains: [example.org]}",
    "relay_control": "relay_control: {clients: [192.0.2.0/24, .example.com]}",
    "virtual_domains": "virtual_domains: {domains: {example.org: abc}}",
}


#: What stands in files.
FILES = {}


@pytest.fixture
def base(tmp_path):
    with sqlite3.connect(tmp_path / "accounts.sqlite") as database:
        database.execute("CREATE TABLE accounts (name, uid, gid, home)")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("path", PLUGINS, ids=lambda path: path.stem)
async def test_contract(path, base):
    await contract(path, SETTINGS.get(path.stem, ""), base)
