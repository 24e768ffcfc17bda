"""The contract finds each plugin that breaks it, and says how."""

import pytest

from gateway.testing import contract

HEAD = "import asyncio, time\nfrom gateway import *\nfrom gateway import hookimpl\n"
BREACHES = {
    "keeps state in its module": (
        """
SEEN = []
class P(Plugin):
    @hookimpl
    def mail(self, transaction):
        SEEN.append(transaction.sender)
""",
        "the module keeps state in SEEN",
    ),
    "counts in a global": (
        """
COUNT = 0
class P(Plugin):
    @hookimpl
    def mail(self, transaction):
        global COUNT
        COUNT += 1
""",
        "the module keeps state in COUNT",
    ),
    "fails for mail that was born here": (
        """
class P(Plugin):
    @hookimpl
    def message(self, transaction, message):
        transaction.session.client.ip
""",
        "message: AttributeError",
    ),
    "fails for a sender without a domain": (
        """
class P(Plugin):
    @hookimpl
    def mail(self, transaction):
        transaction.sender.split("@")[1]
""",
        "mail: IndexError",
    ),
    "fails for a message without a header": (
        """
class P(Plugin):
    @hookimpl
    def incoming(self, message):
        message.values("Subject")[0]
""",
        "incoming: IndexError",
    ),
    "answers what the stage does not take": (
        """
class P(Plugin):
    @hookimpl
    def rcpt(self, recipient):
        return "no"
""",
        "rcpt: TypeError",
    ),
    "never answers": (
        """
class Settings(Section):
    pass
class P(Plugin[Settings]):
    @hookimpl
    async def helo(self, session, name):
        await asyncio.Event().wait()
""",
        "helo: no answer in time",
    ),
    "cannot be shut down when its start has failed": (
        """
class P(Plugin):
    @hookimpl
    def startup(self):
        self.file = open("/dev/null")
    @hookimpl
    def shutdown(self):
        self.file.close()
""",
        "shutdown raised AttributeError",
    ),
    "loses its call to a reload": (
        """
class P(Plugin):
    @hookimpl
    async def rcpt(self, recipient):
        await asyncio.sleep(0)
        from sys import modules
        modules[__name__]
""",
        "rcpt while a reload went on: KeyError",
    ),
    "is dead as soon as the next one is there": (
        """
class P(Plugin):
    @hookimpl
    def mail(self, transaction):
        import sys
        return sys.modules[__name__].no_opinion()
def no_opinion():
    return None
""",
        "mail of the old instance after a reload: KeyError",
    ),
}


@pytest.mark.parametrize("name", BREACHES)
async def test_a_breach_is_found(name, tmp_path):
    source, said = BREACHES[name]
    (tmp_path / "made").mkdir()
    path = tmp_path / "made" / "breach.py"
    path.write_text(HEAD + source)
    with pytest.raises(AssertionError) as caught:
        await contract(path, "breach: {deadline: 0.02s}")
    assert said in str(caught.value)


async def test_a_chain_that_lets_a_fault_through_is_found(tmp_path, monkeypatch):
    path = tmp_path / "quiet.py"
    path.write_text(HEAD + "class P(Plugin):\n    @hookimpl\n    def mail(self, transaction): ...\n")
    await contract(path)
    monkeypatch.setattr("gateway.chain._check", lambda *_: None)
    with pytest.raises(AssertionError, match="mail: when it answers junk"):
        await contract(path)
