"""bounces with `format: rfc3464`, read by Python's mail parser and as bounce handlers read it."""

import email
import email.policy

import pytest

from gateway.address import Address
from gateway.envelope import Entry, Failure, Recipient
from gateway.hookspecs import Stages
from gateway.message import FileBody, Message

REMOTE = (
    "mx.far.example[192.0.2.9]:25: refused the recipient\nThe host said: 550-5.1.1 no\n550 5.1.1 such user\n"
)


@pytest.fixture
def bounce(chain_of, clock):
    """Give `bounce(failures, ...)`: the Birth and its content, parsed."""

    async def make(*failures, sender="s@remote.example", message=None, more=""):
        chain = chain_of(f"bounces: {{format: rfc3464{more}}}", "bounces")
        entry = Entry("1", Address(sender), message or Message(b"A: b\n", b"\nbody\n"), [], clock.time())
        birth = (await chain.ask(Stages.bounce, entry, list(failures))).value
        assert chain.emitted == []
        return birth, email.message_from_bytes(bytes(birth.message), policy=email.policy.default)

    return make


def failure(text="no\n", status="5.7.1", address="r@x.example", *, expired=False, **more):
    return Failure(Recipient.of(address, **more), text, status, expired)


def groups(parsed):
    """Give the groups of fields of the second part: of the message, then of each recipient."""
    return parsed.get_payload(1).get_payload()


async def test_it_is_a_report_of_three_parts_without_defects(bounce):
    birth, parsed = await bounce(failure())
    assert (birth.sender, birth.recipients, birth.origin) == ("", ("s@remote.example",), "bounce")
    assert parsed.get_content_type() == "multipart/report"
    assert parsed["Content-Type"].params["report-type"] == "delivery-status"
    assert parsed["Auto-Submitted"] == "auto-replied"
    assert (parsed["To"], parsed["From"]) == ("s@remote.example", "MAILER-DAEMON@mx.example")
    assert parsed["Message-ID"].endswith("@mx.example>")
    kinds = [part.get_content_type() for part in parsed.iter_parts()]
    assert kinds == ["text/plain", "message/delivery-status", "message/rfc822"]
    assert not any(part.defects for part in parsed.walk())
    assert "<r@x.example>:\nno\n" in parsed.get_payload(0).get_content()


async def test_programs_read_each_recipient(bounce):
    _, parsed = await bounce(
        failure(REMOTE, "5.1.1", "far@far.example"),
        failure("a program said\nno way (#5.7.2)\n", "5.7.2"),
        failure("", "", "none@x.example"),
    )
    message, far, program, none = groups(parsed)
    assert message["Reporting-MTA"] == "dns; mx.example"
    assert message["Arrival-Date"] == "Tue, 14 Nov 2023 22:13:20 -0000"
    assert dict(far) == {
        "Original-Recipient": "rfc822; far@far.example",
        "Final-Recipient": "rfc822; far@far.example",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mx.far.example",
        "Diagnostic-Code": "smtp; 550-5.1.1 no 550 5.1.1 such user",
        "Last-Attempt-Date": "Tue, 14 Nov 2023 22:13:20 -0000",
    }
    assert program["Diagnostic-Code"] == "x-mailward; a program said no way (#5.7.2)"
    assert "Remote-MTA" not in program
    assert none["Status"] == "5.0.0"
    assert "Diagnostic-Code" not in none


@pytest.mark.parametrize(
    ("status", "expired", "wanted"),
    [
        ("4.4.1", True, "4.4.1"),
        ("", True, "4.4.7"),
        ("4.3.0", False, "5.0.0"),
        ("5.1.1\nX: y", False, "5.0.0"),
        ("5.01.1", False, "5.0.0"),
    ],
)
async def test_a_status_is_one_and_fits_a_failure(bounce, status, expired, wanted):
    _, parsed = await bounce(failure(status=status, expired=expired))
    assert groups(parsed)[1]["Status"] == wanted


async def test_the_recipient_is_the_one_that_the_sender_knows(bounce):
    one = Recipient(Address("abc-r@v.example"), Address("r@v.example"), "virtual_domains", "f:4: v -> abc")
    birth, parsed = await bounce(Failure(one, "no\n", "5.1.1"))
    assert groups(parsed)[1]["Final-Recipient"] == "rfc822; r@v.example"
    assert b"abc-r" not in bytes(birth.message)


@pytest.mark.parametrize(
    "hostile",
    [
        "a\r\nBcc: v@x.example\r\n\r\n--\r\n",
        "x\n\nFinal-Recipient: rfc822; forged@x.example\nAction: delivered\n",
        "mx[192.0.2.1]:25: \nThe host said: 550 x\nAction: delivered\n\n--report-",
        "mx\x0b\x85\u2028[192.0.2.1]:25: no\nThe host said: 550 \0\x1b[31m\x0c\nX: y\n",
        "\udcff\udcfe\u00fc \U0001f4a5\n",
        "x" * 20_000,
        "\n\n\n",
        "=?utf-8?q?=0AX:_y?=\n",
    ],
)
async def test_no_report_and_no_address_forges_anything(bounce, hostile):
    names = ["Date", "From", "To", "Subject", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"]
    birth, parsed = await bounce(
        failure(hostile), failure(address=f"{hostile[:300]}@x.example"), sender=f"{hostile[:300]}@r.example"
    )
    assert [name for name, _ in birth.message.fields()] == names
    assert len(list(parsed.iter_parts())) == 3
    assert len(groups(parsed)) == 3
    for group in groups(parsed)[1:]:
        assert group.get_all("Action") == ["failed"]
        assert len(group.get_all("Final-Recipient")) == 1
        assert set(group.keys()) <= {
            "Original-Recipient",
            "Final-Recipient",
            "Action",
            "Status",
            "Remote-MTA",
            "Diagnostic-Code",
            "Last-Attempt-Date",
        }
    body = bytes(birth.message).split(b"\n\n", 1)[1]
    assert max(map(len, body.split(b"\n"))) <= 998
    assert b"\r" not in bytes(birth.message)
    assert b"\0" not in bytes(birth.message)


async def test_addresses_outside_of_ascii_have_their_own_type(bounce):
    _, parsed = await bounce(failure(address="jörg+x@x.example"), failure(address="a\udcff@x.example"))
    assert groups(parsed)[1]["Final-Recipient"] == r'utf-8; "j\x{F6}rg\x{2B}x"@x.example'
    assert groups(parsed)[2]["Final-Recipient"] == r'utf-8; "a\x{FFFD}"@x.example'


async def test_the_original_comes_back_byte_for_byte(bounce):
    content = b"Subject: x\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\n\xff\xe9 one\n--b--\nno end"
    birth, parsed = await bounce(failure(), message=Message.parse(content))
    mark = parsed.get_boundary().encode()
    assert bytes(birth.message).endswith(b"\n\n" + content + b"\n--" + mark + b"--\n")
    assert parsed["Content-Transfer-Encoding"] == "8bit"
    assert parsed.get_payload(2)["Content-Transfer-Encoding"] == "8bit"


async def test_a_large_original_comes_back_as_its_header(bounce, tmp_path):
    """The body is not even there: it must not be read."""
    message = Message(b"A: b\n", FileBody(tmp_path / "absent", 50_000_000))
    _, parsed = await bounce(failure(), message=message)
    last = parsed.get_payload(2)
    assert last.get_content_type() == "text/rfc822-headers"
    assert last.get_content() == "A: b\n"


async def test_double_bounces_go_to_the_postmaster_and_there_is_no_third(bounce, chain_of, clock):
    birth, parsed = await bounce(failure(), sender="")
    assert (birth.sender, birth.recipients) == ("#@[]", ("postmaster@mx.example",))
    assert "A bounce could not be delivered" in parsed.get_payload(0).get_content()
    chain = chain_of("bounces: {format: rfc3464}", "bounces")
    entry = Entry("1", Address("#@[]"), Message(b""), [], clock.time())
    assert (await chain.ask(Stages.bounce, entry, [failure()])).value is None
