import pytest

from gateway import FileBody, Message, Stages
from gateway.testing import message, transaction

YAML = """\
footer:
  senders: ["@example.org", ann@example.net]
  text: |
    Example Org, 1 Example Street
"""
FOOTER = b"-- \nExample Org, 1 Example Street\n"


@pytest.fixture
def says(mailward_plugin, contrib):
    plugin = mailward_plugin(contrib("footer"), YAML)

    async def ask(content, sender="bob@example.org", **more):
        found = await plugin.says(Stages.incoming, transaction(sender, **more), content)
        return bytes(found) if found else None

    return ask


async def test_plain_text_of_our_senders_gets_it(says):
    content = message("hello\n")
    assert await says(content) == bytes(content) + FOOTER
    assert await says(message("hello"), "Ann@Example.net") == bytes(message("hello\n")) + FOOTER
    eight = message(
        "gr\u00fc\u00dfe\n",
        {"Content-Type": "text/plain; charset=UTF-8", "Content-Transfer-Encoding": "8bit"},
    )
    assert await says(eight) == bytes(eight) + FOOTER


async def test_quoted_printable_stays_quoted_printable(says):
    fields = {"Content-Type": "text/plain; charset=utf-8", "Content-Transfer-Encoding": "quoted-printable"}
    content = message("gr=C3=BC=C3=9Fe\n", fields)
    assert await says(content) == bytes(content) + b"--=20\nExample Org, 1 Example Street\n"


@pytest.mark.parametrize(
    "fields",
    [
        {"DKIM-Signature": "v=1; b=abc"},
        {"ARC-Seal": "i=1"},
        {"Content-Type": 'multipart/signed; boundary="x"'},
        {"Content-Type": 'multipart/mixed; boundary="x"'},
        {"Content-Type": "text/html"},
        {"Content-Type": "application/pkcs7-mime"},
        {"Content-Type": "text/plain; charset=utf-16"},
        {"Content-Type": "text/plain\nContent-Type: text/plain"},
        {"Content-Transfer-Encoding": "base64"},
    ],
    ids=str,
)
async def test_what_is_signed_or_no_plain_text_is_left_alone(says, fields):
    assert await says(message("hello\n", fields)) is None


async def test_armour_is_left_alone(says):
    assert await says(message("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nhello\n")) is None


async def test_mail_of_others_and_bounces_are_left_alone(says):
    assert await says(message(), "ann@example.com") is None
    assert await says(message(), "", session=None, origin="bounce") is None


async def test_a_message_without_a_body_or_with_a_large_one_is_left_alone(says, tmp_path):
    assert await says(Message.parse(b"Subject: no empty line")) is None
    (tmp_path / "body").write_bytes(b"\nlarge\n")
    assert await says(Message(b"Subject: large\n", FileBody(tmp_path / "body", 7))) is None


async def test_a_text_beyond_ascii_goes_only_where_utf_8_is(mailward_plugin, contrib):
    plugin = mailward_plugin(contrib("footer"), 'footer: {senders: [a@b.example], text: "Gr\u00fc\u00dfe"}')
    sent = transaction("a@b.example")
    assert await plugin.says(Stages.incoming, sent, message()) is None
    fields = {"Content-Type": "text/plain; charset=utf-8", "Content-Transfer-Encoding": "quoted-printable"}
    assert bytes(await plugin.says(Stages.incoming, sent, message("a\n", fields))).endswith(
        b"\nGr=C3=BC=C3=9Fe\n"
    )


def test_the_footer_leaves_with_the_mail(mailward_gateway, contrib):
    gateway = mailward_gateway(contrib("footer"), yaml=YAML)
    gateway.send("bob@example.org", ["friend@elsewhere.example"])
    (arrived,) = gateway.arrived()
    assert arrived.endswith(b"\n\nhello\n" + FOOTER)
