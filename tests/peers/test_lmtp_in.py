"""LMTP as real clients speak it to us: swaks at a port and at a unix socket, and Postfix."""

import os
import subprocess
from contextlib import ExitStack

import pytest
from peer import Gateway, body, eventually, folder_of, free_port
from test_postfix import MASTER, Postfix, send

LISTENERS = """\
listeners:
  - {{name: lmtp, protocol: lmtp, address: "127.0.0.1:{port}"}}
  - {{name: socket, protocol: lmtp, address: "unix:{folder}/lmtp"}}
"""
#: Refuses one recipient behind the content, as only LMTP can say to that one alone.
PICKY = """
from gateway import Address, Plugin, Reject, hookimpl

class Picky(Plugin):
    @hookimpl
    def message(self, transaction):
        return {Address("full@example.org"): Reject("5.2.2", "your mailbox is full")}
"""


@pytest.fixture(scope="module")
def served():
    """Give a gateway with an LMTP port and an LMTP socket."""
    with ExitStack() as stack:
        made = Gateway(folder_of(stack))
        made.lmtp = free_port()
        made.folder.chmod(0o755)
        made.configure("20-lmtp.yaml", LISTENERS.format(port=made.lmtp, folder=made.folder))
        made.plug("picky", PICKY)
        stack.callback(made.stop)
        made.start()
        yield made


def swaks(*options):
    return subprocess.run(
        ["swaks", "--protocol", "LMTP", "--from", "ann@sender.example", *options],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.peer("swaks")
@pytest.mark.parametrize("at", ["port", "socket"])
def test_swaks_hears_a_reply_for_each_recipient(served, at):
    where = (
        ["--server", f"127.0.0.1:{served.lmtp}"] if at == "port" else ["--socket", f"{served.folder}/lmtp"]
    )
    done = swaks(
        *where, "--to", "bob@example.org,full@example.org,eve@example.org", "--header", f"Subject: by {at}"
    )
    behind = done.stdout.partition("\n -> .\n")[2]
    answers = [line[4:].split(" ", 2)[:2] for line in behind.splitlines() if line.startswith("<")]
    assert [code for code, _ in answers[:3]] == ["250", "554", "250"], done.stdout
    served.received(2, having=f"Subject: by {at}")
    (one, _) = served.received(2, having=f"Subject: by {at}")
    assert b"with LMTP" in one


@pytest.mark.peer("postfix")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a Postfix")
@pytest.mark.parametrize(
    "way", ["lmtp:unix:{folder}/lmtp", "lmtp:inet:127.0.0.1:{lmtp}", "smtp:[127.0.0.1]:{port}"]
)
def test_postfix_delivers_to_us_and_asks_for_reports(served, way):
    with ExitStack() as stack:
        postfix = Postfix(folder_of(stack), served.port, free_port())
        config = postfix.folder / "config"
        main = (
            (config / "main.cf")
            .read_text()
            .replace("smtpd_sender_restrictions = check_policy_service", "smtpd_sender_restrictions =\n#")
        )
        to = way.format(folder=served.folder, lmtp=served.lmtp, port=served.port)
        (config / "main.cf").write_text(f"{main}\ndefault_transport = {to}\nrelayhost =\n")
        (config / "master.cf").write_text(MASTER.format(port=postfix.port) + "lmtp unix - - n - - lmtp\n")
        stack.callback(postfix.stop)
        postfix.start()
        name = way.partition(":")[0] + str(len(to))
        content = f"Subject: {name}\n\n".encode() + body(500)
        send(postfix.port, ["bob@example.org", "full@example.org"], content, "ann@postfix.example")
        if way.startswith("lmtp"):
            (taken,) = served.received(1, having=f"\nSubject: {name}\n")
            assert taken.endswith(b"\n" + content)
            eventually(lambda: "your mailbox is full" in postfix.log)
            assert "status=sent (250 2.0.0 queued as" in postfix.log
        else:
            # By SMTP one reply is for all.
            eventually(lambda: postfix.log.count("your mailbox is full") >= 2)
