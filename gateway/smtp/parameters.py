"""The arguments of MAIL and RCPT: the path and its ESMTP parameters. Pure: no IO."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from gateway.address import parse_path
from gateway.errors import AddressError
from gateway.smtp import reply as replies
from gateway.smtp.reply import Reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.address import Address

#: xtext (RFC 3461 section 4) that stands for no control character: what it says is written into reports.
_XTEXT = r"(?:[!-*,-<>-~]|\+(?:[2-689A-F][0-9A-F]|7[0-9A-E]))"
#: The address as RFC 6533 section 3 lets it stand, without a code for its characters.
_UNITEXT = r"(?:[!-*,-<>-~]|[^\x00-\x9f\ud800-\udfff])"
_WISH = "(?:SUCCESS|FAILURE|DELAY)"
#: name -> what its value must be.
MAIL_PARAMETERS = {
    "SIZE": re.compile(r"[0-9]{1,20}"),
    "BODY": re.compile(r"7BIT|8BITMIME", re.IGNORECASE),
    "SMTPUTF8": re.compile(r""),
    "RET": re.compile(r"FULL|HDRS", re.IGNORECASE),
    "ENVID": re.compile(rf"(?=.{{1,100}}\Z){_XTEXT}+"),
    "REQUIRETLS": re.compile(r""),
    # Who submitted the message, or `<>` (RFC 4954 section 5): to be taken, and to be trusted from nobody.
    "AUTH": re.compile(rf"(?=.{{1,500}}\Z){_XTEXT}+"),
}
#: No part of an address (RFC 5321 section 4.1.2).
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
RCPT_PARAMETERS = {
    "NOTIFY": re.compile(rf"NEVER|{_WISH}(?:,{_WISH}){{0,2}}", re.IGNORECASE),
    "ORCPT": re.compile(
        rf"(?=.{{1,500}}\Z)(?:(?!(?i:utf-8;))[A-Za-z0-9-]+;{_XTEXT}+|(?i:utf-8);{_UNITEXT}+)"
    ),
}


class Refused(Exception):
    """The server itself says no."""

    def __init__(self, reply: Reply, reason: str) -> None:
        super().__init__(reply, reason)
        self.reply = reply
        self.reason = reason


def parse_argument(
    argument: str, keyword: str, status: str, known: Mapping[str, re.Pattern[str]], *, strict: bool = True
) -> tuple[Address, dict[str, str]]:
    """Parse the argument of MAIL or RCPT; parameter names in upper case, values as sent. Raises Refused.

    Unless `strict`, it is read as by qmail-smtpd: no keyword is needed, and unknown parameters do not count.
    """
    try:
        address, rest = parse_path(argument, keyword if strict else "")
    except AddressError as error:
        refusal = Reply(501, status, str(error)) if strict else Reply(555, "5.5.4", str(error))
        raise Refused(refusal, "syntax") from None
    if strict and _CONTROL.search(address):
        raise Refused(Reply(501, status, "the address holds a control character"), "syntax")
    if strict and address.endswith("@"):
        raise Refused(Reply(501, status, "a domain is missing behind the @"), "syntax")
    params: dict[str, str] = {}
    for word in rest.split():
        name, _, value = word.partition("=")
        name = name.upper()
        if not strict and (name in params or name not in known or not known[name].fullmatch(value)):
            continue
        if name not in known:
            raise Refused(replies.UNKNOWN_PARAMETER, "parameter")
        if name in params or not known[name].fullmatch(value):
            raise Refused(replies.BAD_PARAMETER, "parameter")
        params[name] = value
    return address, params


def check_utf8(address: Address, params: Mapping[str, str], *, strict: bool = True) -> None:
    """Refuse what is neither ASCII nor UTF-8 that was announced (RFC 6531 section 3.4). Raises Refused.

    Unless `strict`, nobody needs to announce it.
    """
    if address.isascii():
        return
    try:
        address.encode()
    except UnicodeEncodeError:
        raise Refused(replies.NOT_UTF8, "syntax") from None
    if strict and "SMTPUTF8" not in params:
        raise Refused(replies.NEEDS_SMTPUTF8, "smtputf8")
