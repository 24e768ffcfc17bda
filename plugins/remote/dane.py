"""DANE for SMTP (RFC 7672): do the certificates that a host has shown match its TLSA records? Pure: no IO."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway import TlsFailed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

#: DANE-TA and DANE-EE; the other usages want public authorities, and count for nothing here (section 3.1.3).
AUTHORITY, HOST = 2, 3
#: Matching type -> digest; 0 is the thing itself. Of several digests the strongest counts (RFC 7671, 9).
_DIGESTS = {1: hashlib.sha256, 2: hashlib.sha512}
#: Records that count, and certificates from a host to its authority: what comes is the other side's choice.
_MOST, _DEEPEST = 50, 10


class Record(NamedTuple):
    """A TLSA record."""

    usage: int
    selector: int
    matching: int
    data: bytes


def usable(records: Iterable[Record]) -> list[Record]:
    """Give those that can be matched, of each usage and selector the strongest digest alone."""
    known = [one for one in records if one.usage in (AUTHORITY, HOST) and one.selector in (0, 1)]
    known = [one for one in known if one.matching == 0 or _is_digest(one)]
    best: dict[tuple[int, int], int] = {}
    for one in known:
        best[one.usage, one.selector] = max(one.matching, best.get((one.usage, one.selector), 0))
    return [one for one in known if one.matching in (0, best[one.usage, one.selector])][:_MOST]


def judge(records: Sequence[Record], names: Collection[str], chain: Sequence[bytes], now: float) -> None:
    """Let pass what matches one usable record; `names` count for authorities. Raises TlsFailed.

    A host's own record (usage 3) says all: neither its names nor its dates count (section 3.1.1).
    """
    try:
        if any(one.usage == HOST and _matches(one, chain[0]) for one in records):
            return
        anchors = [one for one in records if one.usage == AUTHORITY]
        if not _ends_at(anchors, chain, now):
            raise TlsFailed("no TLSA record matches its certificates")
        leaf = x509.load_der_x509_certificate(chain[0])
    except (ValueError, IndexError) as error:
        raise TlsFailed(f"its certificates cannot be read: {error}") from error
    if not any(_covers(pattern, name) for pattern in _names(leaf) for name in names):
        wanted = " or ".join(sorted(names))
        raise TlsFailed(f"its certificate is not for {wanted}", kind="certificate-host-mismatch")


def _is_digest(record: Record) -> bool:
    made = _DIGESTS.get(record.matching)
    return made is not None and len(record.data) == made().digest_size


def _matches(record: Record, certificate: bytes) -> bool:
    data = certificate
    if record.selector:
        key = x509.load_der_x509_certificate(certificate).public_key()
        data = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if record.matching:
        data = _DIGESTS[record.matching](data).digest()
    return data == record.data


def _ends_at(anchors: Sequence[Record], chain: Sequence[bytes], now: float) -> bool:
    """Follow the issuers up from the host's certificate to one that a record names."""
    # A record that holds the whole certificate may do so because the host does not send it.
    given = [anchor.data for anchor in anchors if (anchor.selector, anchor.matching) == (0, 0)]
    others = [*chain[1:_DEEPEST], *given[:_DEEPEST]]
    current = x509.load_der_x509_certificate(chain[0])
    _check_dates(current, now)
    while issuers := [one for one in others if _issued(one, current)]:
        named = [one for one in issuers if any(_matches(anchor, one) for anchor in anchors)]
        current = x509.load_der_x509_certificate((named or issuers)[0])
        _check_dates(current, now)
        if named:
            return True
        others.remove(issuers[0])
    return False


def _issued(certificate: bytes, other: x509.Certificate) -> bool:
    issuer = x509.load_der_x509_certificate(certificate)
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        other.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return constraints.ca


def _check_dates(certificate: x509.Certificate, now: float) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begin.timestamp() <= now <= end.timestamp():
        raise TlsFailed("a certificate has expired or is not valid yet", kind="certificate-expired")


def _names(leaf: x509.Certificate) -> list[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        return [str(one.value) for one in leaf.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]


def _covers(pattern: str, name: str) -> bool:
    """Compare a name of a certificate, whose `*.` stands for one label (RFC 6125 section 6.4.3)."""
    pattern, name = pattern.lower().removesuffix("."), name.lower().removesuffix(".")
    return pattern in (name, f"*.{name.partition('.')[2]}")
