"""TLS as a client wants it: what a connection has to be like, and what a failure is called."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from gateway.errors import TlsFailed

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.smtp.dialogue import Security

#: OpenSSL's reasons against a certificate that have a word of their own (RFC 8460 section 4.3).
_KINDS = {10: "certificate-expired", 62: "certificate-host-mismatch", 64: "certificate-host-mismatch"}


@dataclass(frozen=True, slots=True)
class Terms:
    """What TLS has to be like on a connection."""

    context: ssl.SSLContext
    #: Rather no connection than one in plain.
    required: bool = False
    #: From the first byte on (RFC 8314), in place of STARTTLS.
    implicit: bool = False
    #: The name to ask for (SNI), which the context may look for in the certificate, too.
    name: str = ""
    #: Judges the certificates that the host has shown (DER), its own first. Raises TlsFailed.
    judge: Callable[[list[bytes]], None] | None = None

    @property
    def security(self) -> Security:
        """Say the same in a word of the dialogue."""
        if self.implicit:
            return "implicit"
        return "required" if self.required else "may"


def unverified() -> ssl.SSLContext:
    """Give settings for TLS that beats none: any certificate will do, as plain text would (RFC 7435)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def verified(authorities: str = "") -> ssl.SSLContext:
    """Give settings for a certificate of the host's name, by the system's authorities or those of a file.

    Raises OSError when the file cannot be used.
    """
    return ssl.create_default_context(cafile=authorities or None)


def failure(error: Exception) -> TlsFailed:
    """Say what went wrong in a handshake."""
    kind = ""
    if isinstance(error, ssl.SSLCertVerificationError):
        kind = _KINDS.get(error.verify_code, "certificate-not-trusted")
        return TlsFailed(f"its certificate will not do: {error.verify_message}", kind=kind)
    return TlsFailed(f"the TLS handshake failed: {error}")


def shown(link: ssl.SSLObject) -> list[bytes]:
    """Give the certificates that the host has shown (DER), its own first."""
    if hasattr(link, "get_unverified_chain"):
        return list(link.get_unverified_chain())
    # Before Python 3.13 the same is there under a private name only.
    inner = cast("Any", link)._sslobj  # noqa: SLF001
    return [bytes(ssl.PEM_cert_to_DER_cert(one.public_bytes())) for one in inner.get_unverified_chain() or ()]


def described(link: ssl.SSLObject) -> tuple[str, str]:
    """Give version and cipher: "TLSv1.3", "TLS_AES_256_GCM_SHA384"."""
    cipher = link.cipher()
    return link.version() or "", cipher[0] if cipher else ""
