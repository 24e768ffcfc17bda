import smtplib
from email.message import EmailMessage

import pytest

from gateway import FileBody, Message, Stages
from gateway.testing import message, transaction


def with_attachment(name, maintype="application", subtype="octet-stream"):
    made = EmailMessage()
    made["Subject"] = "hello"
    made.set_content("see the attachment\n")
    made.add_attachment(b"MZ\x90", maintype=maintype, subtype=subtype, filename=name)
    return made


@pytest.fixture
def says(mailward_plugin, contrib):
    plugin = mailward_plugin(contrib("attachment_block"))

    async def ask(content):
        answer = await plugin.says(Stages.message, transaction(), Message.parse(bytes(content)))
        return answer.reason if answer else None

    return ask


@pytest.mark.parametrize("name", ["a.exe", "A.EXE", "invoice.pdf.exe", "a.exe. ", "ä.exe", "rechnung ä.js"])
async def test_an_unwanted_name_is_refused_however_it_is_written(says, name):
    assert await says(with_attachment(name)) == "attachment"


async def test_an_unwanted_type_is_refused_whatever_its_name(says):
    assert await says(with_attachment("harmless.txt", subtype="x-msdownload")) == "attachment"


async def test_other_attachments_pass(says):
    assert await says(with_attachment("a.pdf")) is None
    assert await says(with_attachment("exe")) is None
    assert await says(message("see a.exe\n")) is None


async def test_a_forwarded_message_is_looked_into(says):
    outer = EmailMessage()
    outer.set_content("look\n")
    outer.add_attachment(with_attachment("a.scr"))
    assert await says(outer) == "attachment"


@pytest.mark.parametrize(
    "raw",
    [
        b"Content-Type: application/x; name=a.exe\n\nx\n",
        b'Content-Type: application/x;\n name="a.exe"\n\nx\n',
        b"Content-Disposition: attachment; filename*=utf-8''a%2Eexe\n\nx\n",
        b'Content-Disposition: attachment; filename="=?utf-8?q?a=2Eexe?="\n\nx\n',
        # A boundary ends a header that no empty line has ended.
        (b"Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: text/plain\n--x\n"
        b"Content-Type: a/b; name=a.exe\n\nx\n"),
        (b"Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: message/rfc822\n\n--x\n"
        b"Content-Type: a/b; name=a.exe\n\nx\n"),
        b"Content-Type: multipart/mixed; boundary=x\n \nX: y\n\n--x\nContent-Type: a/b; name=a.exe\n\nx\n",
    ],
)  # fmt: skip
async def test_the_many_ways_of_a_name(says, raw):
    assert await says(raw) == "attachment"


@pytest.mark.parametrize(
    "raw",
    [
        b"Content-Type: text/plain;" + b" a=b;" * 2000 + b"\n\nx\n",
        b"Content-Type: multipart/mixed; boundary=x\n\n" + b"--x\n\n" * 1001,
        b"".join(b"--%d\nContent-Type: multipart/mixed; boundary=%d\n\n" % (i, i + 1) for i in range(60))[4:],
        b'Content-Disposition: attachment; filename="=?utf-8?b?YWFhY?="\n\nx\n',
        b'Content-Disposition: attachment; filename="=?no-such?q?a?="\n\nx\n',
    ],
)
async def test_what_nobody_could_look_into_is_refused(says, raw):
    assert await says(raw) == "too_complex"


async def test_a_large_body_is_read_from_its_file(mailward_plugin, contrib, tmp_path):
    raw = bytes(with_attachment("a.exe"))
    large = raw.replace(b"see the attachment\n", b"a line of text\n" * 100_000)
    whole = Message.parse(large)
    (tmp_path / "body").write_bytes(whole.body)
    content = Message(whole.header, FileBody(tmp_path / "body", len(whole.body)))
    plugin = mailward_plugin(contrib("attachment_block"), "attachment_block: {names: [.exe]}")
    assert (await plugin.says(Stages.message, transaction(), content)).reason == "attachment"


def test_a_client_is_told(mailward_gateway, contrib):
    gateway = mailward_gateway(contrib("attachment_block"))
    with pytest.raises(smtplib.SMTPDataError, match=r"554, b'5\.7\.1 attachments of this type"):
        gateway.send("ann@example.com", ["friend@elsewhere.example"], bytes(with_attachment("a.exe")))
    gateway.send("ann@example.com", ["friend@elsewhere.example"], bytes(with_attachment("a.pdf")))
    assert len(gateway.arrived()) == 1
