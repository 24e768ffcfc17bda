"""How an instruction fails: for good, or for now."""

from __future__ import annotations

import errno

_NAMES = """
    EINTR ENOMEM ETXTBSY EIO ETIMEDOUT EAGAIN EDEADLK EBUSY ENFILE EMFILE EFBIG ENOSPC ENETDOWN ENETUNREACH
    ENETRESET ECONNABORTED ECONNRESET ENOBUFS ETOOMANYREFS ECONNREFUSED EHOSTDOWN EHOSTUNREACH EUSERS EDQUOT
    ESTALE ENOLCK
"""
#: Errors that may go away by themselves (qmail spec appendix A).
TEMPORARY = frozenset(getattr(errno, name) for name in _NAMES.split())


class DeliveryError(Exception):
    """A delivery has failed; `status` is "" when a program failed that gave none."""

    def __init__(self, status: str, text: str, *, hard: bool | None = None) -> None:
        self.status = status
        self.hard = status.startswith("5") if hard is None else hard
        super().__init__(f"{text} (#{status})" if status else text)


class NoMailboxError(DeliveryError):
    """No `.qmail` file takes this extension."""

    def __init__(self) -> None:
        super().__init__("5.1.1", "there is no mailbox here by that name")
