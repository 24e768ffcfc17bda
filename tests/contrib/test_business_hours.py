from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from gateway import Hold, Stages
from gateway.commands import assembly
from gateway.commands.group import mailward
from gateway.errors import ConfigError
from gateway.testing import transaction

YAML = 'business_hours: {senders: [News@example.org, "@billing.example"], zone: Europe/Berlin}'
#: How far the clock, which starts in November 2023, is from these moments.
MONDAY_NOON = datetime(2024, 1, 8, 12, tzinfo=UTC)


@pytest.fixture
def says(mailward_plugin, mailward_clock, contrib):
    plugin = mailward_plugin(contrib("business_hours"), YAML)

    async def ask(sender, at):
        mailward_clock.advance(at.timestamp() - mailward_clock.time())
        return await plugin.says(Stages.mail, transaction(sender))

    return ask


@pytest.mark.parametrize(
    ("at", "held"),
    [
        (MONDAY_NOON, False),
        (MONDAY_NOON.replace(hour=6, minute=59), True),
        (MONDAY_NOON.replace(hour=7), False),
        (MONDAY_NOON.replace(hour=16, minute=59), False),
        (MONDAY_NOON.replace(hour=17), True),
        (MONDAY_NOON.replace(day=7), True),
    ],
)
async def test_the_hours_are_those_of_the_office(says, at, held):
    assert await says("news@EXAMPLE.org", at) == (Hold("business_hours") if held else None)
    assert await says("bill@billing.example", at) == (Hold("business_hours") if held else None)
    assert await says("ann@example.org", at) is None
    assert await says("", at) is None


def test_a_zone_that_is_none_is_refused(mailward_plugin, contrib):
    with pytest.raises(ConfigError, match=r"business_hours.zone: should be a time zone"):
        mailward_plugin(contrib("business_hours"), "business_hours: {zone: Bonn}")


ALWAYS = "business_hours: {senders: [news@example.org], days: [mon, tue, wed, thu, fri, sat, sun], %s}"


def test_the_command_lets_go_what_waits_when_it_is_open(mailward_gateway, contrib, tmp_path, monkeypatch):
    monkeypatch.setattr(assembly, "leave_root", lambda _: None)
    closed = datetime.now(UTC).hour < 12
    hours = "opens: 23, closes: 24" if closed else "opens: 0, closes: 1"
    gateway = mailward_gateway(contrib("business_hours"), yaml=ALWAYS % hours)
    gateway.send("news@example.org", ["friend@elsewhere.example"])
    gateway.send("ann@example.org", ["friend@elsewhere.example"])
    gateway.wait_for("delivery.delivered")
    gateway.stop()

    def command(*arguments):
        result = CliRunner().invoke(mailward, ["--conf", str(tmp_path / "conf.d"), *arguments])
        assert result.exit_code == 0, result.output
        return result.output.strip()

    assert command("business-hours") == "closed: nothing is released"
    assert "held" in command("queue", "list")
    (tmp_path / "conf.d" / "20-test.yaml").write_text(ALWAYS % "opens: 0, closes: 24")
    assert command("business-hours") == "open: 1 released"
    assert "queued" in command("queue", "list")
    assert command("business-hours") == "open: 0 released"
