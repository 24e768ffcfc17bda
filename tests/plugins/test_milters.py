"""Filters that speak milter: what they are shown, what their answers become, and filters that fail."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from gateway.address import Address
from gateway.decision import Accept, Defer, Discard, Disconnect, Hold, Reject
from gateway.envelope import Recipient
from gateway.hookspecs import Stages
from gateway.message import Message
from gateway.milter import packets as p
from gateway.milter import wire
from gateway.milter.packets import ALL_ACTIONS, Steps

OURS = b"Received: from x (x [203.0.113.9])\n\tby mx.example with ESMTP\n\tid 1; today\n"
RAW = OURS + b"From: a@b.example\nSubject: hi\n\tthere\n\nline\n"


class ScriptedFilter:
    """Answers by a script: command -> answer, or a list of them; it keeps what it was shown."""

    def __init__(self, script=None, *, actions=ALL_ACTIONS, steps=0, macros=()):
        self.script = dict(script or {})
        self.agreed = p.Negotiate(6, int(actions), int(steps), macros)
        self.heard, self.connections, self.ended = [], 0, asyncio.Event()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self.server.close()

    async def serve(self, reader, writer):
        self.connections += 1
        decoder = wire.Decoder(wire.COMMANDS)
        try:
            while data := await reader.read(65536):
                decoder.receive(data)
                while (packet := decoder.next_packet()) is not None:
                    self.heard.append(packet)
                    for answer in self.answers(packet):
                        writer.write(answer if isinstance(answer, bytes) else wire.encode(answer))
        except (OSError, EOFError):
            pass
        finally:
            writer.close()
            self.ended.set()

    def answers(self, packet):
        kind = type(packet)
        if kind is p.Negotiate:
            return [self.agreed]
        answer = self.script.get(kind, p.Accept() if kind is p.EndOfMessage else p.Continue())
        if callable(answer):
            answer = answer(packet)
        if answer == "close":
            raise EOFError
        silent = kind in (p.Macros, p.Abort, p.Quit) and kind not in self.script
        return [] if silent else answer if isinstance(answer, list) else [answer]

    def of(self, *kinds):
        return [packet for packet in self.heard if isinstance(packet, kinds)]


@pytest.fixture
async def asked(chain_of, transaction):
    """Give `await asked(*filters, yaml=...)`: (decision, message, transaction) of a message shown to them."""
    async with AsyncExitStack() as stack:

        async def ask(*filters, each="", plugin="", raw=RAW, recipients=("c@example.org",), **session):
            filters = [await stack.enter_async_context(one) for one in filters]
            lines = "".join(
                f"    - {{address: '127.0.0.1:{one.port}', name: f{n}{each}}}\n"
                for n, one in enumerate(filters)
            )
            chain = chain_of(f"milters:\n{plugin}  filters:\n{lines}", "milters")
            await chain.life("milters", Stages.startup)
            mail = transaction(**session)
            mail.recipients = [Recipient.of(one) for one in recipients]
            message = Message.parse(raw)
            ask.chain = chain
            answer = await chain.ask(Stages.message, mail, message)
            return answer.value, message, mail

        yield ask


async def test_a_filter_that_says_yes_changes_nothing_and_sees_all_but_our_received(asked):
    one = ScriptedFilter(steps=Steps.LEADING_SPACE)
    decision, message, _ = await asked(one, helo="client.example", user="joe")
    assert (decision, bytes(message)) == (None, RAW)
    events = [packet for packet in one.heard if not isinstance(packet, p.Macros)]
    assert events == [
        p.Negotiate(6, 0x1FF, 0x1FFFFF),
        p.Connect(b"[203.0.113.9]", b"4", 4711, b"203.0.113.9"),
        p.Helo(b"client.example"),
        p.Mail(b"<s@remote.example>"),
        p.Rcpt(b"<c@example.org>"),
        p.Data(),
        p.Header(b"From", b" a@b.example"),
        p.Header(b"Subject", b" hi\n\tthere"),
        p.EndOfHeaders(),
        p.Body(b"line\r\n"),
        p.EndOfMessage(),
        *one.of(p.Quit),
    ]
    macros = {packet.command: dict(packet.values) for packet in one.of(p.Macros)}
    assert macros[b"C"][b"j"] == b"mx.example"
    assert macros[b"M"][b"auth_authen"] == b"joe"
    assert macros[b"M"][b"i"] == macros[b"E"][b"i"] == b"message-1"
    assert macros[b"R"][b"rcpt_addr"] == b"c@example.org"


async def test_nobody_is_called_authenticated_who_is_not(asked):
    one = ScriptedFilter()
    await asked(one)
    assert not any(b"auth_type" in dict(packet.values) for packet in one.of(p.Macros))


async def told_of(asked, **session):
    one = ScriptedFilter()
    await asked(one, **session)
    return {packet.command: dict(packet.values) for packet in one.of(p.Macros)}


@pytest.mark.parametrize(
    ("session", "told"),
    [
        ({"user": "joe", "auth": "SCRAM-SHA-256"}, (b"SCRAM-SHA-256", b"joe")),
        # A proxy has said so.
        ({"user": "joe"}, (b"EXTERNAL", b"joe")),
        ({"auth": "PLAIN"}, (None, None)),
    ],
)
async def test_a_login_has_the_mechanism_that_it_came_by(asked, session, told):
    at_mail = (await told_of(asked, **session))[b"M"]
    assert (at_mail.get(b"auth_type"), at_mail.get(b"auth_authen")) == told


@pytest.mark.parametrize(
    ("tls", "certificate", "told"),
    [
        ("TLSv1.3 TLS_AES_256_GCM_SHA384", "", (b"TLSv1.3", b"TLS_AES_256_GCM_SHA384", b"256", b"NO")),
        (
            "TLSv1.2 ECDHE-RSA-AES128-GCM-SHA256",
            "ab12",
            (b"TLSv1.2", b"ECDHE-RSA-AES128-GCM-SHA256", b"128", b"OK"),
        ),
        (
            "TLSv1.3 TLS_CHACHA20_POLY1305_SHA256",
            "",
            (b"TLSv1.3", b"TLS_CHACHA20_POLY1305_SHA256", b"256", b"NO"),
        ),
    ],
)
async def test_tls_is_told_as_sendmail_tells_it(asked, tls, certificate, told):
    at_helo = (await told_of(asked, tls=tls, certificate=certificate))[b"H"]
    assert tuple(at_helo[name] for name in (b"tls_version", b"cipher", b"cipher_bits", b"verify")) == told


async def test_nothing_is_told_of_tls_where_there_is_none(asked):
    assert b"H" not in await told_of(asked)


async def test_what_makes_a_received_field_is_there_at_the_first_recipient(asked):
    told = await told_of(asked, helo="client.example", extended=True)
    known = {**told[b"C"], **told[b"M"], **told[b"R"]}
    assert {b"_", b"j", b"v", b"Z", b"i", b"r", b"s", b"b"} <= known.keys()
    assert (known[b"r"], known[b"s"]) == (b"ESMTP", b"client.example")


async def test_a_filter_gets_the_macros_that_it_asks_for(asked):
    one = ScriptedFilter(macros=((2, (b"client_addr", b"nobody_knows")), (5, ())))
    await asked(one)
    macros = {packet.command: dict(packet.values) for packet in one.of(p.Macros)}
    assert macros[b"M"] == {b"client_addr": b"203.0.113.9"}
    assert b"E" not in macros
    assert b"j" in macros[b"C"]


ANSWERS = [
    (p.Reject(), Reject),
    (p.TempFail(), Defer),
    (p.Shutdown(), Disconnect),
    (p.ReplyCode(b"550 5.7.9 spam"), Reject),
    (p.ReplyCode(b"450-4.7.9 a 100%%\r\n450 4.7.9 b"), Defer),
]
SHOWN = [p.Connect, p.Helo, p.Mail, p.Data, p.Header, p.EndOfHeaders, p.Body, p.EndOfMessage]


@pytest.mark.parametrize("command", SHOWN)
@pytest.mark.parametrize(("answer", "kind"), ANSWERS)
async def test_a_refusal_anywhere_is_the_decision_and_ends_it(asked, command, answer, kind):
    one, two = ScriptedFilter({command: answer}), ScriptedFilter()
    decision, message, _ = await asked(one, two)
    assert type(decision) is kind
    assert decision.reason == "milter f0"
    assert bytes(message) == RAW
    assert two.heard == []
    assert [type(packet) for packet in one.heard if not isinstance(packet, p.Macros)][-1] in (command, p.Quit)


async def test_the_reply_of_a_filter_is_what_the_client_hears(asked):
    decision, _, _ = await asked(
        ScriptedFilter({p.EndOfMessage: p.ReplyCode(b"450-4.7.9 a 100%%\r\n450 4.7.9 b")})
    )
    assert decision == Defer("4.7.9", "a 100% b", reason="milter f0")


@pytest.mark.parametrize("command", SHOWN)
async def test_after_accept_a_filter_sees_no_more_and_the_next_one_sees_all(asked, command):
    one, two = ScriptedFilter({command: p.Accept()}), ScriptedFilter()
    decision, _, _ = await asked(one, two)
    assert decision is None
    assert one.of(*SHOWN)[-1] == one.of(command)[-1]
    assert len(one.of(command)) == 1
    assert two.of(p.EndOfMessage)


@pytest.mark.parametrize(
    ("when", "seen"),
    [
        ("{authenticated: false}", True),
        ("{authenticated: true}", False),
        ("{domains: [example.org]}", True),
        ("{domains: [example.net], listener: mx}", False),
        ("{networks: [198.51.100.0/24]}", False),
    ],
)
async def test_a_filter_sees_the_mail_that_it_is_for(asked, when, seen):
    one = ScriptedFilter({p.EndOfMessage: p.Reject()})
    decision, _, _ = await asked(one, each=f", when: {when}")
    assert bool(one.connections) is seen
    assert isinstance(decision, Reject) is seen


async def test_a_plugin_may_hold_filters_for_some_mail_only(asked):
    one = ScriptedFilter({p.EndOfMessage: p.Reject()})
    assert (await asked(one, plugin="  when: {authenticated: true}\n"))[0] is None
    assert not one.connections


async def test_discard_and_quarantine(asked):
    assert (await asked(ScriptedFilter({p.EndOfMessage: p.Discard()})))[0] == Discard("milter f0")
    held = ScriptedFilter({p.EndOfMessage: [p.Quarantine(b"virus?"), p.Accept()]})
    assert (await asked(held, ScriptedFilter()))[0] == Hold("virus?")
    refused = ScriptedFilter({p.EndOfMessage: p.Reject()})
    assert type((await asked(held, refused))[0]) is Reject


async def test_edits_are_made_in_order_and_the_next_filter_sees_them(asked):
    edits = [
        p.InsertHeader(0, b"X-Top", b"1"),
        p.ChangeHeader(1, b"Subject", b"new"),
        p.AddHeader(b"X-End", b"2"),
        p.AddRecipient(b"<more@example.org>"),
        p.DeleteRecipient(b"<C@example.org>"),
        p.DeleteRecipient(b"<c@example.org>"),
        p.ChangeSender(b"<new@remote.example>"),
        p.ReplaceBody(b"one\r"),
        p.ReplaceBody(b"\ntwo\r\n"),
        p.Progress(),
        p.Accept(),
    ]
    one, two = ScriptedFilter({p.EndOfMessage: edits}), ScriptedFilter()
    decision, message, mail = await asked(one, two)
    assert decision is None
    assert bytes(message) == b"X-Top: 1\n" + OURS + b"From: a@b.example\nSubject: new\nX-End: 2\n\none\ntwo\n"
    assert mail.sender == "new@remote.example"
    assert [one.address for one in mail.recipients] == ["more@example.org"]
    assert [packet.name for packet in two.of(p.Header)] == [b"X-Top", b"From", b"Subject", b"X-End"]
    assert two.of(p.Body) == [p.Body(b"one\r\ntwo\r\n")]
    assert two.of(p.Mail) == [p.Mail(b"<new@remote.example>")]


async def test_a_large_body_is_shown_in_pieces_and_may_be_replaced(asked):
    body = b"".join(b"%06d\n" % n for n in range(100_000))
    new = p.ReplaceBody(b"x" * 60_000)
    one = ScriptedFilter({p.EndOfMessage: [new] * 10 + [p.Accept()], p.Body: []}, steps=Steps.NR_BODY)
    _, message, _ = await asked(one, raw=RAW[:-5] + body)
    assert b"".join(packet.content for packet in one.of(p.Body)) == body.replace(b"\n", b"\r\n")
    assert max(len(packet.content) for packet in one.of(p.Body)) <= wire.LARGEST
    assert bytes(message).endswith(b"\n\n" + b"x" * 600_000)


async def test_refusals_of_recipients_are_theirs_alone(asked):
    def at(packet):
        return p.ReplyCode(b"550 5.1.1 who?") if packet.address == b"<bad@example.org>" else p.Continue()

    one, two = ScriptedFilter({p.Rcpt: at}), ScriptedFilter()
    decision, _, mail = await asked(one, two, recipients=("bad@example.org", "c@example.org"))
    refused = Reject("5.1.1", "who?", reason="milter f0")
    assert decision == {Address("bad@example.org"): refused, Address("c@example.org"): Accept()}
    assert two.of(p.Rcpt) == [p.Rcpt(b"<c@example.org>")]
    assert len(mail.recipients) == 2


async def test_when_every_recipient_is_refused_the_content_is_not_shown(asked):
    one = ScriptedFilter({p.Rcpt: p.TempFail()})
    decision, _, _ = await asked(one, recipients=("a@example.org", "b@example.org"))
    assert {type(one) for one in decision.values()} == {Defer}
    await one.ended.wait()
    assert one.of(p.Abort)
    assert not one.of(p.Header)


@pytest.mark.parametrize("bit", ["CONNECT", "HELO", "MAIL", "RCPT", "DATA", "HEADER", "EOH", "BODY"])
async def test_a_step_that_is_not_answered_is_not_waited_for(asked, bit):
    kinds = dict(
        zip(
            ["CONNECT", "HELO", "MAIL", "RCPT", "DATA", "HEADER", "EOH", "BODY"],
            [p.Connect, p.Helo, p.Mail, p.Rcpt, p.Data, p.Header, p.EndOfHeaders, p.Body],
            strict=True,
        )
    )
    one = ScriptedFilter({kinds[bit]: []}, steps=Steps[f"NR_{bit}"])
    assert (await asked(one))[0] is None
    assert one.of(p.EndOfMessage)


async def test_steps_that_a_filter_does_not_want_are_left_out(asked):
    one = ScriptedFilter(steps=Steps.NO_BODY | Steps.NO_HELO | Steps.NO_HEADERS)
    assert (await asked(one))[0] is None
    assert one.of(p.Body, p.Helo, p.Header) == []


async def test_skip_ends_one_kind_of_packet_only(asked):
    one = ScriptedFilter({p.Body: p.Skip(), p.Header: p.Skip()})
    await asked(one, raw=RAW + b"x\n" * 100_000)
    assert (len(one.of(p.Body)), len(one.of(p.Header)), len(one.of(p.EndOfMessage))) == (1, 1, 1)


async def test_a_space_is_put_in_only_when_the_filter_does_not(asked):
    script = {p.EndOfMessage: [p.AddHeader(b"X", b" v"), p.Accept()]}
    _, message, _ = await asked(ScriptedFilter(script, steps=Steps.LEADING_SPACE))
    assert b"\nX: v\n" in bytes(message)


FAULTS = {
    "junk": {p.Mail: b"\xff\xff\xff\xff"},
    "edit too early": {p.Header: p.AddHeader(b"X", b"v")},
    "injection": {p.EndOfMessage: [p.AddHeader(b"X", b"a\nY: b"), p.Accept()]},
    "split reply": {p.EndOfMessage: p.ReplyCode(b"550 x\r\n250 ok")},
    "lying reply": {p.EndOfMessage: p.ReplyCode(b"550 4.7.1 x")},
    "no refusal": {p.EndOfMessage: p.ReplyCode(b"250 2.0.0 ok")},
    "obsolete": {p.Connect: p.ConnectionFailed()},
    "skip at the end": {p.EndOfMessage: p.Skip()},
    "closed": {p.Body: "close"},
    "silent": {p.EndOfMessage: []},
}
POLICIES = {"defer": Defer, "reject": Reject, "hold": Hold, "skip": type(None)}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_filter_that_fails_is_answered_by_its_policy(asked, fault, policy):
    one, two = ScriptedFilter(FAULTS[fault]), ScriptedFilter()
    decision, message, _ = await asked(one, two, each=f", on_error: {policy}, content_timeout: 0.2s")
    assert type(decision) is POLICIES[policy]
    assert bytes(message) == RAW
    assert bool(two.heard) == (policy in ("hold", "skip"))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("command", [*SHOWN, p.Rcpt])
async def test_a_filter_that_dies_anywhere_is_answered_by_its_policy(asked, command, policy):
    one = ScriptedFilter({command: "close"})
    decision, message, mail = await asked(one, each=f", on_error: {policy}")
    assert type(decision) is POLICIES[policy]
    assert (bytes(message), len(mail.recipients)) == (RAW, 1)


async def test_a_filter_that_says_wait_is_waited_for(asked):
    class Slow(ScriptedFilter):
        async def serve(self, reader, writer):
            async def later():
                for _ in range(4):
                    await asyncio.sleep(0.1)
                    writer.write(wire.encode(p.Progress()))
                writer.write(wire.encode(p.Accept()))

            self.script[p.EndOfMessage] = lambda _: self.tasks.append(asyncio.ensure_future(later())) or []
            self.tasks = []
            await super().serve(reader, writer)

    decision, _, _ = await asked(Slow(), each=", content_timeout: 0.2s, on_error: reject")
    assert decision is None


async def test_a_filter_that_is_not_there_is_left_alone_for_a_while(asked, clock):
    one = ScriptedFilter()
    async with one:
        pass
    await one.server.wait_closed()
    decision, _, mail = await asked(_Gone(one.port), each=", on_error: defer")
    assert decision == Defer(
        "4.7.1", "the message cannot be checked now, try again later", reason="milter f0 failed"
    )
    async with _At(one, one.port):
        again = await asked.chain.ask(Stages.message, mail, Message.parse(RAW))
        assert type(again.value) is Defer
        assert one.connections == 0
        clock.advance(11)
        assert (await asked.chain.ask(Stages.message, mail, Message.parse(RAW))).value is None
        assert one.connections == 1


class _Gone:
    def __init__(self, port):
        self.port = port

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass


class _At:
    """A filter at a port that was free a moment ago."""

    def __init__(self, one, port):
        self.one, self.port = one, port

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.one.serve, "127.0.0.1", self.port)

    async def __aexit__(self, *_):
        self.server.close()


@pytest.mark.parametrize(("size", "fits"), [(wire.LARGEST - 3, True), (wire.LARGEST - 2, False)])
async def test_a_header_field_that_is_too_long_for_a_packet_is_never_split(asked, size, fits):
    one = ScriptedFilter(steps=Steps.LEADING_SPACE)
    raw = b"X:" + b"v" * size + b"\n\nbody\n"
    decision, _, _ = await asked(one, raw=raw)
    assert (decision is None) == fits
    assert type(decision) in (type(None), Defer)
    assert all(len(packet.value) == size for packet in one.of(p.Header))


async def test_results_that_claim_to_be_ours_are_removed_where_they_came_with_the_message(asked):
    one = ScriptedFilter()
    fake = b"authentication-results: (c) MX.example; dkim=pass\n"
    other = b"Authentication-Results: other.example; dkim=pass\n"
    mine = b"Authentication-Results: mx.example; spf=pass\n"
    _, message, _ = await asked(one, raw=mine + OURS + fake + other + b"From: a@b.example\n\nx\n")
    assert bytes(message) == mine + OURS + other + b"From: a@b.example\n\nx\n"
    assert [packet.name for packet in one.of(p.Header)].count(b"Authentication-Results") == 2


async def test_bytes_that_are_no_text_reach_the_filter_and_stay(asked):
    one = ScriptedFilter(steps=Steps.LEADING_SPACE)
    raw = b"Subject:\xff\xfe caf\xe9\n\n\x80\xff\n"
    decision, message, _ = await asked(one, raw=raw, helo="b\udcffd")
    assert (decision, bytes(message)) == (None, raw)
    assert one.of(p.Helo, p.Header, p.Body) == [
        p.Helo(b"b\xffd"),
        p.Header(b"Subject", b"\xff\xfe caf\xe9"),
        p.Body(b"\x80\xff\r\n"),
    ]


async def test_mail_that_was_born_here_is_shown_as_from_this_machine_and_bounces_are_not(asked):
    one = ScriptedFilter()
    _, _, mail = await asked(one)
    mail.session, mail.origin = None, "submit"
    await asked.chain.ask(Stages.message, mail, Message.parse(RAW))
    assert one.of(p.Connect)[-1] == p.Connect(b"localhost", b"4", 0, b"127.0.0.1")
    mail.origin = "bounce"
    await asked.chain.ask(Stages.message, mail, Message.parse(RAW))
    assert one.connections == 2


async def test_a_dry_run_changes_nothing(asked):
    edits = [
        p.AddHeader(b"X", b"v"),
        p.ChangeSender(b"<>"),
        p.DeleteRecipient(b"<c@example.org>"),
        p.Accept(),
    ]
    one = ScriptedFilter({p.EndOfMessage: edits})
    decision, message, mail = await asked(one, plugin="  dry_run: true\n")
    assert (decision, bytes(message), mail.sender, len(mail.recipients)) == (None, RAW, "s@remote.example", 1)
