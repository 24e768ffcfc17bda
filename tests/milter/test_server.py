"""The milter server, asked by an MTA: verdicts, edits, facts, and an MTA that breaks off or misbehaves."""
# ruff: noqa: ASYNC110 - what ends in another task can only be looked for

import asyncio
import gc

import pytest
import uvloop

from gateway.milter import packets as p
from gateway.milter.packets import Actions, Steps

HEAD = """
from gateway import Accept, Address, Defer, Discard, Disconnect, Hold, Plugin, Reject, Recipient, hookimpl

class One(Plugin):
"""


def plugin(stage, arguments, *lines):
    body = "".join(f"        {line}\n" for line in lines)
    return f"{HEAD}    @hookimpl\n    def {stage}(self, {arguments}):\n{body}"


async def message(mta, **content):
    """One message through a session that says yes to all before the content."""
    await mta.begin()
    assert set(await mta.envelope()) == {p.Continue()}
    return await mta.content(**content)


async def test_silence_is_continue_and_accept_at_the_end_and_nothing_is_queued(site):
    gateway = await site()
    mta = await gateway.mta()
    assert await mta.begin() == (p.Continue(), p.Continue())
    for _ in range(3):
        assert await mta.envelope() == [p.Continue(), p.Continue()]
        assert (await mta.content(), mta.edits) == (p.Accept(), [])
    assert gateway.told("message.accepted") == []
    assert [event.answer for event in gateway.told("milter.answered")] == [
        "continue",
        "continue",
        "accept",
    ] * 3


async def test_recipients_of_any_domain_are_taken_because_the_mta_decides_who_may_relay(site):
    mta = await (await site()).mta()
    await mta.begin()
    assert await mta.envelope(recipients=[b"<x@elsewhere.example>"]) == [p.Continue(), p.Continue()]


STAGES = {
    "connect": "session",
    "helo": "session, name",
    "mail": "transaction",
    "rcpt": "transaction, recipient",
    "data": "transaction",
    "message": "transaction, message",
}
WORDS = {
    "Reject('5.7.1', 'no')": {
        "connect": 554,
        "helo": 554,
        "mail": 553,
        "rcpt": 553,
        "data": 550,
        "message": 554,
    },
    "Defer('4.7.1', 'later')": {
        "connect": 421,
        "helo": 421,
        "mail": 450,
        "rcpt": 450,
        "data": 450,
        "message": 451,
    },
    "Disconnect('5.7.0', 'go')": dict.fromkeys(STAGES, 554),
    "Disconnect('4.7.0', 'go')": dict.fromkeys(STAGES, 421),
    "1 / 0": dict.fromkeys(STAGES, 451) | {"connect": 421, "helo": 421},
}


async def by_milter(mta):
    """Give the first refusal of a session as (stage, code)."""
    connect, helo = await mta.begin()
    answers = {"connect": connect, "helo": helo}
    if set(answers.values()) == {p.Continue()}:
        answers["mail"] = await mta.ask(p.Mail(b"<s@remote.example>"))
    if answers.get("mail") == p.Continue():
        answers["rcpt"] = await mta.ask(p.Rcpt(b"<abc@example.org>"))
    if answers.get("rcpt") == p.Continue():
        answers["data"] = await mta.ask(p.Data())
    if answers.get("data") == p.Continue():
        mta.send(p.EndOfHeaders())
        assert await mta.answer() == p.Continue()
        answers["message"] = await mta.verdict(p.EndOfMessage())
    refused = [(stage, answer.text) for stage, answer in answers.items() if isinstance(answer, p.ReplyCode)]
    return (refused[0][0], refused[0][1].decode()) if refused else ("", str(answers["message"]))


async def by_smtp(client):
    """Give the same of an SMTP session."""
    lines = [
        "EHLO client.example",
        "MAIL FROM:<s@remote.example>",
        "RCPT TO:<abc@example.org>",
        "DATA",
        "\r\n.",
    ]
    reply = await client.reply()
    for stage, line in zip(["connect", "helo", "mail", "rcpt", "data"], lines, strict=True):
        if int(reply[:3]) >= 400:
            return stage, reply
        reply = await client.say(line)
        if int(reply[:3]) >= 400:
            return {"EHLO": "helo", "MAIL": "mail", "RCPT": "rcpt", "DATA": "data"}.get(
                line[:4], "message"
            ), reply
    return "", "accepted"


@pytest.mark.parametrize("answer", WORDS)
@pytest.mark.parametrize("stage", STAGES)
async def test_one_plugin_file_gives_the_same_verdict_by_smtp_and_by_milter(site, stage, answer):
    gateway = await site(one=plugin(stage, STAGES[stage], f"return {answer}"))
    mta = await gateway.mta()
    async with gateway.smtp() as client:
        smtp = await by_smtp(client)
    milter = await by_milter(mta)
    assert milter == smtp
    assert milter[0] == stage
    assert int(milter[1][:3]) == WORDS[answer][stage]


async def test_a_refused_session_hears_the_same_whatever_follows(site):
    gateway = await site(one=plugin("helo", "session, name", "return Disconnect('5.7.0', 'go')"))
    mta = await gateway.mta()
    _, helo = await mta.begin()
    assert await mta.ask(p.Mail(b"<a@b.example>")) == helo == p.ReplyCode(b"554 5.7.0 go")


async def test_a_refused_recipient_leaves_the_others(site):
    source = plugin(
        "rcpt",
        "transaction, recipient",
        "return Reject('5.1.1', '100% no') if 'bad' in recipient.address else None",
    )
    gateway = await site(one=source)
    mta = await gateway.mta()
    await mta.begin()
    answers = await mta.envelope(recipients=[b"<bad@example.org>", b"<abc@example.org>"])
    assert answers == [p.Continue(), p.ReplyCode(b"550 5.1.1 100%% no"), p.Continue()]
    assert (await mta.content(), mta.edits) == (p.Accept(), [])


@pytest.mark.parametrize("stage", ["mail", "data", "message"])
async def test_hold_is_quarantine_and_discard_is_discard_at_the_end(site, stage):
    gateway = await site(one=plugin(stage, STAGES[stage], "return Hold('look at it')"))
    mta = await gateway.mta()
    assert await message(mta) == p.Accept()
    assert mta.edits == [p.Quarantine(b"look at it")]
    assert gateway.told("milter.answered")[-1].answer == "quarantine"


@pytest.mark.parametrize("stage", ["mail", "data", "message"])
async def test_discard_is_discard_at_the_end(site, stage):
    gateway = await site(one=plugin(stage, STAGES[stage], "return Discard('dull')"))
    mta = await gateway.mta()
    assert (await message(mta), mta.edits) == (p.Discard(), [])


async def test_discarded_recipients_are_taken_back_and_the_last_one_takes_the_message_with_it(site):
    source = plugin(
        "rcpt", "transaction, recipient", "return Discard('x') if 'bad' in recipient.address else None"
    )
    gateway = await site(one=source)
    mta = await gateway.mta()
    await mta.begin()
    await mta.envelope(recipients=[b"<bad@example.org>", b"<abc@example.org>"])
    assert (await mta.content(), mta.edits) == (p.Accept(), [p.DeleteRecipient(b"<bad@example.org>")])
    await mta.envelope(recipients=[b"<bad@example.org>"])
    assert await mta.content() == p.Discard()


async def test_what_a_plugin_changes_is_told_to_the_mta(site):
    lines = [
        "message.prepend('X-Top', 'one')",
        "message.append('X-End', 'two')",
        "message.remove('Subject')",
        "message.body = b'\\nnew\\n'",
        "transaction.sender = Address('new@example.com')",
        "transaction.recipients[:] = [Recipient.of('other@example.org')]",
    ]
    gateway = await site(one=plugin("message", "transaction, message", *lines))
    mta = await gateway.mta()
    assert await message(mta, headers=[(b"From", b" a@b"), (b"Subject", b" hi")]) == p.Accept()
    assert mta.edits == [
        p.ChangeSender(b"<new@example.com>"),
        p.DeleteRecipient(b"<abc@example.org>"),
        p.AddRecipient(b"<other@example.org>"),
        p.ChangeHeader(1, b"Subject", b""),
        p.InsertHeader(0, b"X-Top", b" one"),
        p.AddHeader(b"X-End", b" two"),
        p.ReplaceBody(b""),
        p.ReplaceBody(b"new\r\n"),
    ]
    told = gateway.told("milter.answered")[-1]
    assert "insert header X-Top" in told.edits
    assert "replace body" in told.edits


async def test_a_change_that_the_mta_does_not_take_is_never_dropped_in_silence(site):
    gateway = await site(one=plugin("message", "transaction, message", "message.append('X', 'y')"))
    mta = await gateway.mta()
    await mta.negotiate(actions=Actions.CHANGE_BODY)
    await mta.ask(p.Connect(b"h"))
    await mta.envelope()
    assert (await mta.content()).text.startswith(b"451 4.3.0")


async def test_received_is_the_mtas_business(site):
    mta = await (await site()).mta()
    assert (await message(mta), mta.edits) == (p.Accept(), [])


async def test_plugins_see_the_message_byte_for_byte_and_large_ones_too(site):
    gateway = await site(
        one=plugin(
            "message",
            "transaction, message",
            "import hashlib",
            "raw = bytes(message)",
            "return Reject('5.7.1', f'{len(raw)} {hashlib.sha256(raw).hexdigest()}')",
        )
    )
    import hashlib

    line = b"x" * 70 + b"\xff\r\n"
    body = line * 10_000
    headers = [(b"A", b"  two blanks"), (b"B", b" fold\n\there"), (b"C", b"")]
    whole = b"A:  two blanks\nB: fold\n\there\nC:\n\n" + body.replace(b"\r\n", b"\n")
    mta = await gateway.mta()
    answer = await message(mta, headers=headers, body=body, chunk=65_535)
    assert answer.text.endswith(f"{len(whole)} {hashlib.sha256(whole).hexdigest()}".encode())
    assert list((gateway.worker.queue.spool_folder).glob("body-*")) == []


async def test_a_message_over_the_limit_is_refused_when_it_has_all_come(site):
    gateway = await site("limits: {message_size: 1K}")
    mta = await gateway.mta()
    assert (await message(mta, body=b"x\r\n" * 1000)).text.startswith(b"552 5.3.4")
    await mta.envelope()
    assert await mta.content() == p.Accept()


FACTS = plugin(
    "mail",
    "transaction",
    "s = transaction.session",
    "said = [s.client.ip, s.client.name, s.client.port, s.helo, s.user, s.auth, s.tls, s.protocol,",
    "        s.listener, transaction.sender, dict(transaction.params), s.notes['milter'].get('i')]",
    "return Reject('5.7.1', repr(said))",
)


async def test_facts_and_macros_are_the_sessions(site):
    gateway = await site(one=FACTS)
    mta = await gateway.mta()
    await mta.negotiate()
    mta.send(p.Macros(b"C", ((b"j", b"mta.example"), (b"client_name", b"client.example"))))
    await mta.ask(p.Connect(b"client.example", b"6", 4711, b"IPv6:2001:db8::1"))
    mta.send(p.Macros(b"H", ((b"tls_version", b"TLSv1.3"), (b"cipher", b"AES"))))
    await mta.ask(p.Helo(b"hello\xff"))
    mta.send(p.Macros(b"M", ((b"i", b"4XYZ"), (b"auth_type", b"PLAIN"), (b"auth_authen", b"joe"))))
    answer = await mta.ask(p.Mail(b"<s@remote.example>", (b"SIZE=10", b"body=8BITMIME")))
    said = answer.text.replace(b"\r\n553-5.7.1 ", b" ").replace(b"\r\n553 5.7.1 ", b" ")
    for fact in (
        b"'2001:db8::1', 'client.example', 4711",
        b"'joe', 'PLAIN', 'TLSv1.3 AES', 'milter', 'policy'",
        b"'4XYZ'",
        b"'SIZE': '10'",
    ):
        assert fact in said
    (told,) = gateway.told("milter.answered")
    assert (told.queue_id, told.user, told.client_ip) == ("4XYZ", "joe", "2001:db8::1")


@pytest.mark.parametrize(
    ("host", "macros"),
    [
        (b"[203.0.113.9]", ()),
        (b"unknown", ()),
        (b"liar.example", ((b"client_name", b"unknown"),)),
        (b"liar.example", ((b"_", b"liar.example [203.0.113.9] (may be forged)"),)),
        (b"liar.example", ((b"client_resolve", b"FORGED"),)),
    ],
)
async def test_a_name_that_the_mta_has_not_confirmed_is_no_name(site, host, macros):
    mta = await (await site(one=FACTS)).mta()
    await mta.negotiate()
    mta.send(p.Macros(b"C", macros))
    await mta.ask(p.Connect(host, b"4", 1, b"203.0.113.9"))
    assert b"['203.0.113.9', '', 1" in (await mta.ask(p.Mail(b"<>"))).text


@pytest.mark.parametrize("until", ["mail", "rcpt", "data", "header", "body"])
@pytest.mark.parametrize("how", ["abort", "quit", "lost", "mail"])
async def test_a_message_that_is_broken_off_is_reset(site, until, how):
    source = (
        HEAD
        + """
    resets = 0

    @hookimpl
    def reset(self, transaction):
        self.resets += 1
"""
    )
    gateway = await site(one=source)
    mta = await gateway.mta()
    await mta.begin()
    steps = {
        "mail": p.Mail(b"<a@b.example>"),
        "rcpt": p.Rcpt(b"<abc@example.org>"),
        "data": p.Data(),
        "header": p.Header(b"A", b"b"),
        "eoh": p.EndOfHeaders(),
        "body": p.Body(b"x" * 60_000),
    }
    for name, step in steps.items():
        assert await mta.ask(step) == p.Continue()
        if name == until:
            break
    if how == "abort":
        assert await mta.ask(p.Abort(), p.Helo(b"again")) == p.Continue()
    elif how == "mail":
        assert await mta.ask(p.Mail(b"<c@d.example>")) == p.Continue()
    elif how == "quit":
        assert await mta.ask(p.Quit()) is None
    else:
        mta.close()
        while gateway.worker.reception.sessions():
            await asyncio.sleep(0)
    await gateway.worker.generation.chain.drain()
    assert gateway.worker.generation.plugins["one"].instance.resets == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        b"\0\0\0\x01?",
        b"GET / HTTP/1.0\r\n\r\n",
        b"\0\0\0\x01E",
        b"\0\0\0\x05Hbad\0",
    ],
)
async def test_nonsense_ends_the_connection_and_the_next_one_is_served(site, raw):
    gateway = await site()
    mta = await gateway.mta()
    await mta.negotiate()
    mta.writer.write(raw)
    mta.writer.write_eof()
    assert await mta.answer() is None
    assert await message(await gateway.mta()) == p.Accept()


async def test_what_need_not_be_answered_is_not(site):
    gateway = await site()
    mta = await gateway.mta()
    agreed = await mta.negotiate(steps=0x1FFFFF)
    assert (
        agreed.steps
        == Steps.NO_UNKNOWN | Steps.NR_HEADER | Steps.NR_EOH | Steps.NR_BODY | Steps.LEADING_SPACE
    )
    await mta.ask(p.Connect(b"h"))
    await mta.envelope()
    await mta.ask(p.Data())
    content = [p.Header(b"A", b" b"), p.EndOfHeaders(), p.Body(b"x\r"), p.Body(b"\n")]
    assert await mta.verdict(*content, p.EndOfMessage(b"the rest\r\n")) == p.Accept()


async def test_a_stop_lets_the_message_under_way_come_to_its_answer(site):
    gateway = await site()
    idle, busy = await gateway.mta(), await gateway.mta()
    for mta in (idle, busy):
        await mta.begin()
    await busy.envelope()
    gateway.worker._serving.close()
    stopping = asyncio.create_task(gateway.worker._serving.dismiss(10))
    assert await idle.answer() is None
    assert await busy.content() == p.Accept()
    assert await busy.answer() is None
    await stopping


async def test_a_slow_plugin_is_told_as_progress(site, monkeypatch):
    import gateway.milter.server as module

    monkeypatch.setattr(module, "PROGRESS", 0.02)
    source = (
        HEAD
        + """
    @hookimpl
    async def mail(self, transaction):
        import asyncio
        await asyncio.sleep(0.15)
"""
    )
    mta = await (await site(one=source)).mta()
    await mta.begin()
    mta.send(p.Mail(b"<a@b.example>"))
    seen = []
    while not seen or isinstance(seen[-1], p.Progress):
        packet = mta.decoder.next_packet()
        if packet is None:
            mta.decoder.receive(await mta.reader.read(100))
        else:
            seen.append(packet)
    assert len(seen) > 2
    assert seen[-1] == p.Continue()


async def test_one_connection_may_carry_many_sessions(site):
    gateway = await site()
    mta = await gateway.mta()
    await mta.begin()
    mta.send(p.QuitForNext())
    assert await mta.ask(p.Connect(b"other.example", b"4", 1, b"203.0.113.10")) == p.Continue()
    assert await mta.envelope() == [p.Continue(), p.Continue()]
    assert await mta.content() == p.Accept()
    assert {event.client_ip for event in gateway.told("session.opened")} == {"203.0.113.9", "203.0.113.10"}


def test_an_mta_that_left_during_a_command_is_lost_to_the_loop_that_gateways_use(not_started, monkeypatch):
    """A transport of uvloop refuses to write once the MTA is gone, where asyncio's says nothing."""
    monkeypatch.setattr("gateway.milter.server.PROGRESS", 0.01)
    source = (
        HEAD
        + """
    @hookimpl
    async def helo(self):
        import asyncio
        while not self.site.state.joinpath("go").exists():
            await asyncio.sleep(0.01)
"""
    )
    told = []

    async def leaves():
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        site = not_started
        await site.start("", {"one": source})
        try:
            mta = await site.mta()
            await mta.negotiate()
            await mta.ask(p.Connect(b"client.example", b"4", 4711, b"203.0.113.9"))
            mta.send(p.Helo(b"client.example"))
            # It says that it is at work.
            await mta.reader.readexactly(5)
            mta.writer.transport.abort()
            await asyncio.sleep(0.1)
            (site.folder / "var" / "go").touch()
            async with asyncio.timeout(10):
                while site.worker.reception.sessions():
                    await asyncio.sleep(0.01)
            (closed,) = site.told("session.closed")
            assert closed.reason == "lost"
        finally:
            await site.stop()

    uvloop.run(leaves())
    gc.collect()
    assert told == []
