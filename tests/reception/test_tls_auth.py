"""STARTTLS, TLS from the first byte, AUTH and what it opens, as clients see them."""

import base64
import contextlib
import smtplib
import socket
import ssl
import subprocess

import pytest
from scramp import ScramClient

from gateway.errors import ConfigError

MAIL = "MAIL FROM:<ann@example.org>"
ELSEWHERE = "RCPT TO:<friend@elsewhere.example>"
#: Nobody relays by address here: what is sent on was let through by a login.
LOGIN_ONLY = "relay_control: !replace {}\n"


@pytest.fixture
def trust(authority):
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@contextlib.contextmanager
def connected(gateway, trust=None, *, implicit=False, source="127.0.0.1"):
    """Connect; with `trust` under TLS."""
    how = {"context": trust} if implicit else {}
    client = (smtplib.SMTP_SSL if implicit else smtplib.SMTP)(timeout=10, **how)
    client._host = "mail.example.org"  # smtplib asks for the certificate of this name
    client.connect("127.0.0.1", gateway.port, (source, 0))
    with client:
        client.ehlo("client.example")
        if trust and not implicit:
            client._host = "mail.example.org"
            client.starttls(context=trust)
            client.ehlo("client.example")
        yield client


def plain(login="ann@example.org", password="secret"):
    return base64.b64encode(f"\0{login}\0{password}".encode()).decode()


def test_tls_is_offered_and_taken(serve, trust):
    gateway = serve()
    with connected(gateway, trust) as client:
        assert not client.has_extn("STARTTLS")
        client.sendmail("ann@example.org", ["friend@elsewhere.example"], "Subject: hello\r\n\r\nhello\r\n")
    (told,) = gateway.wait_for("tls.established")
    assert (told["version"], told["server_name"]) == ("TLSv1.3", "mail.example.org")
    assert b"with ESMTPS" in gateway.arrived()


def test_tls_from_the_first_byte(serve, trust):
    gateway = serve("tls: implicit")
    with connected(gateway, trust, implicit=True) as client:
        assert not client.has_extn("STARTTLS")
        assert client.docmd("STARTTLS")[0] == 503
        assert client.docmd(MAIL)[0] == 250


def test_a_client_that_does_not_speak_tls_is_an_event(serve):
    gateway = serve("tls: implicit")
    with socket.create_connection(("127.0.0.1", gateway.port)) as link:
        link.sendall(b"EHLO client.example\r\n")
        assert b"220" not in link.recv(100)
    assert gateway.wait_for("tls.failed")[0]["client.ip"] == "127.0.0.1"


def test_where_tls_is_demanded_nothing_goes_without(serve, trust):
    gateway = serve("tls: required")
    with connected(gateway) as client:
        assert client.docmd(MAIL) == (530, b"5.7.0 say STARTTLS first")
    with connected(gateway, trust) as client:
        assert client.docmd(MAIL)[0] == 250


def test_what_was_said_before_tls_is_forgotten(serve, trust):
    with connected(serve()) as client:
        assert client.docmd(MAIL)[0] == 250
        client._host = "mail.example.org"
        client.starttls(context=trust)
        assert client.docmd(MAIL)[0] == 503
        client.ehlo("client.example")
        assert client.docmd(ELSEWHERE)[0] == 503


@pytest.mark.parametrize(
    "ahead",
    [
        b"EHLO evil.example\r\n",
        b"NOOP\r\n",
        b"R",
        b"\r\n",
        MAIL.encode() + b"\r\n",
        b"RSET\r\n" + MAIL.encode() + b"\r\n" + ELSEWHERE.encode() + b"\r\nDATA\r\n",
        b"AUTH PLAIN " + plain().encode() + b"\r\n",
        b"STARTTLS\r\n",
        b"QUIT\r\n",
        b"\x16\x03\x01",
    ],
)
@pytest.mark.parametrize("before", [b"", b"NOOP\r\n"])
def test_commands_sent_ahead_of_tls_are_never_taken(ahead, before, serve):
    gateway = serve()
    with (
        socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as link,
        link.makefile("rb") as replies,
    ):
        replies.readline()
        link.sendall(b"EHLO client.example\r\n")
        while replies.readline()[3:4] == b"-":
            pass
        link.sendall(before + b"STARTTLS\r\n" + ahead)
        said = replies.read().splitlines()
    assert said[-1].startswith(b"554 5.5.1 nothing may follow STARTTLS")
    assert len(said) == 1 + bool(before)
    assert "starttls_injection" in {one["reason"] for one in gateway.wait_for("command.refused")}


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_who_has_logged_in_may_send_to_anywhere(mechanism, implicit, serve, trust):
    gateway = serve("auth: optional" + (", tls: implicit" if implicit else ""), LOGIN_ONLY)
    with connected(gateway, trust, implicit=implicit) as client:
        assert client.docmd(MAIL)[0] == 250
        assert client.docmd(ELSEWHERE)[0] == 553
        client.rset()
        client.esmtp_features["auth"] = f" {mechanism}"
        client.login("ann@example.org", "secret")
        client.sendmail("ann@example.org", ["friend@elsewhere.example"], "Subject: hello\r\n\r\nhello\r\n")
    (told,) = gateway.wait_for("auth.succeeded")
    assert (told["user"], told["mechanism"], told["plugin"]) == ("ann@example.org", mechanism, "auth_file")
    assert gateway.wait_for("message.accepted")[0]["user"] == "ann@example.org"
    assert b"with ESMTPSA" in gateway.arrived()


@pytest.mark.peer("swaks")
@pytest.mark.peer("libnet-ssleay-perl")
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
@pytest.mark.parametrize("tls", ["--tls", "--tls-on-connect"])
def test_swaks_logs_in(mechanism, tls, serve):
    gateway = serve("auth: required, tls: " + ("required" if tls == "--tls" else "implicit"), LOGIN_ONLY)
    done = subprocess.run(
        [
            *("swaks", "--server", f"127.0.0.1:{gateway.port}", tls, "--auth", mechanism),
            *("--auth-user", "ann@example.org", "--auth-password", "secret"),
            *("--from", "ann@example.org", "--to", "friend@elsewhere.example", "--helo", "client.example"),
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert gateway.wait_for("auth.succeeded")[0]["mechanism"] == mechanism
    assert b"with ESMTPSA" in gateway.arrived()


def scram(client, password, nonce=None):
    prover = ScramClient(["SCRAM-SHA-256"], "ann@example.org", password, c_nonce=nonce)

    def step(text):
        code, answer = client.docmd(text)
        return code, base64.b64decode(answer).decode() if code == 334 else answer

    def encoded(text):
        return base64.b64encode(text.encode()).decode()

    begin = "AUTH SCRAM-SHA-256 "
    if nonce:  # too long for a command
        assert client.docmd(begin.strip()) == (334, b"")
        begin = ""
    code, challenge = step(begin + encoded(prover.get_client_first()))
    assert code == 334
    prover.set_server_first(challenge)
    code, answer = step(encoded(prover.get_client_final()))
    if code == 334:
        prover.set_server_final(answer)
        code, answer = client.docmd("")
    return code


def test_the_lines_of_an_exchange_may_be_long(serve, trust):
    """RFC 4954 section 4; a client chooses how long its nonce is, and the server's challenge has it, too."""
    with connected(serve("auth: optional"), trust) as client:
        assert scram(client, "secret", nonce="n" * 5000) == 235
        assert client.docmd("NOOP " + "x" * 5000)[0] == 500


def test_scram_proves_the_password_without_showing_it(serve, trust):
    gateway = serve("auth: optional")
    with connected(gateway, trust) as client:
        assert client.esmtp_features["auth"].split() == ["SCRAM-SHA-256", "PLAIN", "LOGIN"]
        assert scram(client, "wrong") == 535
        assert scram(client, "secret") == 235
        assert client.docmd("AUTH", f"PLAIN {plain()}")[0] == 503
    assert gateway.wait_for("auth.succeeded")[0]["mechanism"] == "SCRAM-SHA-256"


@pytest.mark.parametrize(
    ("login", "password"),
    [
        ("ann@example.org", "wrong"),
        ("joe", "secret"),
        ("ann@example.org", "secret "),
        ("ANN@example.org", "secret"),
    ],
)
def test_a_wrong_login_is_refused_and_told(login, password, serve, trust):
    # The gateway of a test's own: failures are counted, and make the next answer wait.
    gateway = serve("auth: optional", f"limits: {{auth_failures: {100 + len(login + password)}}}\n")
    with connected(gateway, trust) as client:
        said = client.docmd("AUTH", f"PLAIN {plain(login, password)}")
        assert said == (535, b"5.7.8 authentication failed")
    (told,) = gateway.wait_for("auth.failed")
    assert (told["user"], told["reason"], told["client.ip"]) == (login, "credentials", "127.0.0.1")


def test_guessing_is_slowed_and_ends(serve, trust):
    gateway = serve("auth: optional", "limits: {auth_failures: 3}\n")
    with connected(gateway, trust) as client:
        for _ in range(3):
            assert client.docmd("AUTH", f"PLAIN {plain(password='wrong')}")[0] == 535
        assert client.docmd("AUTH", f"PLAIN {plain()}")[0] == 421
    assert gateway.wait_for("limit.exceeded")[0]["limit"] == "auth_failures"
    failed = gateway.events("auth.failed")
    assert len(failed) == 3


def test_guessing_by_scram_ends_and_does_not_tell_what_was_right(serve, trust):
    gateway = serve("auth: optional", "limits: {auth_failures: 1}\n")
    prover = ScramClient(["SCRAM-SHA-256"], "ann@example.org", "secret")
    begin = f"AUTH SCRAM-SHA-256 {base64.b64encode(prover.get_client_first().encode()).decode()}"
    with connected(gateway, trust) as right, connected(gateway, trust) as wrong:
        code, challenge = right.docmd(begin)
        assert code == 334
        prover.set_server_first(base64.b64decode(challenge).decode())
        assert scram(wrong, "wrong") == 535
        # By now this proof is not looked at any more, nor is anybody asked for the keys of a login.
        assert right.docmd(base64.b64encode(prover.get_client_final().encode()).decode())[0] == 421
        assert wrong.docmd(begin)[0] == 421
    assert {one["limit"] for one in gateway.wait_for("limit.exceeded", 2)} == {"auth_failures"}
    assert len(gateway.events("auth.failed")) == 1


def test_guesses_from_one_ipv6_network_count_together(serve):
    gateway = serve(
        "auth: optional, auth_without_tls: true, proxy: [127.0.0.1]", "limits: {auth_failures: 1}\n"
    )

    def guess(address):
        with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as link:
            link.sendall(f"PROXY TCP6 {address} 2001:db8::1 4000 25\r\nEHLO x\r\n".encode())
            link.sendall(f"AUTH PLAIN {plain(password='wrong')}\r\nQUIT\r\n".encode())
            with link.makefile("rb") as said:
                return [line[:3] for line in said if line[:1] in b"45"]

    assert guess("2001:db8::7") == [b"535"]
    assert guess("2001:db8::8:9") == [b"421"]
    assert guess("2001:db8:0:1::7") == [b"535"]


def test_no_password_before_tls(serve):
    gateway = serve("auth: optional")
    with connected(gateway) as client:
        assert not client.has_extn("AUTH")
        assert client.docmd("AUTH", f"PLAIN {plain()}")[0] == 538


def test_unless_the_listener_says_so(serve):
    with connected(serve("auth: optional, auth_without_tls: true")) as client:
        assert client.docmd("AUTH", f"PLAIN {plain()}")[0] == 235


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("PLAIN !", 501),
        ("PLAIN =", 501),
        ("PLAIN AAAA", 501),
        ("CRAM-MD5", 504),
        ("PLAIN\r\n*", 501),
        ("PLAIN\r\n" + "A" * 12286, 501),
        ("PLAIN\r\n" + "A" * 12287, 500),
        ("", 501),
    ],
)
def test_what_is_no_exchange_is_refused(said, code, serve, trust):
    # Failures count by client, and make its next answer wait.
    source = f"127.0.1.{1 + len(said) % 250}"
    with connected(serve("auth: optional"), trust, source=source) as client:
        first, *rest = f"AUTH {said}".strip().split("\r\n")
        answer = client.docmd(first)
        if rest:
            assert answer[0] == 334
            answer = client.docmd(rest[0])
        assert answer[0] == code
        assert client.docmd("NOOP")[0] == 250


@pytest.mark.parametrize(
    ("value", "code"), [("<>", 250), ("ann+2Bx@example.org", 250), ("", 501), ("a+2", 501), ("a" * 501, 501)]
)
def test_who_relays_may_say_who_submitted_the_message(value, code, serve, trust):
    """RFC 4954 section 5."""
    with connected(serve("auth: optional"), trust) as client:
        assert client.docmd(f"{MAIL} AUTH={value}")[0] == code


def test_submission_demands_both(serve, trust):
    gateway = serve(protocol="submission")
    with connected(gateway) as client:
        assert client.docmd(MAIL)[0] == 530
    with connected(gateway, trust) as client:
        assert client.docmd(MAIL) == (530, b"5.7.0 authenticate first")
        client.login("ann@example.org", "secret")
        assert client.docmd(MAIL)[0] == 250


@pytest.mark.parametrize(
    ("keys", "without", "said"),
    [
        ("auth: optional", "auth_file", "needs a plugin that knows logins"),
        ("tls: required", "tls", "needs a certificate"),
    ],
)
def test_what_a_listener_offers_must_be_there(keys, without, said, serve):
    with pytest.raises(ConfigError, match=said):
        serve(keys, without=without)
