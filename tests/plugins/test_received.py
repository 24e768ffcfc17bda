"""received: one trace field in front, that no client can shape."""

import re
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import Client, Message, Recipient, Session, Stages, Transaction

MAIL = b"Subject: t\n\nbody\n"


async def trace(chain, one, raw=MAIL):
    """Give the field that was added, whole; the rest of the message must be untouched."""
    message = (await chain.transform(Stages.incoming, one, Message.parse(raw))).value
    whole = bytes(message)
    assert whole.endswith(raw)
    field = whole[: len(whole) - len(raw)].decode("ascii")
    assert re.fullmatch(r"Received: [^\n]+\n(?:[ \t]+[^\s][^\n]*\n)*", field)
    assert all(len(line) <= 998 for line in field.split("\n"))
    return field


async def test_the_rfc_form(chain_of, transaction):
    one = transaction("192.0.2.7", helo="client.example", extended=True, tls="TLSv1.3 TLS_AES_256_GCM_SHA384")
    one.session.client.name = "client.example"
    one.recipients.append(Recipient.of("u@example.org"))
    assert await trace(chain_of("", "received"), one) == (
        "Received: from client.example (client.example [192.0.2.7])\n"
        "\tby mx.example with ESMTPS (TLSv1.3 TLS_AES_256_GCM_SHA384)\n"
        "\tid message-1\n"
        "\tfor <u@example.org>;\n"
        "\tTue, 14 Nov 2023 22:13:20 +0000\n"
    )


@pytest.mark.parametrize(
    ("session", "params", "word"),
    [
        ({}, {}, "SMTP"),
        ({"extended": True}, {}, "ESMTP"),
        ({"extended": True, "tls": "x"}, {}, "ESMTPS"),
        ({"extended": True, "user": "joe"}, {}, "ESMTPA"),
        ({"extended": True, "tls": "x", "user": "joe"}, {}, "ESMTPSA"),
        ({"extended": True}, {"SMTPUTF8": ""}, "UTF8SMTP"),
        ({"extended": True, "tls": "x", "user": "joe"}, {"SMTPUTF8": ""}, "UTF8SMTPSA"),
        ({"protocol": "lmtp", "extended": True}, {}, "LMTP"),
        ({"protocol": "lmtp", "extended": True, "tls": "x"}, {"SMTPUTF8": ""}, "UTF8LMTPS"),
    ],
)
async def test_the_protocol_is_named_as_registered(chain_of, transaction, session, params, word):
    one = transaction("192.0.2.7", **session)
    one.params = params
    field = await trace(chain_of("", "received"), one)
    assert re.search(rf"with {word}[ \n]", field)
    assert "joe" not in field


async def test_an_ipv6_client_is_a_literal_of_its_kind(chain_of, transaction):
    assert "(unknown [IPv6:2001:db8::1])" in await trace(chain_of("", "received"), transaction("2001:db8::1"))


async def test_no_recipient_sees_another(chain_of, transaction):
    one = transaction()
    one.recipients += [Recipient.of("a@example.org"), Recipient.of("b@example.org")]
    assert "for" not in await trace(chain_of("", "received"), one)


@pytest.mark.parametrize("address", ["ü@example.org", "x" * 300 + "@example.org", "a b@c", "", "a@b\tc"])
async def test_an_address_that_does_not_fit_is_left_out(chain_of, transaction, address):
    one = transaction()
    one.recipients.append(Recipient.of(address))
    assert "for" not in await trace(chain_of("", "received"), one)


async def test_mail_born_here_says_so(chain_of):
    one = Transaction("message-2", "", "bounce", parent="message-1")
    field = await trace(chain_of("", "received"), one)
    assert field.startswith("Received: by mx.example (bounce of message-1)\n\tid message-2;\n")
    assert (await trace(chain_of("", "received"), replace(one, origin="submit", parent=""))).startswith(
        "Received: by mx.example (submit)\n"
    )


QMAIL = "received: {format: qmail}\n"


@pytest.mark.parametrize(
    ("name", "helo", "ip", "start"),
    [
        ("client.example", "client.example", "192.0.2.7", "from client.example (192.0.2.7)"),
        ("client.example", "CLIENT.Example", "192.0.2.7", "from client.example (192.0.2.7)"),
        (
            "client.example",
            "liar.example",
            "192.0.2.7",
            "from client.example (HELO liar.example) (192.0.2.7)",
        ),
        ("", "h", "192.0.2.7", "from unknown (HELO h) (192.0.2.7)"),
        ("", "unknown", "192.0.2.7", "from unknown (192.0.2.7)"),
        ("", "", "", "from unknown (unknown)"),
        ("c", 'a b(c)<d>\\;"e" é', "192.0.2.7", "from c (HELO a?b?c??d????e????) (192.0.2.7)"),
        (
            "c",
            "a-b_c.d+e=f@g%h:i[j]k/l!m",
            "192.0.2.7",
            "from c (HELO a-b?c.d+e=f@g%h:i[j]k/l?m) (192.0.2.7)",
        ),
    ],
)
async def test_the_qmail_form(chain_of, transaction, name, helo, ip, start):
    one = transaction(ip, helo=helo, extended=True)
    one.session.client.name = name
    assert await trace(chain_of(QMAIL, "received"), one) == (
        f"Received: {start}\n  by mx.example with SMTP; 14 Nov 2023 22:13:20 -0000\n"
    )


async def test_the_qmail_form_of_mail_born_here(chain_of):
    chain = chain_of(QMAIL, "received")
    bounce = Transaction("message-2", "", "bounce")
    assert (await trace(chain, bounce)).startswith(
        "Received: (qmail message-2 invoked for bounce); 14 Nov 2023"
    )
    forward = replace(bounce, origin="forward")
    assert (await trace(chain, forward)).startswith("Received: (qmail message-2 invoked by alias); ")


@pytest.mark.parametrize(
    ("user", "who"),
    [("root", "by uid 0"), ("uid 31999", "by uid 31999"), ("alias", "by alias"), ("qmails", "for bounce")],
)
async def test_mail_of_local_programs_says_who_ran_them(chain_of, user, who):
    one = Transaction("message-3", "", "submit", Session("s", "submit", "submit", Client(""), user=user))
    shown = await trace(chain_of(QMAIL, "received"), one)
    assert shown == f"Received: (qmail message-3 invoked {who}); 14 Nov 2023 22:13:20 -0000\n"
    shown = await trace(chain_of("", "received"), one)
    assert shown.startswith(f"Received: by mx.example (submit {who})\n\tid message-3;\n")


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(helo=st.text(max_size=400), address=st.text(max_size=400), form=st.sampled_from(["", QMAIL]))
async def test_nothing_hostile_becomes_a_second_field(chain_of, transaction, helo, address, form):
    one = transaction("192.0.2.7", helo=helo)
    one.recipients.append(Recipient.of(address))
    field = await trace(chain_of(form, "received"), one)
    assert field.count("\n") <= 5
    assert field.isascii()


async def test_a_message_without_header_gets_one(chain_of, transaction):
    await trace(chain_of("", "received"), transaction(), b"\nbody only\n")
    await trace(chain_of("", "received"), transaction(), b"")
