"""The door of the SMTP family, lazy as the main door is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway import lazy

if TYPE_CHECKING:
    from gateway.smtp.client import Connection as Connection
    from gateway.smtp.client_tls import Terms as Terms
    from gateway.smtp.client_tls import unverified as unverified
    from gateway.smtp.client_tls import verified as verified
    from gateway.smtp.reply import Reply as Reply
    from gateway.smtp.server.listening import Server as Server
    from gateway.smtp.talk import Envelope as Envelope
    from gateway.smtp.talk import Login as Login
    from gateway.smtp.talk import Verdict as Verdict
    from gateway.smtp.target import Target as Target
    from gateway.smtp.target import Timeouts as Timeouts

#: name -> the module it lives in.
_HOME = {
    "Connection": "client",
    "Envelope": "talk",
    "Login": "talk",
    "Reply": "reply",
    "Server": "server.listening",
    "Target": "target",
    "Terms": "client_tls",
    "Timeouts": "target",
    "Verdict": "talk",
    "unverified": "client_tls",
    "verified": "client_tls",
}

__all__ = list(_HOME)
__getattr__ = lazy(__name__, _HOME)
