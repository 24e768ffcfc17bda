"""The server of SMTP without a network: a test hands it packets, and sees each one really cut there."""
# ruff: noqa: ARG002 - a fake takes what the real one takes

import asyncio

from gateway.decision import Accept
from gateway.envelope import Recipient, Session, Transaction, new_id
from gateway.message import Spool
from gateway.settings import Limits, Listener, Tls
from gateway.smtp import Server
from gateway.smtp.tls import Certificates


class Taking:
    """A reception that takes all, and notes senders and messages."""

    def __init__(self, folder):
        self.folder, self.senders, self.stored = folder, [], []

    def open(self, listener, protocol, client, local_ip):
        return Session(new_id(), listener, protocol, client, local_ip)

    async def connect(self, session): ...

    async def helo(self, session, name, *, extended):
        session.helo = name

    async def mail(self, session, sender, params):
        self.senders.append(str(sender))
        return Transaction(new_id(), sender, "smtp", session, params=params), None

    async def rcpt(self, transaction, address, params):
        transaction.recipients.append(Recipient.of(address, params=params))

    async def data(self, transaction): ...

    def spool(self, transaction):
        return Spool(self.folder)

    async def message(self, transaction, message):
        self.stored.append(bytes(message))
        return Accept()

    def refused(self, *_): ...

    def reset(self, transaction): ...

    def disconnect(self, session, reason): ...


class Wire(asyncio.Transport):
    """A connection whose packets are as the test says."""

    def __init__(self):
        super().__init__()
        self.said, self.closed = b"", False

    def write(self, data):
        self.said += data

    def write_eof(self): ...

    def can_write_eof(self):
        return True

    def get_write_buffer_size(self):
        return 0

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True

    def pause_reading(self): ...

    def resume_reading(self): ...


def begun(folder, **limits):
    """Begin a session; gives its reception, its wire, its server, and the connection, which takes packets."""
    reception, wire = Taking(folder), Wire()
    listener = Listener(protocol="smtp", address="127.0.0.1:25")
    loop = asyncio.get_running_loop()
    server = Server(reception, Limits(**limits), "mx.example.org", listener, loop, None, Certificates(Tls()))
    connection = server()
    connection.connection_made(wire)
    return reception, wire, server, connection
