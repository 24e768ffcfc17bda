"""Looks at one login with PAM: `python -I -m gateway.authentication.pam SERVICE`, as checkpassword does.

Login, password and a time, each with a NUL behind it, come over fd 3. Exit codes: 0 it is theirs and the
account may be used, 1 it is not, 111 nobody can tell now. libpam is called by its C interface (ctypes): the
packages for it are as thin and one more thing that runs as root.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

#: PAM's name for what asks it, unless a site says otherwise: the rules are in /etc/pam.d/mailward.
PAM_SERVICE = "mailward"
#: What is read at most, as of checkpassword.
_LONGEST = 512
_ACCEPTED, _REFUSED, _UNKNOWN = 0, 1, 111
#: Of PAM's answers, those that are about the login (security/_pam_types.h): PERM_DENIED, AUTH_ERR,
#: USER_UNKNOWN, MAXTRIES, NEW_AUTHTOK_REQD, ACCT_EXPIRED, CRED_EXPIRED, AUTHTOK_EXPIRED.
_ABOUT_THE_LOGIN = frozenset({6, 7, 10, 11, 12, 13, 16, 27})
_SILENT = 0x8000
_DISALLOW_NULL_AUTHTOK = 0x1
_PROMPT_ECHO_OFF = 1
_CONV_ERR = 19


class _Message(ctypes.Structure):
    _fields_ = (("style", ctypes.c_int), ("text", ctypes.c_char_p))


class _Response(ctypes.Structure):
    _fields_ = (("text", ctypes.c_void_p), ("code", ctypes.c_int))


_Talk = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_int,
    ctypes.POINTER(ctypes.POINTER(_Message)),
    ctypes.POINTER(ctypes.POINTER(_Response)),
    ctypes.c_void_p,
)


class _Conversation(ctypes.Structure):
    _fields_ = (("talk", _Talk), ("data", ctypes.c_void_p))


def check(service: str, login: bytes, password: bytes) -> int:
    """Ask PAM; gives the exit code."""
    pam = ctypes.CDLL("libpam.so.0")
    handle = ctypes.c_void_p()
    talk = _Talk(_answering(password))
    conversation = _Conversation(talk, None)
    said = pam.pam_start(service.encode(), login, ctypes.byref(conversation), ctypes.byref(handle))
    if said == 0:
        flags = _SILENT | _DISALLOW_NULL_AUTHTOK
        said = pam.pam_authenticate(handle, flags) or pam.pam_acct_mgmt(handle, flags)
        pam.pam_end(handle, said)
    return _ACCEPTED if said == 0 else _REFUSED if said in _ABOUT_THE_LOGIN else _UNKNOWN


def _answering(password: bytes):  # type: ignore[no-untyped-def]  # noqa: ANN202 - C calls it
    """Give what answers PAM's questions: the password, wherever something is asked that is not to be seen."""
    libc = ctypes.CDLL(None)
    libc.calloc.restype = libc.strdup.restype = ctypes.c_void_p

    def answer(count, messages, responses, _):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        # PAM frees what it is given, so C has to allocate it.
        found = libc.calloc(count, ctypes.sizeof(_Response))
        if not found:
            return _CONV_ERR
        each = ctypes.cast(found, ctypes.POINTER(_Response))
        for number in range(count):
            if messages[number].contents.style == _PROMPT_ECHO_OFF:
                each[number].text = libc.strdup(password)
        responses[0] = each
        return 0

    return answer


def main() -> int:
    """Look at the login on fd 3."""
    data = b""
    while len(data) < _LONGEST and (block := os.read(3, _LONGEST - len(data))):
        data += block
    login, password, *_ = data.split(b"\0")
    return check(sys.argv[1], login, password) if login else _REFUSED


if __name__ == "__main__":
    code = _UNKNOWN
    with contextlib.suppress(Exception):
        code = main()
    sys.exit(code)
