import pytest

from gateway import Stages
from gateway.errors import ConfigError
from gateway.testing import session

RANGES = """\
# first, last, country
192.0.2.0,192.0.2.127,XA
203.0.113.0,203.0.113.255,xb
2001:db8::,2001:db8:0:ffff:ffff:ffff:ffff:ffff,XA
"""
YAML = "country_block: {file: ranges.csv, refuse: [xa]}"


@pytest.fixture
def plugin(mailward_plugin, contrib, tmp_path):
    (tmp_path / "ranges.csv").write_text(RANGES)
    return mailward_plugin(contrib("country_block"), YAML)


@pytest.mark.parametrize(
    ("ip", "refused"),
    [
        ("192.0.2.0", True),
        ("192.0.2.127", True),
        ("192.0.2.128", False),
        ("192.0.1.255", False),
        ("::ffff:192.0.2.1", True),
        ("203.0.113.7", False),
        ("2001:db8::7", True),
        ("2001:db8:1::7", False),
        ("::1", False),
        ("", False),
    ],
)
async def test_a_client_is_refused_by_its_country(plugin, ip, refused):
    answer = await plugin.says(Stages.connect, session(ip))
    assert (answer is not None) is refused
    if refused:
        assert (answer.reason, answer.rule) == ("country", "XA")


async def test_a_change_of_the_file_counts(plugin, tmp_path):
    (tmp_path / "ranges.csv").write_text("198.51.100.0,198.51.100.255,XA\n")
    assert await plugin.says(Stages.connect, session("192.0.2.1")) is None
    assert await plugin.says(Stages.connect, session("198.51.100.1")) is not None


async def test_a_file_that_breaks_later_makes_clients_wait(plugin, tmp_path):
    (tmp_path / "ranges.csv").unlink()
    answer = await plugin.chain.ask(Stages.connect, session("192.0.2.1"))
    assert answer.failed
    assert answer.value.status == "4.3.0"


@pytest.mark.parametrize("line", ["192.0.2.0,192.0.2.255", "a,b,XA", "192.0.2.0/24,XA,"])
def test_a_wrong_line_is_named(mailward_plugin, contrib, tmp_path, line):
    (tmp_path / "ranges.csv").write_text(f"192.0.2.0,192.0.2.255,XA\n{line}\n")
    with pytest.raises(ConfigError, match=r"ranges.csv:2: write the first address"):
        mailward_plugin(contrib("country_block"), YAML)
