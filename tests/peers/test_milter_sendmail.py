"""Sendmail asks Mailward by milter: refusals at each step and edits of the header, seen in Sendmail's queue.

Its package conflicts with Postfix's, so it runs from a folder that the package was unpacked into. It wants to
know its full name before it reads its configuration: it has a host name of its own, in a namespace.
"""

import os
import signal
import smtplib
import subprocess
from contextlib import ExitStack

import pytest
from peer import Gateway, eventually, folder_of, free_port
from test_milter_postfix import POLICY

SENDMAIL = "/opt/sendmail-peer/usr/libexec/sendmail/sendmail"
pytestmark = [pytest.mark.peer("sendmail-bin"), pytest.mark.slow]

CONF = """\
V10/Berkeley
Cwpeer.example
Djpeer.example
DnMAILER-DAEMON
Troot
O QueueDirectory={folder}/queue
O PidFile={folder}/pid
O DaemonPortOptions=Name=MTA, Addr=127.0.0.1, Port={port}, Family=inet
O DeliveryMode=q
O DontProbeInterfaces=True
O Timeout.ident=0
O InputMailFilters=mailward
O Milter.macros.connect=j, _, {{daemon_name}}, {{if_name}}, {{if_addr}}
O Milter.macros.envfrom=i, {{mail_addr}}
O Milter.macros.envrcpt={{rcpt_addr}}
Xmailward, S=inet:{milter}@127.0.0.1, F=T, T=S:10s;R:10s;E:30s
H?D?Date: $a
HReceived: from $s by $j id $i; $b
H?F?From: $g
H?M?Message-Id: <$t.$i@$j>
SCanonify=3
R$*<$*>$*\t\t$2
S4
S0
R$*\t\t$#local $: $1
Mlocal,\tP=/bin/false, F=lsDFMAn9, S=0, R=0, T=DNS/RFC822/X-Unix, A=false $u
Mprog,\tP=/bin/false, F=lsDFMoqeu9, S=0, R=0, D=/, T=X-Unix/X-Unix/X-Unix, A=false $u
"""


class Sendmail:
    """A Sendmail that takes mail and keeps it in its queue."""

    def __init__(self, folder, milter):
        self.folder, self.port = folder, free_port()
        (folder / "queue").mkdir(mode=0o700)
        (folder / "sendmail.cf").write_text(CONF.format(folder=folder, port=self.port, milter=milter))
        words = f"hostname peer.example; exec {SENDMAIL} -bD -C{folder}/sendmail.cf -X {folder}/trace"
        self._process = subprocess.Popen(["unshare", "--uts", "sh", "-c", words], start_new_session=True)
        eventually(self._answers)

    def _answers(self):
        try:
            smtplib.SMTP("127.0.0.1", self.port, timeout=5).close()
        except OSError:
            return False
        return True

    def stop(self):
        os.killpg(self._process.pid, signal.SIGTERM)
        self._process.wait(10)

    def queued(self):
        """Give the control files of the queue: envelope and header of each message."""
        return [path.read_text("latin-1") for path in sorted((self.folder / "queue").glob("qf*"))]


@pytest.fixture(scope="module")
def sendmail():
    if os.geteuid():
        pytest.skip("only root can give a Sendmail a host name of its own")
    with ExitStack() as stack:
        gateway = Gateway(folder_of(stack))
        stack.callback(gateway.stop)
        port = free_port()
        listener = f'{{name: policy, protocol: milter, address: "127.0.0.1:{port}"}}'
        gateway.configure("20-milter.yaml", f"listeners: [{listener}]\n")
        gateway.plug("policy", POLICY)
        gateway.start()
        folder = gateway.folder / "sendmail"
        folder.mkdir(mode=0o755)
        made = Sendmail(folder, port)
        stack.callback(made.stop)
        made.gateway = gateway
        yield made


def send(sendmail, sender, recipients=("ann@peer.example",), helo="client.example"):
    """Give (step, code, reply) of the first refusal, or ("", 250, reply)."""
    client = smtplib.SMTP("127.0.0.1", sendmail.port, timeout=20)
    steps = [
        ("helo", lambda: client.ehlo(helo)),
        ("mail", lambda: client.mail(sender)),
        *(("rcpt", lambda one=one: client.rcpt(one)) for one in recipients),
        ("message", lambda: client.data(f"From: <{sender}>\nSubject: {sender}\nX-Secret: x\n\nHello.\n")),
    ]
    try:
        for step, run in steps:
            try:
                code, said = run()
            except smtplib.SMTPDataError as error:
                return "data", error.smtp_code, error.smtp_error.decode()
            if code >= 400:
                return step, code, said.decode()
        return "", code, said.decode()
    finally:
        client.close()


def recipients(kept):
    """Read the addresses out of a control file."""
    return [line.partition("<")[2].strip(">") for line in kept.splitlines() if line.startswith("R")]


@pytest.mark.parametrize("stage", ["mail", "data", "message"])
@pytest.mark.parametrize(("verb", "code", "status"), [("reject", 5, "5.7.1"), ("defer", 4, "4.7.1")])
def test_refusals_are_sendmails_replies(sendmail, stage, verb, code, status):
    before = len(sendmail.queued())
    step, given, said = send(sendmail, f"{verb}-{stage}@remote.example")
    # What is refused at DATA, Sendmail may say when the message has come.
    assert step in {stage, "message"} if stage == "data" else step == stage
    assert given // 100 == code
    assert status in said
    assert len(sendmail.queued()) == before


@pytest.mark.parametrize(("verb", "code"), [("reject", 5), ("defer", 4)])
def test_one_recipient_is_refused_and_the_other_taken(sendmail, verb, code):
    client = smtplib.SMTP("127.0.0.1", sendmail.port, timeout=20)
    client.ehlo("client.example")
    client.mail("ann@remote.example")
    assert client.rcpt(f"{verb}-rcpt@peer.example")[0] // 100 == code
    assert client.rcpt("bob@peer.example")[0] == 250
    assert client.data(f"Subject: only-bob-{verb}\n\nx\n")[0] == 250
    client.quit()
    (kept,) = [one for one in sendmail.queued() if f"only-bob-{verb}" in one]
    assert recipients(kept) == ["bob@peer.example"]


def test_edits_of_header_and_envelope_are_in_sendmails_queue(sendmail):
    assert send(sendmail, "edit@remote.example")[1] == 250
    (kept,) = [one for one in sendmail.queued() if "X-Top" in one]
    header = [line for line in kept.splitlines() if line.startswith("H")]
    top = next(i for i, line in enumerate(header) if "X-Top: 127.0.0.1 client.example " in line)
    assert top <= 1, "above all but Sendmail's own Received"
    assert "X-End: a\n\tfold" in kept
    assert "X-Secret" not in kept
    assert "S<changed@remote.example>" in kept
    assert recipients(kept) == ["bob@postfix.example"]


def test_hold_is_sendmails_quarantine_and_discard_leaves_nothing(sendmail):
    assert send(sendmail, "hold@remote.example")[1] == 250
    held = [path.read_text("latin-1") for path in (sendmail.folder / "queue").glob("hf*")]
    assert ["qlook at this one" in one for one in held] == [True]
    before = len(sendmail.queued())
    assert send(sendmail, "discard@remote.example")[1] == 250
    assert len(sendmail.queued()) == before


def test_it_is_told_as_answered_and_never_as_accepted(sendmail):
    send(sendmail, "told@remote.example")
    eventually(lambda: sendmail.gateway.events("told@", "milter.answered"))
    assert not sendmail.gateway.events("told@", "message.accepted")
