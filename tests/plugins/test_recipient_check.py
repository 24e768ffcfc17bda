import os

import pytest

from gateway import Defer, Recipient, Reject, Stages
from gateway.testing import Bench, transaction

CONF = """
virtual_domains: {domains: {example.org: abc, example.net: nobody}}
accounts: {virtual: {abc: {home: abc, uid: 5, gid: 5}, gone: {home: gone}}}
"""


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "abc"
    home.mkdir(mode=0o755)
    (home / ".qmail-info").write_text("./Maildir/\n")
    (home / ".qmail-info").chmod(0o644)
    return home


@pytest.fixture
def ask(tmp_path, home):
    assert home.is_dir()
    bench = Bench(tmp_path)

    async def asked(address, conf=CONF, **plugins):
        chain = bench.chain(conf, **plugins)
        await chain.life("accounts", Stages.startup)
        if os.geteuid() == 0:
            os.chown(tmp_path / "state/alias", 5, 5)
        return (await chain.ask(Stages.rcpt, transaction(), Recipient.of(address))).value

    return asked


async def test_known_recipients_pass(ask):
    assert await ask("INFO@example.org") is None


@pytest.mark.parametrize("address", ["other@example.org", "info@example.net", "u@mail.example.org"])
async def test_unknown_recipients_are_refused(ask, address):
    assert await ask(address) == Reject("5.1.1", "no such user here", reason="unknown_recipient")


async def test_a_remote_recipient_passes(ask):
    assert await ask("u@elsewhere.example") is None


async def test_postmaster_of_any_domain_is_known(ask):
    assert await ask("Postmaster@example.net") is None
    assert await ask("postmaster") is None


async def test_the_gateways_own_postmaster_has_a_mailbox_out_of_the_box(ask, tmp_path):
    assert await ask("postmaster@mail.example.org") is None
    assert await ask("mailer-daemon@mail.example.org") is None
    assert (tmp_path / "state/alias/.qmail-postmaster").read_text() == "./Maildir/\n"


async def test_mail_for_the_postmaster_goes_to_whom_the_configuration_names(tmp_path):
    """Also where the gateway ran before it was told; a file of somebody's own stays."""
    bench, mailbox = Bench(tmp_path), tmp_path / "state/alias/.qmail-postmaster"
    await bench.chain("").life("accounts", Stages.startup)
    assert mailbox.exists()
    elsewhere = "gateway: {postmaster: admin@elsewhere.example}\n"
    await bench.chain(elsewhere).life("accounts", Stages.startup)
    assert not mailbox.exists()
    mailbox.write_bytes(b"# f\xfcr alle\n./other/\n")
    await bench.chain(elsewhere).life("accounts", Stages.startup)
    assert mailbox.read_bytes() == b"# f\xfcr alle\n./other/\n"


async def test_a_doubt_is_a_defer(ask, home):
    home.chmod(0o757)
    answer = await ask("info@example.org")
    assert isinstance(answer, Defer)
    assert answer.reason == "recipient_doubt"


async def test_a_home_that_cannot_be_looked_at_is_a_doubt(ask):
    assert isinstance(await ask("u@example.org", CONF.replace("org: abc", "org: gone")), Defer)


async def test_a_plugin_that_fails_on_the_way_is_a_doubt(ask):
    broken = """
from gateway import Plugin, hookimpl

class Broken(Plugin):
    @hookimpl
    def rewrite(self, recipient):
        raise RuntimeError("down")
"""
    assert isinstance(await ask("info@example.org", broken=broken), Defer)


async def test_the_route_may_depend_on_the_sender(ask):
    by_sender = """
from gateway import Plugin, Route, hookimpl

class BySender(Plugin):
    @hookimpl
    def route(self, sender):
        return Route("by_sender", "remote") if sender == "sender@example.com" else None

    @hookimpl
    def deliver(self, delivery): ...

    @hookimpl
    def exists(self, recipient):
        return False
"""
    assert isinstance(await ask("u@elsewhere.example", by_sender=by_sender), Reject)


async def test_an_alias_is_known_when_one_of_its_targets_is(ask):
    aliases = """
from gateway import Plugin, hookimpl

class Two(Plugin):
    @hookimpl
    def rewrite(self, recipient):
        if recipient.address.startswith("abc-both@"):
            return [recipient.at("abc-none@example.org"), recipient.at("abc-info@example.org")]
        if recipient.address.startswith("abc-none2@"):
            return [recipient.at("abc-x@example.org"), recipient.at("abc-y@example.org")]
"""
    assert await ask("both@example.org", two=aliases) is None
    assert isinstance(await ask("none2@example.org", two=aliases), Reject)
