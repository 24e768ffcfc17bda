"""OpenDKIM's `miltertest`, which plays an MTA from a script, asks the milter server."""

import asyncio
import shutil

import pytest

pytestmark = pytest.mark.peer("miltertest")

POLICY = """
from gateway import Hold, Plugin, Reject, hookimpl

class Policy(Plugin):
    @hookimpl
    def rcpt(self, transaction, recipient):
        return Reject("5.7.1", "no") if recipient.address.startswith("bad") else None

    @hookimpl
    def message(self, transaction, message):
        message.prepend("X-Seen", transaction.session.notes["milter"]["i"])
        message.remove("X-Secret")
        message.body = b"\\nnew\\n"
        return Hold("look")
"""
SCRIPT = """
function check(what, ok)
    if not ok then mt.echo("failed: " .. what) error(what) end
end
conn = mt.connect("unix:{path}")
check("connect", conn ~= nil)
check("conninfo", mt.conninfo(conn, "client.example", "203.0.113.9") == nil)
check("connected", mt.getreply(conn) == SMFIR_CONTINUE)
check("helo", mt.helo(conn, "client.example") == nil and mt.getreply(conn) == SMFIR_CONTINUE)
mt.macro(conn, SMFIC_MAIL, "i", "4XYZ")
check("mail", mt.mailfrom(conn, "<a@b.example>") == nil and mt.getreply(conn) == SMFIR_CONTINUE)
check("bad", mt.rcptto(conn, "<bad@example.org>") == nil and mt.getreply(conn) == SMFIR_REPLYCODE)
check("rcpt", mt.rcptto(conn, "<c@elsewhere.example>") == nil and mt.getreply(conn) == SMFIR_CONTINUE)
check("data", mt.data(conn) == nil and mt.getreply(conn) == SMFIR_CONTINUE)
check("header", mt.header(conn, "From", "a@b.example") == nil)
check("header", mt.header(conn, "X-Secret", "x") == nil)
check("eoh", mt.eoh(conn) == nil)
check("body", mt.bodystring(conn, "text\\r\\n") == nil)
check("eom", mt.eom(conn) == nil)
check("verdict", mt.getreply(conn) == SMFIR_ACCEPT)
check("insert", mt.eom_check(conn, MT_HDRINSERT, "X-Seen"))
check("delete", mt.eom_check(conn, MT_HDRDELETE, "X-Secret"))
check("replace", mt.eom_check(conn, MT_BODYCHANGE))
check("quarantine", mt.eom_check(conn, MT_QUARANTINE))
mt.disconnect(conn)
mt.echo("all is well")
"""


async def test_miltertest_sees_verdicts_and_edits(site, tmp_path):
    await site(policy=POLICY)
    script = tmp_path / "script.lua"
    script.write_text(SCRIPT.format(path=tmp_path / "milter"))
    done = await asyncio.create_subprocess_exec(
        shutil.which("miltertest", path="/usr/bin:/usr/sbin"),
        "-v",
        "-s",
        script,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(30):
        said, _ = await done.communicate()
    assert (done.returncode, b"all is well" in said) == (0, True), said.decode()
