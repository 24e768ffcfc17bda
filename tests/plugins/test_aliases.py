"""aliases: what names stand for, where that ends, and what is refused."""

import pytest

from gateway import ConfigError, Recipient, Stages, resolve
from gateway.testing import Bench

CONF = """
locals: {domains: [local.example, other.example]}
percenthack: {domains: [local.example]}
virtual_domains: {domains: {virtual.example: abc}}
aliases:
  file: aliases
  domains: [listed.example]
  names:
    Team: [ann, Bob@far.example]
"""
FILE = """\
# who gets what
postmaster: ann
"John Doe": ann,
\tbob@far.example,
  # a comment between

   carl@virtual.example
Both: both, both@far.example
raw: \\team
chain: postmaster, raw
list: :include:{list}
sales@other.example: sue@far.example
"""


@pytest.fixture
def site(tmp_path):
    made = Bench(tmp_path)
    (tmp_path / "list").write_text("# members\none@far.example, two@far.example\n\nann\n")
    (tmp_path / "aliases").write_text(FILE.format(list=tmp_path / "list"))
    return made


async def targets(chain, address):
    return [routed.recipient.address for routed in await resolve(chain, Recipient.of(address))]


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("postmaster@local.example", ["ann@local.example"]),
        ("POSTMASTER@Other.Example", ["ann@Other.Example"]),
        ("team@local.example", ["ann@local.example", "Bob@far.example"]),
        ("john doe@local.example", ["ann@local.example", "bob@far.example", "abc-carl@virtual.example"]),
        ("both@local.example", ["both@local.example", "both@far.example"]),
        ("raw@local.example", ["team@local.example"]),
        ("chain@local.example", ["ann@local.example", "team@local.example"]),
        ("list@local.example", ["one@far.example", "two@far.example", "ann@local.example"]),
        ("sales@other.example", ["sue@far.example"]),
        ("sales@local.example", ["sales@local.example"]),
        ("team@listed.example", ["ann@listed.example", "Bob@far.example"]),
        ("nobody@local.example", ["nobody@local.example"]),
        ("team@far.example", ["team@far.example"]),
        ("abc-team@virtual.example", ["abc-abc-team@virtual.example"]),
        ("team%other.example@local.example", ["ann@other.example", "Bob@far.example"]),
    ],
)
async def test_what_names_stand_for(site, address, wanted):
    assert await targets(site.build(CONF).chain, address) == wanted


async def test_targets_go_where_their_domains_say_and_keep_what_the_sender_wrote(site):
    found = await resolve(site.build(CONF).chain, Recipient.of("John Doe@local.example"))
    assert [routed.route.plugin for routed in found] == ["dot_qmail", "remote", "dot_qmail"]
    assert {routed.recipient.original for routed in found} == {"John Doe@local.example"}


async def test_the_rule_names_file_and_line(site, tmp_path):
    chain = site.build(CONF).chain
    (found,) = await resolve(chain, Recipient.of("postmaster@local.example"))
    assert found.recipient.rule == f"{tmp_path}/aliases:2: postmaster -> ann"
    found = (await resolve(chain, Recipient.of("team@local.example")))[0]
    assert found.recipient.rule == "conf.d/site.yaml:9: Team -> ann"


async def test_edits_of_the_file_and_of_a_list_count_at_once(site, tmp_path):
    chain = site.build(CONF).chain
    assert await targets(chain, "postmaster@local.example") == ["ann@local.example"]
    (tmp_path / "aliases").write_text(f"postmaster: zoe, l\nl: :include:{tmp_path}/list\n")
    assert (await targets(chain, "postmaster@local.example"))[0] == "zoe@local.example"
    (tmp_path / "list").write_text("new@far.example\n")
    assert (await targets(chain, "postmaster@local.example"))[1:] == ["new@far.example"]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("a: |/usr/bin/prog", "program: write it into a .qmail file"),
        ('a: "|/usr/bin/prog -x, y"', "program: write it into a .qmail file"),
        ("a: ann, /var/mail/x", "file: write it into a .qmail file"),
        ("a: :fail: gone", "comma or a quote is missing"),
        ("a: :blackhole:", "only :include:/path is known"),
        ("a: ann bob", "comma or a quote is missing"),
        ('a: "ann', "comma or a quote is missing"),
        ("a:", "stands for nothing"),
        ("a ann", "should be `name: address"),
        ("  indented", "should be `name: address"),
        ("x: y\nX: z", "stands in"),
        ("a: x\x01y", "no address"),
        ("a: " + "x" * 1000, "no address"),
    ],
)
def test_mistakes_name_file_and_line(site, tmp_path, line, text):
    (tmp_path / "aliases").write_text(f"# first\n{line}\n")
    number = 3 if "\n" in line else 2
    with pytest.raises(ConfigError, match=text) as found:
        site.build(CONF)
    assert str(found.value).startswith(f"{tmp_path}/aliases:{number}: ")


@pytest.mark.parametrize("target", ["|prog", "/dev/null", ""])
def test_mistakes_inline_name_file_and_line(site, target):
    with pytest.raises(ConfigError, match=r"site\.yaml:10: "):
        site.build(CONF + f'    bad: ["{target}"]\n')


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("|prog\n"),
        lambda path: path.write_text(":include:/etc/passwd\n"),
        lambda path: path.write_text("".join(f"u{n}@far.example\n" for n in range(10_001))),
        lambda path: path.write_bytes(b"#" * (4 * 1024 * 1024 + 1)),
        lambda path: (path.unlink(), path.mkdir()),
    ],
)
async def test_a_list_that_cannot_be_used_is_a_doubt_for_its_name_alone(site, tmp_path, make):
    chain = site.build(CONF).chain
    make(tmp_path / "list")
    (routed,) = await resolve(chain, Recipient.of("list@local.example"))
    assert routed.failed
    assert [event.plugin for event in site.told("plugin.failed")] == ["aliases"]
    assert await targets(chain, "postmaster@local.example") == ["ann@local.example"]


async def test_a_broken_edit_is_a_doubt_until_it_is_mended(site, tmp_path):
    chain = site.build(CONF).chain
    (tmp_path / "aliases").write_text("a: |prog\n")
    (routed,) = await resolve(chain, Recipient.of("ann@local.example"))
    assert routed.failed
    assert f"{tmp_path}/aliases:1: |prog is a program" in site.told("plugin.failed")[-1].traceback
    (tmp_path / "aliases").write_text("a: ann\n")
    assert await targets(chain, "a@local.example") == ["ann@local.example"]


async def test_a_circle_ends_here_as_unknown_and_other_branches_go_on(site, tmp_path):
    (tmp_path / "aliases").write_text("a: b, out@far.example\nb: c\nc: a\n")
    chain = site.build(CONF).chain
    circle, out = await resolve(chain, Recipient.of("a@local.example"))
    assert (circle.recipient.address, circle.route.plugin) == ("a@local.example", "aliases")
    assert (await chain.ask_plugin("aliases", Stages.exists, circle.recipient)).value is False
    assert out.recipient.address == "out@far.example"


async def test_names_that_double_at_every_step_are_followed_once(site, tmp_path):
    lines = [f"n{i}: n{i + 1}, n{i + 1}@other.example, x{i}@far.example" for i in range(45)]
    (tmp_path / "aliases").write_text("\n".join(lines))
    found = await targets(site.build(CONF).chain, "n0@local.example")
    assert len(found) == len(set(found)) == 47


async def test_before_virtual_domains_names_of_a_virtual_domain_count(site):
    conf = CONF.replace("aliases:\n", "aliases:\n  before: [virtual_domains]\n").replace(
        "listed.example", "virtual.example"
    )
    chain = site.build(conf).chain
    assert await targets(chain, "team@virtual.example") == ["abc-ann@virtual.example", "Bob@far.example"]
    assert await targets(chain, "zed@virtual.example") == ["abc-zed@virtual.example"]


async def test_without_a_section_there_are_no_aliases(site):
    assert "aliases" not in site.build("locals: {domains: [local.example]}").plugins
