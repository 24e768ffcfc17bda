"""Who a client is when a proxy speaks for it: believed from the hosts that a listener names alone."""

import base64
import select
import socket
import ssl
import struct

import pytest

V2 = b"\r\n\r\n\0\r\nQUIT\n"
RULES = 'relay_control: !replace {clients: [198.51.100.7, "2001:db8::7"]}\n'
ASK = b"EHLO client.example\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<friend@elsewhere.example>\r\nQUIT\r\n"


def v2(command=1, family=0x11, body=None, length=None):
    if body is None:
        body = socket.inet_aton("198.51.100.7") + socket.inet_aton("192.0.2.1") + struct.pack(">HH", 4000, 25)
    return (
        V2
        + bytes([0x20 | command, family])
        + struct.pack(">H", len(body) if length is None else length)
        + body
    )


def v2_six():
    body = socket.inet_pton(socket.AF_INET6, "2001:db8::7") * 2 + struct.pack(">HH", 4000, 25)
    return v2(family=0x21, body=body)


def spoken(gateway, *parts):
    """Send parts one by one; give all that was said until the end."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for part in parts:
                link.sendall(part)
            link.shutdown(socket.SHUT_WR)
            with link.makefile("rb") as said:
                return said.read()
        except OSError:  # it was cut off
            return b""


BY_PATH = v2(family=0x31, body=b"/run/sock".ljust(108, b"\0") * 2)
HEADERS = {
    "first version": b"PROXY TCP4 198.51.100.7 192.0.2.1 4000 25\r\n",
    "first version, IPv6": b"PROXY TCP6 2001:db8::7 2001:db8::1 4000 25\r\n",
    "first version, IPv4 by both": b"PROXY TCP6 ::ffff:198.51.100.7 ::ffff:192.0.2.1 4000 25\r\n",
    "second version": v2(),
    "second version, IPv6": v2_six(),
    "second version with more behind the addresses": v2(
        body=socket.inet_aton("198.51.100.7") * 2 + struct.pack(">HH", 4000, 25) + b"\x04\x00\x02no"
    ),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("cut", [0, 1, 5, 13, 17, 1000])
def test_the_client_is_whom_the_proxy_names(header, cut, serve):
    gateway = serve("proxy: [127.0.0.1]", RULES)
    said = spoken(gateway, header[:cut], header[cut:] + ASK)
    assert b"250 2.1.5" in said
    assert gateway.wait_for("session.opened")[0]["client.ip"] in ("198.51.100.7", "2001:db8::7")


@pytest.mark.parametrize("header", [b"PROXY UNKNOWN\r\n", v2(command=0, family=0, body=b""), BY_PATH])
def test_a_proxy_that_speaks_for_itself_is_itself(header, serve):
    gateway = serve("proxy: [127.0.0.1]", RULES)
    assert b"553 5.7.1" in spoken(gateway, header + ASK)
    assert gateway.wait_for("session.opened")[0]["client.ip"] == "127.0.0.1"


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"EHLO client.example\r\n",
        b"PROXY TCP4 198.51.100.7\r\n",
        b"PROXY TCP4 198.51.100.7 192.0.2.1 4000 99999\r\n",
        b"PROXY TCP4 " + b"9" * 200 + b"\r\n",
        v2(length=60000),
        V2 + b"\x31\x11\x00\x0c" + b"x" * 12,
    ],
)
def test_what_is_no_header_ends_the_session_without_a_word(header, serve):
    gateway = serve("proxy: [127.0.0.1]", RULES)
    assert spoken(gateway, header) == b""
    assert gateway.wait_for("session.refused")[0]["reason"] == "proxy_header"


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_a_header_from_anybody_else_gives_nothing(header, serve):
    gateway = serve("proxy: [192.0.2.0/24]", RULES)
    said = spoken(gateway, header + ASK)
    assert b"250 2.1.5" not in said
    assert gateway.wait_for("session.opened")[0]["client.ip"] == "127.0.0.1"


def test_a_header_stands_before_tls(serve, authority):
    gateway = serve("proxy: [127.0.0.1], tls: implicit", RULES)
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    here, there = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = trust.wrap_bio(there, here, server_hostname="mail.example.org")
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as link:
        first = HEADERS["second version"]
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                # The client's first bytes of TLS come in one packet with the header.
                link.sendall(first + here.read())
                first = b""
                there.write(link.recv(65536))
        link.sendall(here.read())
        said = b""
        while b"220" not in said:
            try:
                said += tls.read()
            except ssl.SSLWantReadError:
                there.write(link.recv(65536))
    assert gateway.wait_for("tls.established")[0]["client.ip"] == "198.51.100.7"


def test_silent_clients_of_a_proxy_shut_nobody_else_out(serve, authority):
    gateway = serve("proxy: [127.0.0.1], tls: implicit", "limits: {sessions_per_client: 2}\n")
    trust = ssl.create_default_context()
    authority.configure_trust(trust)

    def connected(ip):
        link = socket.create_connection(("127.0.0.1", gateway.port), timeout=10)
        link.sendall(f"PROXY TCP4 {ip} 192.0.2.1 4000 465\r\n".encode())
        return link

    silent = [connected(ip) for ip in ("203.0.113.1", *["203.0.113.2"] * 3)]
    sent_away, _, _ = select.select(silent, [], [], 10)
    assert [link.recv(1) for link in sent_away] == [b""]
    (told,) = gateway.wait_for("limit.exceeded")
    assert (told["client.ip"], told["limit"]) == ("203.0.113.2", "sessions_per_client")
    with connected("203.0.113.3") as link, trust.wrap_socket(link, server_hostname="mail.example.org") as tls:
        assert tls.recv(3) == b"220"
    for link in silent:
        link.close()


def test_xclient_names_the_client(serve):
    gateway = serve("xclient: [127.0.0.1]", RULES)
    said = spoken(
        gateway, b"EHLO proxy.example\r\n", b"XCLIENT ADDR=198.51.100.7 NAME=[UNAVAILABLE] PORT=4000\r\n", ASK
    )
    assert b"XCLIENT NAME ADDR PORT" in said
    assert b"250 2.1.5" in said
    assert [one["client.ip"] for one in gateway.wait_for("session.opened", 2)] == [
        "127.0.0.1",
        "198.51.100.7",
    ]


def test_xclient_begins_anew(serve):
    gateway = serve("xclient: [127.0.0.1]")
    said = spoken(
        gateway,
        b"EHLO proxy.example\r\nXCLIENT ADDR=IPV6:2001:db8::7\r\nMAIL FROM:<a@example.com>\r\nQUIT\r\n",
    )
    assert said.splitlines()[-3:-1] == [b"220 mail.example.org ESMTP", b"503 5.5.1 say HELO or EHLO first"]


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ("ADDR=nonsense", b"501"),
        ("PORT=x", b"501"),
        ("WHAT=ever", b"555"),
        ("ADDR", b"555"),
        ("LOGIN=a+0D+0Ab", b"501"),
        ("HELO=a+00b", b"501"),
    ],
)
def test_xclient_that_cannot_be_read_changes_nothing(attributes, code, serve):
    gateway = serve("xclient: [127.0.0.1]")
    said = spoken(gateway, f"EHLO proxy.example\r\nXCLIENT {attributes}\r\nQUIT\r\n".encode())
    assert said.splitlines()[-2].startswith(code)
    assert "198.51.100.7" not in {one["client.ip"] for one in gateway.wait_for("session.opened")}


def test_xclient_from_anybody_else_is_no_command(serve):
    gateway = serve("xclient: [192.0.2.0/24]", RULES)
    said = spoken(gateway, b"EHLO proxy.example\r\nXCLIENT ADDR=198.51.100.7 LOGIN=ann\r\n" + ASK)
    assert b"XCLIENT" not in said.replace(b"XCLIENT ADDR", b"")
    assert b"502 5.5.1" in said
    assert b"250 2.1.5" not in said


STRANGER = b"XCLIENT ADDR=203.0.113.9\r\n"


def test_xclient_is_for_whom_the_proxy_names_to_say(serve):
    gateway = serve("proxy: [127.0.0.1], xclient: [127.0.0.1]", RULES)
    stranger = b"PROXY TCP4 203.0.113.9 192.0.2.1 4000 25\r\n"
    said = spoken(gateway, stranger, b"EHLO client.example\r\nXCLIENT ADDR=198.51.100.7\r\n" + ASK)
    assert b"250 XCLIENT" not in said
    assert b"502 5.5.1" in said
    assert b"250 2.1.5" not in said


def test_a_host_that_the_proxy_names_may_say_it(serve):
    gateway = serve("proxy: [127.0.0.1], xclient: [203.0.113.9]", RULES)
    trusted = b"PROXY TCP4 203.0.113.9 192.0.2.1 4000 25\r\n"
    said = spoken(gateway, trusted, b"EHLO client.example\r\nXCLIENT ADDR=198.51.100.7\r\n" + ASK)
    assert b"250 2.1.5" in said


def test_the_rules_for_the_proxy_are_not_those_for_the_client(serve, tmp_path):
    rules = tmp_path / "tcp.smtp"
    rules.write_text('127.:allow,RELAYCLIENT="",DATABYTES="12345"\n198.51.100.:deny\n:allow\n')
    gateway = serve("xclient: [127.0.0.1]", f"relay_control: !replace {{rules: {rules}}}\n")
    assert b"250 2.1.5" in spoken(gateway, ASK)
    said = spoken(gateway, b"EHLO proxy.example\r\n" + STRANGER + ASK)
    before, _, after = said.partition(b"\r\n220 ")
    assert b"SIZE 12345" in before
    assert b"SIZE 52428800" in after
    assert b"553 5.7.1 relaying denied" in after
    said = spoken(gateway, b"EHLO proxy.example\r\nXCLIENT ADDR=198.51.100.7\r\n")
    assert said.splitlines()[-1].startswith(b"554 5.7.1")
    assert gateway.wait_for("session.refused")[0]["client.ip"] == "198.51.100.7"


def test_the_login_of_the_proxy_is_not_the_clients(serve):
    gateway = serve("xclient: [127.0.0.1], auth: optional, auth_without_tls: true", RULES)
    login = b"AUTH PLAIN " + base64.b64encode(b"\0ann@example.org\0secret") + b"\r\n"
    ask = ASK.replace(b"a@example.com", b"ann@example.org")
    assert b"250 2.1.5" in spoken(gateway, b"EHLO proxy.example\r\n" + login + ask)
    said = spoken(gateway, b"EHLO proxy.example\r\n" + login + STRANGER + ask)
    assert b"235 2.7.0" in said
    assert b"553 5.7.1 relaying denied" in said
    named = STRANGER.replace(b"\r\n", b" LOGIN=ann@example.org\r\n")
    assert b"250 2.1.5" in spoken(gateway, b"EHLO proxy.example\r\n" + named + ask)


def test_a_session_by_xclient_is_one_of_its_own(serve):
    gateway = serve("xclient: [127.0.0.1]")
    spoken(gateway, b"EHLO proxy.example\r\n" + STRANGER + b"QUIT\r\n")
    closed = gateway.wait_for("session.closed", 2)
    opened = gateway.events("session.opened")
    assert [one["session"] for one in opened] == [one["session"] for one in closed]
    assert opened[0]["session"] != opened[1]["session"]
    assert [one["reason"] for one in closed] == ["xclient", "quit"]


def test_limits_count_the_client_and_not_the_proxy(serve):
    gateway = serve("xclient: [127.0.0.1]", "limits: {sessions: 2, sessions_per_client: 1}\n")
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as first:
        first.sendall(b"EHLO proxy.example\r\n" + STRANGER)
        with first.makefile("rb") as said:
            for _ in range(2):
                while not said.readline().startswith(b"220"):
                    pass
            other = STRANGER.replace(b"9\r\n", b"8\r\n")
            for client, code in ((other, b"220"), (STRANGER, b"421")):
                lines = spoken(gateway, b"EHLO proxy.example\r\n" + client + b"QUIT\r\n").splitlines()
                assert [one[:3] for one in lines if one[:3] in (b"220", b"421")] == [b"220", code]
                gateway.wait_for("session.closed", 3)
