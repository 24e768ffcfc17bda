"""A gateway that must not start says why, with exit code 1, and touches nothing."""

import asyncio
import os

import pytest
from traffic import Load, Sink, text

PAGE = 4096


async def test_a_state_that_another_gateway_uses_is_refused(gateway):
    await gateway.start()
    used, gateway.port = gateway.port, gateway.port + 1
    gateway.configure()
    code, said = gateway.refused()
    assert code == 1
    (status,) = gateway.ask("status")
    assert said.strip().endswith(
        f"gateway.state: another gateway (pid {status['pid']}) uses {gateway.state}: "
        "stop it, or give this one a state of its own"
    )
    await Load(used, 1).send("still-1", ["box@example.org"])


async def test_a_port_that_is_taken_is_named_with_its_listener(gateway):
    await gateway.start()
    code, said = gateway.refused()
    assert code == 1
    assert "listener mx" in said
    assert str(gateway.port) in said


def header(folder):
    _write(folder / "queue.db", 0)


def root(folder):
    _write(folder / "queue.db", PAGE)


def leaf(folder):
    raw = (folder / "queue.db").read_bytes()
    _write(folder / "queue.db", raw.rindex(b"kept-20@") // PAGE * PAGE)


def cut(folder):
    path = folder / "queue.db"
    os.truncate(path, path.stat().st_size * 4 // 5)


def log(folder):
    _write(folder / "queue.db-wal", 40 * PAGE)


def _write(path, where):
    with path.open("r+b") as file:
        file.seek(where)
        file.write(os.urandom(PAGE))


@pytest.mark.parametrize(
    ("damage", "least"),
    [
        (leaf, 25),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in [(header, 30), (root, 30), (cut, 15), (log, 28)]
        ),
    ],
)
async def test_the_lines_that_refuse_a_damaged_shard_bring_its_mail_back(gateway, damage, least):
    """Each line is typed as it is printed, by either of those whom it names."""
    as_root = damage is header
    # All of the mail in one shard.
    (gateway.base / "conf.d" / "one.yaml").write_text("gateway: {workers: 1}\n")
    await gateway.start()
    load = Load(gateway.port, 1)
    for number in range(30):
        await load.send(f"kept-{number}", ["far@example.net"], size=3000)
    if damage is log:
        await gateway.kill()
    else:
        assert await gateway.stop() == 0
    shard = gateway.state / "queue" / "shard-0"
    damage(shard)
    before = {path: path.read_bytes() for path in shard.glob("queue.db*") if path.suffix != ".db-shm"}
    code, said = gateway.refused()
    assert code == 1
    assert f"{shard / 'queue.db'} is damaged" in said
    assert "Traceback" not in said
    assert {path: path.read_bytes() for path in before} == before
    first, _, then = said.partition("Then start the gateway")
    move, salvage = typed(first)
    assert gateway.typed(move, root=as_root) == (0, "")
    code, told = gateway.typed(salvage, root=as_root)
    assert code == (damage not in (header, root)), told
    sink = Sink()
    server = await asyncio.start_server(sink.serve, "127.0.0.1", 0)
    gateway.configure(sink=server.sockets[0].getsockname()[1])
    await gateway.start()
    (restore,) = typed(then)
    code, told = await asyncio.to_thread(gateway.typed, restore, root=as_root)
    assert code == 0, told
    again = f"mailward queue retry --all --conf {gateway.base / 'conf.d'}"
    assert (await asyncio.to_thread(gateway.typed, again))[0] == 0
    await gateway.empty()
    assert len(sink.copies) >= least
    for token, copies in sink.copies.items():
        assert [content.partition(b"Subject:")[2] for _, content in copies] == [wanted(token)]
    server.close()


def typed(text):
    """Give the commands in a text: they stand behind two blanks."""
    return [line for line in text.splitlines() if line.startswith("  ")]


def wanted(token):
    """Give what follows the first Subject of a message as it was sent."""
    return (text(token) + b"more\n" * 600).partition(b"Subject:")[2]
