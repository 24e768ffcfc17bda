"""SASL mechanisms, step by step; the client's end of SCRAM is the library's."""

import base64

import pytest
from scramp import ScramClient

from gateway.smtp.sasl import MECHANISMS, Challenge, Denied, Lookup, Malformed, decode, make_keys

SECRET = b"s" * 32
KEYS = make_keys("pencil", 4096)


def play(mechanism, initial, *answers):
    """Give the challenges, and what came out of it."""
    exchange, seen = MECHANISMS[mechanism](initial, SECRET), []
    waiting, answer = list(answers), None
    try:
        while True:
            step = exchange.send(answer)
            seen.append(step.text if isinstance(step, Challenge) else step)
            answer = waiting.pop(0)
    except StopIteration as end:
        assert not waiting
        return seen, end.value


@pytest.mark.parametrize(
    ("initial", "answers"), [(b"\0ann\0secret", ()), (b"ann\0ann\0secret", ()), (None, (b"\0ann\0secret",))]
)
def test_plain_takes_a_name_and_a_password(initial, answers):
    _, credentials = play("PLAIN", initial, *answers)
    assert (credentials.mechanism, credentials.login, credentials.password) == ("PLAIN", "ann", "secret")


@pytest.mark.parametrize(
    "response",
    [b"", b"ann\0secret", b"\0ann\0", b"\0\0secret", b"\0a\0b\0c", b"\0\xff\0x", b"\0" + b"a" * 256 + b"\0x"],
)
def test_plain_refuses_what_is_not_of_it(response):
    with pytest.raises(Malformed):
        play("PLAIN", response)


def test_nobody_acts_as_somebody_else():
    with pytest.raises(Denied):
        play("PLAIN", b"joe\0ann\0secret")


@pytest.mark.parametrize(("initial", "answers"), [(None, (b"ann", b"secret")), (b"ann", (b"secret",))])
def test_login_asks_for_both(initial, answers):
    seen, credentials = play("LOGIN", initial, *answers)
    assert seen == [b"Username:", b"Password:"][2 - len(answers) :]
    assert (credentials.login, credentials.password) == ("ann", "secret")


def run_scram(client, keys, first=None):
    """Let a client of the library speak with our server."""
    exchange = MECHANISMS["SCRAM-SHA-256"](None, SECRET)
    assert exchange.send(None) == Challenge(b"")
    lookup = exchange.send((first or client.get_client_first()).encode())
    assert lookup == Lookup("ann")
    client.set_server_first(exchange.send(keys).text.decode())
    client.set_server_final(exchange.send(client.get_client_final().encode()).text.decode())
    with pytest.raises(StopIteration) as end:
        exchange.send(b"")
    return end.value.value


def test_scram_proves_the_password_to_both_sides():
    credentials = run_scram(ScramClient(["SCRAM-SHA-256"], "ann", "pencil"), KEYS)
    assert (credentials.mechanism, credentials.login, credentials.password) == ("SCRAM-SHA-256", "ann", None)


def test_a_wrong_password_is_denied():
    with pytest.raises(Denied, match="ann"):
        run_scram(ScramClient(["SCRAM-SHA-256"], "ann", "pencils"), KEYS)


def test_an_unknown_login_looks_like_a_known_one():
    shown = []
    for _ in range(2):
        exchange = MECHANISMS["SCRAM-SHA-256"](b"n,,n=ann,r=abcdefgh", SECRET)
        next(exchange)
        shown.append(exchange.send(None).text.split(b",", 1)[1])
    assert shown[0] == shown[1]
    assert b"i=100000" in shown[0]
    with pytest.raises(Denied):
        run_scram(ScramClient(["SCRAM-SHA-256"], "ann", "pencil"), None)


@pytest.mark.parametrize("header", ["n,a=joe,", "y,a=joe,"])
def test_scram_does_not_let_anybody_act_as_somebody_else(header):
    with pytest.raises(Malformed):
        play("SCRAM-SHA-256", f"{header}n=ann,r=abcdefgh".encode(), KEYS)


@pytest.mark.parametrize(
    "first", [b"", b"n", b"n,,", b"n,,n=ann", b"p=tls-unique,,n=ann,r=x", b"n,,n=,r=abc", b"\xff"]
)
def test_scram_refuses_what_is_not_of_it(first):
    with pytest.raises(Malformed):
        play("SCRAM-SHA-256", first, KEYS)


@pytest.mark.parametrize("final", [b"", b"c=biws", b"c=biws,r=other,p=AAAA", b"nonsense", b"\xff"])
def test_scram_refuses_a_final_that_is_not_of_it(final):
    with pytest.raises((Malformed, Denied)):
        play("SCRAM-SHA-256", b"n,,n=ann,r=abcdefgh", KEYS, final)


@pytest.mark.parametrize("line", [b"a", b"a===", b"YQ=\n", b"Y Q=", b"\xff\xff\xff\xff"])
def test_what_is_not_base64_is_refused(line):
    with pytest.raises(Malformed):
        decode(line)


def test_base64_and_the_empty_response_are_read():
    assert decode(base64.b64encode(b"ann")) == b"ann"
    assert decode(b"=") == b""
