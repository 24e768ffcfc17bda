"""Four workers are one gateway: in limits, operations, the journal, a reload, and when one of them dies."""

import concurrent.futures
import os
import signal
import smtplib
import socket

import pytest

from gateway.console import SOCKET, call
from gateway.errors import ControlError
from gateway.journal import stories

pytestmark = pytest.mark.timeout(240)


def together(count, work):
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: work(), range(count)))


def ids(site, name, **wanted):
    return [one["id"] for one in site.ask(name, **wanted)]


def deleted(site, domain):
    """Delete what no worker is trying at this moment; True when nothing is left."""
    site.ask("queue.delete", domain=domain)
    return not site.ask("queue.list", domain=domain)


def test_all_workers_take_part_and_trace_finds_mail_of_each(running):
    def all_have_delivered():
        together(8, running.send)
        return len(running.streams("delivery.delivered")) == 4

    running.until(all_have_delivered)
    running.until(lambda: running.ask("queue.stats") == [])
    done = running.events("message.finished")
    for stream in running.streams("message.finished"):
        message = next(one["message"] for one in done if one["stream"] == stream)
        (story,) = stories(running.state / "journal", [message])
        assert "message.finished" in [one["event"] for one in story.events]
    assert running.streams("gateway.started") == {"supervisor"}
    assert len(running.events("config.loaded")) == 1


def test_a_limit_on_sessions_holds_for_all_workers_together(running):
    running.configure("limits: {sessions: 6, sessions_per_client: 5}\n")
    running.ask("reload")
    opened = []

    def connect():
        client = smtplib.SMTP(timeout=30)
        opened.append(client)
        return client.connect("127.0.0.1", running.port)[0]

    assert sorted(together(12, connect)) == [220] * 5 + [421] * 7
    for client in opened:
        client.close()
    running.until(lambda: running.ask("status")[0]["sessions"] == 0)
    assert connect() == 220
    opened[-1].close()
    running.configure()
    running.ask("reload")


def test_a_rate_holds_for_all_workers_together(running):
    running.configure("relay_control: {clients: !replace [{networks: [127.0.0.1], max_rate: 10/h}]}\n")
    running.ask("reload")

    def send():
        try:
            running.send("far@example.net")
        except smtplib.SMTPRecipientsRefused as refused:
            return next(iter(refused.recipients.values()))[0]
        return 250

    assert sorted(together(16, send)) == [250] * 10 + [450] * 6
    running.configure()
    running.ask("reload")
    # They are tried meanwhile, so only their ids are the same each time.
    listed = ids(running, "queue.list")
    assert listed == sorted(listed)
    assert len(listed) == 10
    assert ids(running, "queue.list", limit=3) == listed[:3]
    assert ids(running, "queue.list", after=listed[0], limit=3) == listed[1:4]
    assert sum(one["recipients"] for one in running.ask("queue.stats")) == 10
    assert ids(running, "queue.show", ids=[listed[0]]) == [listed[0]]
    running.until(lambda: deleted(running, "example.net"))
    told = running.until(
        lambda: len(running.events("message.deleted")) == 10 and running.events("message.deleted")
    )
    assert {one["message"] for one in told} == set(listed)
    assert len({one["stream"] for one in told}) > 1


def test_a_plugin_that_breaks_in_one_worker_breaks_the_reload_of_all(running):
    running.plugin(
        "picky",
        "from gateway import Plugin, hookimpl\n"
        "class Picky(Plugin):\n"
        "    @hookimpl\n"
        "    def startup(self):\n"
        "        if self.site.shard == 2:\n"
        "            raise RuntimeError('not in this one')\n",
    )
    before = {one["worker"]: one["pid"] for one in running.workers()}
    with pytest.raises(ControlError, match="not in this one"):
        running.ask("reload")
    assert "picky" not in str(running.ask("stages"))
    (running.base / "plugins" / "picky.py").unlink()
    (changes,) = running.ask("reload")
    assert changes["added"] == []
    together(8, running.send)
    assert {one["worker"]: one["pid"] for one in running.workers()} == before
    (told,) = running.events("config.rejected")
    assert told["stream"] == "supervisor"


def test_a_new_listener_is_served_by_all_and_a_dropped_one_by_none(running):
    port = running.port + 1
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", port))
    running.configure(f'listeners: [{{name: second, protocol: smtp, address: "127.0.0.1:{port}"}}]\n')
    running.ask("reload")

    def served():
        with smtplib.SMTP("127.0.0.1", port, timeout=30):
            pass
        return len({one["stream"] for one in running.events("session.opened") if one["listener"] == "second"})

    running.until(lambda: served() == 4)
    running.configure()
    running.ask("reload")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_listener_that_changes_does_so_in_all_workers_and_for_no_session(running):
    before = [running.client() for _ in range(4)]
    running.configure(
        f'listeners: !replace [{{name: mx, protocol: lmtp, address: "127.0.0.1:{running.port}"}}]\n'
    )
    running.ask("reload")

    def greeting():
        with socket.create_connection(("127.0.0.1", running.port), 30) as link:
            return link.recv(100).split()[2:]

    assert together(20, greeting) == [[b"LMTP"]] * 20
    for client in before:
        assert client.docmd("MAIL FROM:<a@example.com>")[0] == 250
        client.quit()
    running.configure()
    running.ask("reload")
    assert greeting() == [b"ESMTP"]


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"[]\n",
        b"{}\n",
        b'{"call": 7}\n',
        b'{"call": "queue.list", "bogus": 1}\n',
        b"[" * 9000 + b"\n",
    ],
)
def test_a_malformed_request_gets_an_error_for_an_answer(running, line):
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(30)
        link.connect(str(running.state / SOCKET))
        link.sendall(line)
        assert link.makefile("rb").readline().startswith(b'{"error": "not understood')


def test_a_worker_killed_under_load_refuses_nobody_and_loses_nothing(running):
    victim = running.workers()[1]
    accepted, cut = [], []

    def send(number):
        name = f"load-{number}@example.com"
        try:
            running.send(sender=name)
        except (smtplib.SMTPServerDisconnected, ConnectionResetError):
            cut.append(name)  # its session was with the victim; a refused connection would fail the test
        else:
            accepted.append(name)
        if number == 30:
            os.kill(victim["pid"], signal.SIGKILL)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sending = pool.map(send, range(150))
        running.until(lambda: running.events("worker.died"))
        # Who asks about the queue while a worker is away waits for it.
        list(call(running.state, "queue.stats"))
        list(sending)
    assert len(accepted) > 100
    again = running.until(lambda: all(one["serves"] for one in running.workers()) and running.workers()[1])
    assert again["pid"] != victim["pid"]
    running.until(lambda: running.ask("queue.stats") == [])
    (died,) = running.events("worker.died")
    assert (died["worker"], died["pid"], died["status"]) == ("shard-1", victim["pid"], -9)
    told = {one["message"]: one["sender"] for one in running.events("message.accepted")}
    ended = {told[one["message"]] for one in running.events("message.finished")}
    assert set(accepted) <= ended
    assert running.ask("status")[0]["sessions"] == 0
    running.until(lambda: running.send() or "shard-1" in {one["stream"] for one in running.events()[-40:]})


def test_the_end_is_gentle_and_leaves_no_process(running):
    pids = [one["pid"] for one in running.workers()]
    assert running.stop() == 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    (told,) = running.events("gateway.stopped")
    assert told["reason"] == "SIGTERM"
