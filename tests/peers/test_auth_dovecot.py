"""A real Dovecot says whose password it is."""

import os
import subprocess
from contextlib import contextmanager

import pytest
from peer import eventually, program

from gateway import Accept, Credentials, Stages
from gateway.testing.build import Bench, session

pytestmark = [
    pytest.mark.peer("dovecot-imapd"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a Dovecot"),
]

CONF = """\
base_dir = {folder}/run
state_dir = {folder}/state
log_path = {folder}/log
protocols =
ssl = no
auth_failure_delay = 1 secs
default_internal_user = dovecot
default_login_user = dovenull
passdb {{
  driver = passwd-file
  args = scheme=PLAIN {folder}/users
}}
userdb {{
  driver = static
  args = uid=65534 gid=65534 home=/nonexistent
}}
# No pause after failures beyond auth_failure_delay: it would grow with each.
service anvil {{
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
service auth {{
  unix_listener {folder}/mailward {{
    mode = 0666
  }}
}}
"""


@contextmanager
def dovecot(folder):
    (folder / "users").write_text("ann:secret\neve:third::::::nologin\n")
    conf = folder / "dovecot.conf"
    conf.write_text(CONF.format(folder=folder))
    process = subprocess.Popen([program("dovecot"), "-F", "-c", conf], stderr=subprocess.PIPE)
    try:
        eventually(lambda: (folder / "mailward").exists() or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        yield folder / "mailward"
    finally:
        process.terminate()
        process.wait(10)
        process.stderr.close()


async def test_its_users_are_ours(open_folder, tmp_path):
    with dovecot(open_folder) as where:
        bench = Bench(tmp_path)
        chain = bench.build(f"auth_dovecot: {{socket: {where}, timeout: 20s}}\n").chain

        async def said(login, password):
            asked = Credentials("PLAIN", login, password)
            return (await chain.ask(Stages.authenticate, session(), asked)).value

        assert isinstance(await said("ann", "secret"), Accept)
        assert await said("ann", "wrong") is None
        assert await said("nobody", "secret") is None
        assert await said("ann\t", "secret") is None
        assert isinstance(await said("ann", "secret"), Accept)
