"""A gateway that must not start says why, with exit code 1, and touches nothing."""

import pytest
from traffic import Load


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


@pytest.mark.parametrize("where", [0, 4096])
async def test_a_damaged_shard_is_refused_with_the_way_to_salvage(gateway, where):
    await gateway.start()
    for number in range(30):
        await Load(gateway.port, 1).send(f"kept-{number}", ["far@example.net"])
    assert await gateway.stop() == 0
    shard = gateway.state / "queue" / "shard-0" / "queue.db"
    with shard.open("r+b") as file:
        file.seek(where)
        file.write(b"\xff" * 4096)
    damaged = shard.read_bytes()
    code, said = gateway.refused()
    assert code == 1
    assert f"{shard} is damaged" in said
    assert ".recover" in said
    assert "Traceback" not in said
    assert shard.read_bytes() == damaged
