"""Gateways with certificates and logins, in threads; tests that ask for the same settings share one."""

import asyncio
import tempfile
from contextlib import ExitStack
from pathlib import Path

import argon2
import pytest
import trustme

from gateway.authentication import passwords
from gateway.services import Clock
from gateway.smtp.sasl import make_keys
from gateway.testing.fakes import FakeDns
from gateway.testing.running import Running

#: Cheap, since tests ask often; what is checked is the same.
HASHER = argon2.PasswordHasher(time_cost=1, memory_cost=64)
ANN = "ann@example.org"
LISTENER = 'listeners: !replace [{{name: mx, protocol: {protocol}, address: "127.0.0.1:0"{keys}}}]\n'
SITE = {"tls": "tls: {certificates: [{certificate: mx.pem, key: mx.pem}]}\n", "auth_file": "auth_file: {}\n"}


class Gateway(Running):
    """A gateway whose journal can be waited for."""

    def mark(self):
        """Wait until all that was emitted so far is on disk."""
        asyncio.run_coroutine_threadsafe(self._worker.journal.flush(), self._loop).result(10)


class Seen:
    """A gateway as one test sees it: its events begin with the test."""

    def __init__(self, gateway):
        self.port = gateway.port
        self._gateway = gateway
        # What was emitted before this one is in the journal once it is.
        gateway.mark()
        self._before = len(gateway.events())

    def events(self, name=""):
        return [one for one in self._gateway.events()[self._before :] if name in ("", one["event"])]

    def wait_for(self, name, count=1):
        before = sum(one["event"] == name for one in self._gateway.events()[: self._before])
        return self._gateway.wait_for(name, before + count)[before:]

    def arrived(self):
        (told,) = self.wait_for("delivery.delivered")
        return next(one for one in self._gateway.arrived() if told["message"].encode() in one)


@pytest.fixture(scope="session")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def gateways(authority):
    """Give `gateways(keys, yaml, protocol, without)`: started once, ended with the module."""
    with ExitStack() as stack:
        known = {}

        def start(*args):
            if args not in known:
                base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                known[args] = stack.enter_context(Gateway(base, _site(base, *args), Clock(), FakeDns()))
            return known[args]

        def _site(base, keys, yaml, protocol, without):
            made = authority.issue_cert("mail.example.org")
            made.private_key_and_cert_chain_pem.write_to_path(base / "mx.pem")
            ann = passwords.Kept(ANN, HASHER.hash("secret"), scram=make_keys("secret", 4096))
            passwords.change(base / "passwords", ANN, lambda _: ann)
            listener = LISTENER.format(protocol=protocol, keys=f", {keys}" if keys else "")
            return listener + "".join(text for name, text in SITE.items() if name != without) + yaml

        yield start


@pytest.fixture
def serve(gateways):
    """Give `serve(keys, yaml)`: a gateway whose listener has these keys; ANN's password is `secret`."""

    def start(keys="", yaml="", protocol="smtp", without=""):
        return Seen(gateways(keys, yaml, protocol, without))

    return start
