"""contrib's accounts_sql on SQLite and on a real PostgreSQL server that this test starts."""

import shutil
import socket
import sqlite3
import time
from pathlib import Path

import pytest
from postgres_server import SECRET

from gateway import Recipient, Stages, resolve
from gateway.testing import Bench

PLUGIN = Path(__file__).parents[2] / "contrib" / "plugins" / "accounts_sql.py"
TABLE = PLUGIN.read_text().partition("shape says")[2]
TABLE = TABLE[TABLE.index("CREATE") : TABLE.index(");") + 2]
ROWS = "INSERT INTO accounts VALUES ('abc', 1234, 1235, '/srv/abc'), ('abc-shop', 1236, 1237, '/srv/shop')"


@pytest.fixture(scope="module")
def server(postgres_server):
    postgres_server.execute(TABLE, ROWS)
    yield postgres_server
    postgres_server.execute("DROP TABLE accounts")


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    shutil.copy(PLUGIN, made.folder)
    return made


@pytest.fixture(params=["sqlite", "postgres"])
def chain(bench, request, tmp_path):
    """Give the chain with the plugin, for each of the two."""
    if request.param == "postgres":
        url = request.getfixturevalue("server").url
        (tmp_path / "secret").write_text(f"{SECRET}\n")
        return bench.build(f"accounts_sql: {{database: '{url}', password_file: secret}}\n").chain
    sqlite(tmp_path / "accounts.sqlite", TABLE, ROWS)
    return bench.build("accounts_sql: {database: accounts.sqlite}\n").chain


def sqlite(path, *statements):
    with sqlite3.connect(path) as connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


async def account(chain, local):
    answer = await chain.ask(Stages.account, local, "example.org")
    return answer.value


@pytest.mark.parametrize(
    ("local", "wanted"),
    [
        ("abc", ("abc", 1234, 1235, "/srv/abc", "", "")),
        ("ABC-Info-x", ("abc", 1234, 1235, "/srv/abc", "-", "Info-x")),
        ("abc-", ("abc", 1234, 1235, "/srv/abc", "-", "")),
        ("abc-shop", ("abc-shop", 1236, 1237, "/srv/shop", "", "")),
        ("abc-shop-info", ("abc-shop", 1236, 1237, "/srv/shop", "-", "info")),
        ("abc-shopinfo", ("abc", 1234, 1235, "/srv/abc", "-", "shopinfo")),
        ("abcd", None),
        ("-abc", None),
        ("x' OR 1=1 --", None),
        ("abc\0", None),
        ("\udcff", None),
        ("abc-\udcff\0", ("abc", 1234, 1235, "/srv/abc", "-", "\udcff\0")),
        ("-" * 899, None),
        ("%", None),
    ],
)
async def test_the_longest_name_has_a_local_part(chain, local, wanted):
    found = await account(chain, local)
    if wanted is None:
        assert found is None
        return
    assert (found.user, found.uid, found.gid, found.home, found.dash, found.ext) == wanted
    assert found.rule == f"accounts_sql: {found.user}"


async def test_it_is_asked_before_accounts_which_keeps_the_rest(bench, tmp_path):
    sqlite(tmp_path / "accounts.sqlite", TABLE, ROWS)
    for name in ("abc", "xyz"):
        (tmp_path / name).mkdir()
    conf = f"""
accounts_sql: {{database: accounts.sqlite}}
accounts: {{virtual: {{abc: {{home: {tmp_path}/abc}}, xyz: {{home: {tmp_path}/xyz}}}}}}
"""
    made = bench.build(conf)
    assert made.order["account"] == ["accounts_sql", "accounts"]
    assert (await account(made.chain, "abc")).home == "/srv/abc"
    assert (await account(made.chain, "xyz")).home == f"{tmp_path}/xyz"
    alone = bench.build(conf.replace("accounts: {", "accounts: {enabled: false, ")).chain
    assert await account(alone, "xyz") is None


async def test_mail_reaches_the_files_of_a_home(bench, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".qmail-default").write_text("&x@example.com\n")
    sqlite(tmp_path / "a.sqlite", TABLE, f"INSERT INTO accounts VALUES ('abc', 1, 1, '{home}')")
    conf = "virtual_domains: {domains: {example.org: abc}}\naccounts_sql: {database: a.sqlite}\n"
    chain = bench.build(conf).chain
    (routed,) = await resolve(chain, Recipient.of("any@example.org"))
    assert (await chain.ask_plugin("dot_qmail", Stages.exists, routed.recipient)).value is True


@pytest.mark.parametrize(
    "row", ["'abc', 0, 1, '/srv'", "'abc', 1, 1, 'srv'", "'abc', 'x', 1, '/srv'", "'abc', -1, 1, '/srv'"]
)
async def test_a_row_that_nothing_may_be_delivered_to_is_a_doubt(bench, tmp_path, row):
    sqlite(tmp_path / "a.sqlite", TABLE, f"INSERT INTO accounts VALUES ({row})")
    chain = bench.build("accounts_sql: {database: a.sqlite}\n").chain
    answer = await chain.ask(Stages.account, "abc", "example.org")
    assert answer.failed
    assert answer.value is None


@pytest.mark.parametrize(
    "make",
    [
        lambda _: None,
        lambda path: path.write_bytes(b"no database " * 100),
        lambda path: sqlite(path, "CREATE TABLE other (x)"),
        lambda path: sqlite(
            path,
            "CREATE VIEW accounts AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
            " SELECT 'abc' AS name, 1 AS uid, 1 AS gid, '/srv' AS home FROM n WHERE x < 0",
        ),
    ],
    ids=["missing", "damaged", "no table", "endless"],
)
async def test_a_file_that_gives_no_answer_is_a_doubt_in_bounded_time(bench, tmp_path, make):
    make(tmp_path / "a.sqlite")
    chain = bench.build("accounts_sql: {database: a.sqlite, timeout: 0.3s}\n").chain
    begin = time.monotonic()
    assert (await chain.ask(Stages.account, "abc", "example.org")).failed
    assert time.monotonic() - begin < 5
    assert [event.plugin for event in bench.told("plugin.failed")] == ["accounts_sql"]


async def test_a_locked_file_is_waited_for_and_then_a_doubt(bench, tmp_path):
    sqlite(tmp_path / "a.sqlite", TABLE, ROWS)
    chain = bench.build("accounts_sql: {database: a.sqlite, timeout: 0.3s}\n").chain
    other = sqlite3.connect(tmp_path / "a.sqlite", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    assert (await chain.ask(Stages.account, "abc", "example.org")).failed
    other.execute("COMMIT")
    other.close()
    assert (await account(chain, "abc")).home == "/srv/abc"


async def test_a_server_that_restarts_is_found_again_and_doubted_meanwhile(bench, server):
    chain = bench.build(f"accounts_sql: {{database: '{server.url}', password: '{SECRET}'}}\n").chain
    assert (await account(chain, "abc")).home == "/srv/abc"
    server.stop()
    assert (await chain.ask(Stages.account, "abc", "example.org")).failed
    server.start()
    assert (await account(chain, "abc")).home == "/srv/abc"
    server.stop()
    server.start()
    assert (await account(chain, "abc")).home == "/srv/abc"
    assert SECRET not in "".join(event.traceback for event in bench.told("plugin.failed"))


async def test_a_change_in_the_server_counts_at_once(bench, server):
    chain = bench.build(f"accounts_sql: {{database: '{server.url}', password: '{SECRET}'}}\n").chain
    assert await account(chain, "fresh") is None
    server.execute("INSERT INTO accounts VALUES ('fresh', 9, 9, '/srv/fresh')")
    assert (await account(chain, "fresh")).home == "/srv/fresh"
    server.execute("DELETE FROM accounts WHERE name = 'fresh'")
    assert await account(chain, "fresh") is None


async def test_a_server_that_is_too_slow_is_a_doubt_and_the_next_question_is_asked_anew(bench, server):
    conf = f"accounts_sql: {{database: '{server.url}', password: '{SECRET}', timeout: 0.4s}}\n"
    chain = bench.build(conf).chain
    assert (await account(chain, "abc")).home == "/srv/abc"
    server.execute("ALTER TABLE accounts RENAME TO real")
    server.execute("CREATE VIEW accounts AS SELECT real.* FROM real, pg_sleep(30)")
    try:
        begin = time.monotonic()
        assert (await chain.ask(Stages.account, "abc", "example.org")).failed
        assert time.monotonic() - begin < 8
    finally:
        server.execute("DROP VIEW accounts", "ALTER TABLE real RENAME TO accounts")
    assert (await account(chain, "abc")).home == "/srv/abc"


async def test_a_server_that_takes_connections_and_says_nothing_is_a_doubt(bench):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://mail@127.0.0.1:{silent.getsockname()[1]}/postgres"
        chain = bench.build(f"accounts_sql: {{database: '{url}', timeout: 0.3s}}\n").chain
        begin = time.monotonic()
        assert (await chain.ask(Stages.account, "abc", "example.org")).failed
        assert time.monotonic() - begin < 8
