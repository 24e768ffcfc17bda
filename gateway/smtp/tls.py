"""TLS of the listeners: certificates chosen by name (SNI), and read again when their files have changed.

A session under way keeps the certificate that it began with. What cannot be loaded at a start is an error
with its place; what cannot be loaded later is an event, and the former certificate stays.
"""

from __future__ import annotations

import os
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from gateway import events
from gateway.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from gateway.settings import Certificate, Tls

    #: Reads a file of ours, within so many seconds; with an agent, its root side does.
    Read = Callable[[Path, float], bytes]

#: A look at all files ends after so many seconds: what root has not read for us by then waits for the next.
WITHIN = 30.0

#: A certificate that ends within this many seconds is told once a day.
_SOON = 14 * 86400.0
_DAY = 86400.0
_VERSIONS = {"TLSv1.2": ssl.TLSVersion.TLSv1_2, "TLSv1.3": ssl.TLSVersion.TLSv1_3}


def read_file(path: Path, _: float) -> bytes:
    """Read a file as ourselves."""
    return path.read_bytes()


@dataclass(slots=True)
class _Loaded:
    """One certificate in use."""

    files: tuple[bytes, bytes, bytes]
    context: ssl.SSLContext
    leaf: x509.Certificate
    #: Lower-case DNS names; a wildcard stands for one label.
    names: frozenset[str]
    #: When its end was last told, seconds since the epoch.
    told: float = 0.0


class Certificates:
    """The certificates of one configuration. Raises ConfigError when one cannot be used."""

    def __init__(self, settings: Tls, read: Read = read_file) -> None:
        self._settings = settings
        self._reader = read
        self._until = time.monotonic() + WITHIN
        try:
            self._authority = self._read_authority()
        except (OSError, ValueError) as error:
            raise ConfigError(f"tls.client_ca: {settings.client_ca}: {_reason(error)}") from error
        #: What the client at the other end of a link has asked for (SNI).
        self._wanted: WeakKeyDictionary[ssl.SSLObject | ssl.SSLSocket, str] = WeakKeyDictionary()
        self._loaded: list[_Loaded] = []
        for one in settings.certificates:
            try:
                self._loaded.append(self._load(one))
            except (OSError, ValueError) as error:
                raise ConfigError(f"tls.certificates: {one.certificate}: {_reason(error)}") from error

    def __bool__(self) -> bool:
        return bool(self._loaded)

    @property
    def context(self) -> ssl.SSLContext:
        """What a handshake begins with: the first certificate, until the client has named another."""
        return self._loaded[0].context

    def describe(self) -> Iterator[events.Event]:
        """Give an event for each certificate in use."""
        for one, loaded in zip(self._settings.certificates, self._loaded, strict=True):
            yield _told(one, loaded)

    def refresh(self, now: float) -> list[events.Event]:
        """Load what has changed; give what there is to tell. `now` is seconds since the epoch.

        It is for a thread: to read may take its time.
        """
        told: list[events.Event] = []
        self._until = time.monotonic() + WITHIN
        try:
            self._authority = self._read_authority()
        except Exception as error:  # noqa: BLE001 - as with a certificate
            told.append(events.TlsCertificateFailed(file=str(self._settings.client_ca), error=_reason(error)))
        for i, one in enumerate(self._settings.certificates):
            try:
                if self._files(one) != self._loaded[i].files:
                    self._loaded[i] = self._load(one)
                    told.append(_told(one, self._loaded[i]))
            except Exception as error:  # noqa: BLE001 - whatever a renewed file holds, the former stays
                told.append(events.TlsCertificateFailed(file=str(one.certificate), error=_reason(error)))
            loaded = self._loaded[i]
            end = loaded.leaf.not_valid_after_utc
            if end.timestamp() - now < _SOON and now - loaded.told >= _DAY:
                loaded.told = now
                told.append(events.TlsCertificateExpiring(file=str(one.certificate), expires=_date(end)))
        return told

    def _read(self, path: Path) -> bytes:
        """Read a file in what is left of the look. Raises OSError."""
        return self._reader(path, max(self._until - time.monotonic(), 0))

    def _read_authority(self) -> bytes:
        """Read whose client certificates count. Raises OSError, ValueError."""
        if not self._settings.client_ca:
            return b""
        authority = self._read(self._settings.client_ca)
        _trust(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), authority)
        return authority

    def _files(self, one: Certificate) -> tuple[bytes, bytes, bytes]:
        """Give all that a context is made of."""
        return self._read(one.certificate), self._read(one.key), self._authority

    def _load(self, one: Certificate) -> _Loaded:
        chain, key, _ = files = self._files(one)
        leaf = x509.load_pem_x509_certificates(chain)[0]
        return _Loaded(files, self._context(chain, key), leaf, frozenset(_names(leaf)))

    def _context(self, chain: bytes, key: bytes) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = _VERSIONS[self._settings.minimum]
        context.sni_callback = self._choose
        # RFC 9325 section 3.4 asks for no resumption without rotated keys: a ticket outlives a renewal.
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
        with _Memory(chain) as certificates, _Memory(key) as keys:
            context.load_cert_chain(certificates, keys, password=_no_password)
        if self._authority:
            # Asked for and not demanded: a client without a certificate is a client like any other.
            context.verify_mode = ssl.CERT_OPTIONAL
            _trust(context, self._authority)
        return context

    def wanted(self, link: ssl.SSLObject) -> str:
        """Give the name that a client has asked for; "" for none."""
        return self._wanted.get(link, "")

    def _choose(self, link: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        """Take the certificate for the name that the client asks for; the first when none fits."""
        if name is None:
            return
        self._wanted[link] = name
        wanted = name.lower().removesuffix(".")
        wildcard = "*." + wanted.partition(".")[2]
        for loaded in self._loaded:
            if wanted in loaded.names or wildcard in loaded.names:
                link.context = loaded.context
                return


def fingerprint(certificate: bytes) -> str:
    """Give the SHA-256 of a certificate (DER), as `openssl x509 -fingerprint -sha256` prints it."""
    return x509.load_der_x509_certificate(certificate).fingerprint(SHA256()).hex(":").upper()


class _Memory:
    """Bytes as a file without a name: OpenSSL takes keys by path, and ours may have been handed over."""

    def __init__(self, data: bytes) -> None:
        self._file = os.memfd_create("pem")
        os.write(self._file, data)

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._file}"

    def __exit__(self, *_: object) -> None:
        os.close(self._file)


def _no_password() -> str:
    """Answer for a key under a password; without it OpenSSL would ask at the terminal."""
    raise ValueError("the key is under a password: openssl pkey -in KEY -out NEW removes it")


def _names(leaf: x509.Certificate) -> Sequence[str]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    return [name.lower() for name in found.value.get_values_for_type(x509.DNSName)]


def _told(one: Certificate, loaded: _Loaded) -> events.Event:
    expires = _date(loaded.leaf.not_valid_after_utc)
    return events.TlsCertificateLoaded(
        file=str(one.certificate), names=tuple(sorted(loaded.names)), expires=expires
    )


def _date(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _trust(context: ssl.SSLContext, authority: bytes) -> None:
    context.load_verify_locations(cadata=authority.decode("ascii", "replace"))


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        if error.reason == "KEY_VALUES_MISMATCH":
            return "the key is not the one of the certificate"
        return f"not a certificate and key in PEM ({error.reason or error})"
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
