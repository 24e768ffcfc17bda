"""swaks, with which an admin tries a mail server by hand, sends."""

import subprocess

import pytest
from peer import body

pytestmark = pytest.mark.peer("swaks")

#: The exit codes that its manual names.
REFUSED_SENDER, REFUSED_RECIPIENTS, REFUSED_MESSAGE = 23, 24, 26


def swaks(gateway, *options):
    return subprocess.run(
        ["swaks", "--server", f"127.0.0.1:{gateway.port}", "--helo", "client.example", *options],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_a_plain_dialogue(gateway):
    done = swaks(
        gateway, "--from", "ann@sender.example", "--to", "bob@example.org", "--header", "Subject: swaks 1"
    )
    assert done.returncode == 0, done.stdout
    answers = [line.split()[1][:3] for line in done.stdout.splitlines() if line.startswith("<-")]
    assert answers[0] == "220"
    assert set(answers[1:-1]) == {"250", "354"}
    assert answers[-1] == "221"
    gateway.received(1, having="swaks 1")


def test_relaying_is_refused(gateway):
    done = swaks(
        gateway,
        *("--from", "ann@sender.example", "--to", "x@elsewhere.example"),
        *("--local-interface", "127.0.0.2"),
    )
    assert done.returncode == REFUSED_RECIPIENTS, done.stdout
    assert "<** 553 5.7.1 " in done.stdout


def test_an_endless_sender_is_refused(gateway):
    done = swaks(gateway, "--from", f"{'a' * 900}@sender.example", "--to", "bob@example.org")
    assert done.returncode == REFUSED_SENDER, done.stdout
    assert "<** 501 5.1.7 " in done.stdout


def test_a_looping_message_is_refused(gateway):
    hops = "".join(f"Received: from a by b; hop {number}\\n" for number in range(101))
    done = swaks(
        gateway,
        "--from",
        "ann@sender.example",
        "--to",
        "bob@example.org",
        "--data",
        f"{hops}Subject: x\\n\\nx\\n",
    )
    assert done.returncode == REFUSED_MESSAGE, done.stdout
    assert "<** 554 5.4.6 " in done.stdout


@pytest.mark.parametrize("pipelining", [(), ("--pipeline",)], ids=["one by one", "pipelined"])
def test_dots_and_long_lines_arrive_byte_for_byte(gateway, open_folder, pipelining):
    # swaks would take a dot on the last line for the end of data, and ends the last line itself.
    head = f"From: ann@sender.example\nSubject: swaks 2{len(pipelining)}\n\n".encode()
    content = head + body(500) + b"the end\n"
    (open_folder / "message").write_bytes(content.removesuffix(b"\n"))
    done = swaks(
        gateway,
        *("--from", "ann@sender.example", "--to", "bob@example.org,carl@example.net"),
        *("--data", f"@{open_folder}/message", "--suppress-data", *pipelining),
    )
    assert done.returncode == 0, done.stdout
    for account in ("abc", "xyz"):
        (kept,) = gateway.received(1, having=f"swaks 2{len(pipelining)}", account=account)
        assert kept.endswith(b"\n" + content)
