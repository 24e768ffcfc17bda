"""The group `remote` of the vectors: what qmail-remote made of each reply, and what it sent.

The dialogue is ours (EHLO for HELO); compared are the fate of each recipient, and MAIL, RCPT and the content
on the wire.
"""

import asyncio
import socket

import pytest
import vectors

from gateway import Address, Delivery, Entry, EntryRecipient, Message, Recipient, Route, Stages

FATES = {"K": "delivered", "Z": "deferred", "D": "failed", "s": "deferred", "h": "failed"}
CONTROLS = {"smtproutes", "me", "helohost", "timeoutconnect", "timeoutremote"}


class Host:
    """Answers as the recorder did: the next reply after each line, or after the content."""

    def __init__(self, replies):
        self._replies = replies
        self.heard = []

    async def serve(self, reader, writer):
        replies = iter(self._replies)
        reply = next(replies)
        while reply is not None:
            writer.write(vectors.raw(reply))
            if self.heard and self.heard[-1] == ["line", "DATA"] and vectors.raw(reply)[:1] in b"23":
                self.heard.append(["data", await content(reader)])
            elif not (line := await next_line(reader)):
                break
            else:
                self.heard.append(["line", line])
                if line.startswith("HELO "):
                    # EHLO was refused; the recorder heard HELO alone.
                    continue
            reply = next(replies, None)
        writer.close()


async def next_line(reader):
    """Give a line, "" when the client has nothing to say (the recorder hung up then, too)."""
    try:
        return (await asyncio.wait_for(reader.readline(), 1)).decode().removesuffix("\r\n")
    except TimeoutError:
        return ""


async def content(reader):
    lines = []
    while (line := await reader.readline()) not in (b".\r\n", b""):
        lines.append(line)
    return vectors.as_text(b"".join(lines))


def closed_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wanted(case):
    """Turn the report of qmail-remote into fates (qmail spec 7.7), and what it sent into what counts."""
    expect = case["expect"]
    letters = expect["recipients"] or ["r"] * len(case["input"]["recipients"])
    return {
        "fates": [FATES[expect["result"] if letter == "r" else letter] for letter in letters],
        "client": kept(expect["client"]),
    }


def kept(heard):
    return [[kind, what] for kind, what in heard if kind == "data" or what.startswith(("MAIL", "RCPT"))]


def settings(case, folder, port):
    control = case["input"]["control"]
    assert set(control) <= CONTROLS
    (folder / "smtproutes").write_text(control["smtproutes"].replace("{PORT}", str(port)))
    return {"remote": {"file": "smtproutes", "helo": control.get("helohost", "").strip()}}


def at_host(case, address):
    """Give a recipient as qmail-rspawn would have: its domain is the host."""
    local, _, domain = vectors.text(address).rpartition("@")
    return (
        address
        if "@" not in address or domain.lower() == case["input"]["host"].lower()
        else f"{local}@{case['input']['host']}"
    )


@pytest.mark.parametrize("case", vectors.cases("remote"))
async def test_remote(case, tmp_path, request):
    given = case["input"]
    host = Host(given["server"] or [])
    server = await asyncio.start_server(host.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1] if given["server"] else closed_port()
    chain, _ = vectors.chain_of(tmp_path, settings(case, tmp_path, port), "remote")
    rows = [
        EntryRecipient(number, Recipient.of(at_host(case, address)))
        for number, address in enumerate(map(vectors.text, given["recipients"]))
    ]
    sender = Address.decode(vectors.raw(given["sender"]))
    entry = Entry("1", sender, Message.parse(vectors.raw(given["message"])), rows, 0.0)
    answer = await chain.ask_plugin(
        "remote", Stages.deliver, Delivery("1", entry, Route("remote", "remote"), tuple(rows), sender)
    )
    await chain.ask_plugin("remote", Stages.shutdown)
    server.close()
    found = {"fates": [outcome.result for outcome in answer.value], "client": kept(host.heard)}
    for row, address in zip(rows, given["recipients"], strict=True):
        for heard in found["client"]:
            heard[1] = heard[1].replace(str(row.recipient.address), vectors.text(address))
    vectors.compare(request, "remote", case, found, wanted(case))
