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
    "attachment_block": "attachment_block: {names: [.exe]}",
    "auth_checkpassword": "auth_checkpassword: {program: [/bin/false]}",
    "auth_dovecot": "auth_dovecot: {socket: /nonexistent}",
    "auth_file": "auth_file: {}",
    "badmailfrom": "badmailfrom: {senders: [sender@example.com]}",
    "bounces": "",
    "business_hours": "business_hours: {senders: [sender@example.com]}",
    "country_block": "country_block: {file: ranges.csv, refuse: [XA]}",
    "footer": 'footer: {senders: [sender@example.com, "@", "@sender.example"], text: Example Org}',
    "locals": "locals: {domains: [example.org]}",
    "percenthack": "percenthack: {domains: [example.org]}",
    "rcpthosts": "rcpthosts: {domains: [example.org]}",
    "postgres_queue": "postgres_queue: {database: 'host=/nonexistent'}",
    "recipient_rewrite": "recipient_rewrite: {file: table.csv, before: [locals]}",
    "relay_control": "relay_control: {clients: [192.0.2.0/24, .example.com]}",
    "score_tag": "score_tag: {tag_at: 0, fields: [Subject, X]}",
    "send_quota": "send_quota: {clients: [192.0.2.0/24]}",
    "virtual_domains": "virtual_domains: {domains: {example.org: abc}}",
}


#: What stands in files.
FILES = {
    "passwords": "",
    "ranges.csv": "192.0.2.0,192.0.2.255,XA\n",
    "table.csv": "info@example.org,ann@example.com\n@b,@c\n",
}


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
