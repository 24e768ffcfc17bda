"""Certificates of listeners: which one a client gets, renewal, and what cannot be loaded."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest
import trustme

from gateway.errors import ConfigError
from gateway.settings import Certificate, Tls
from gateway.smtp.tls import Certificates, fingerprint

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture
def certificate(authority, tmp_path):
    def make(*names, ca=None, days=90, file=""):
        made = (ca or authority).issue_cert(*names, not_after=NOW + timedelta(days=days))
        stem = file or names[0].replace("*", "any")
        chain, key = tmp_path / f"{stem}.pem", tmp_path / f"{stem}.key"
        chain.write_bytes(b"".join(one.bytes() for one in made.cert_chain_pems))
        key.write_bytes(made.private_key_pem.bytes())
        return Certificate(certificate=chain, key=key)

    return make


def seen(certificates, name, authority, client=None):
    """Shake hands over memory; give the certificate that the client gets, and the server's end."""
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.check_hostname = False
    authority.configure_trust(trust)
    trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # The certificates of these tests end in the past of the real clock, too.
    trust.verify_mode = ssl.CERT_NONE
    if client:
        client.configure_cert(trust)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = trust.wrap_bio(to_client, to_server, server_hostname=name)
    here = certificates.context.wrap_bio(to_server, to_client, server_side=True)
    waiting = [there, here]
    while waiting:
        end = waiting.pop(0)
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(end)
    return there.getpeercert(binary_form=True), here


def names(der):
    from cryptography import x509

    found = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    return found.value.get_values_for_type(x509.DNSName)


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("mx.example.org", "mx.example.org"),
        ("MX.example.org", "mx.example.org"),
        ("mail.example.net", "*.example.net"),
        ("deep.mail.example.net", "mx.example.org"),
        ("example.net", "mx.example.org"),
        ("other.example", "mx.example.org"),
        (None, "mx.example.org"),
    ],
)
def test_a_client_gets_the_certificate_for_the_name_it_asks_for(asked, got, certificate, authority):
    both = Certificates(Tls(certificates=(certificate("mx.example.org"), certificate("*.example.net"))))
    assert names(seen(both, asked, authority)[0]) == [got]


def test_changed_files_are_used_without_a_restart(certificate, authority):
    loaded = Certificates(Tls(certificates=(certificate("mx.example.org"),)))
    assert list(loaded.refresh(NOW.timestamp())) == []
    first, _ = seen(loaded, "mx.example.org", authority)
    certificate("mx.example.org", "new.example.org", file="mx.example.org")
    (told,) = loaded.refresh(NOW.timestamp())
    assert (told.NAME, told.names) == ("tls.certificate_loaded", ("mx.example.org", "new.example.org"))
    second, _ = seen(loaded, "mx.example.org", authority)
    assert fingerprint(first) != fingerprint(second)


def test_a_renewal_that_cannot_be_used_is_told_and_changes_nothing(certificate, authority):
    one = certificate("mx.example.org")
    loaded = Certificates(Tls(certificates=(one,)))
    one.key.write_bytes(certificate("other.example").key.read_bytes())
    (told,) = loaded.refresh(NOW.timestamp())
    assert (told.NAME, told.error) == ("tls.certificate_failed", "the key is not the one of the certificate")
    assert names(seen(loaded, None, authority)[0]) == ["mx.example.org"]


def test_an_end_that_comes_near_is_told_once_a_day(certificate):
    loaded = Certificates(Tls(certificates=(certificate("mx.example.org", days=10),)))
    now = NOW.timestamp()
    (told,) = loaded.refresh(now)
    assert (told.NAME, told.expires) == ("tls.certificate_expiring", "2026-01-11T00:00:00Z")
    assert list(loaded.refresh(now + 3600)) == []
    assert len(list(loaded.refresh(now + 86400))) == 1


def test_a_certificate_of_the_client_is_seen_when_its_authority_is_known(certificate, authority, tmp_path):
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    theirs = authority.issue_cert("client.example.org")
    settings = Tls(certificates=(certificate("mx.example.org"),), client_ca=tmp_path / "ca.pem")
    _, with_one = seen(Certificates(settings), None, authority, theirs)
    assert names(with_one.getpeercert(binary_form=True)) == ["client.example.org"]
    _, without = seen(Certificates(settings), None, authority)
    assert without.getpeercert(binary_form=True) is None


def test_a_changed_authority_of_clients_counts(certificate, authority, tmp_path):
    other = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    loaded = Certificates(Tls(certificates=(certificate("mx.example.org"),), client_ca=tmp_path / "ca.pem"))
    other.cert_pem.write_to_path(tmp_path / "ca.pem")
    assert [one.NAME for one in loaded.refresh(NOW.timestamp())] == ["tls.certificate_loaded"]
    _, end = seen(loaded, None, authority, other.issue_cert("client.example.org"))
    assert names(end.getpeercert(binary_form=True)) == ["client.example.org"]
    with pytest.raises(ssl.SSLError):
        seen(loaded, None, authority, authority.issue_cert("client.example.org"))
    # One that cannot be read changes nothing.
    (tmp_path / "ca.pem").write_text("nothing")
    (told,) = loaded.refresh(NOW.timestamp())
    assert (told.NAME, told.file) == ("tls.certificate_failed", str(tmp_path / "ca.pem"))
    _, end = seen(loaded, None, authority, other.issue_cert("client.example.org"))
    assert names(end.getpeercert(binary_form=True)) == ["client.example.org"]


@pytest.mark.parametrize("break_it", [lambda ca: ca.unlink(), lambda ca: ca.write_text("nothing")])
def test_an_authority_that_cannot_be_used_is_an_error_with_its_file(break_it, authority, tmp_path):
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    break_it(tmp_path / "ca.pem")
    with pytest.raises(ConfigError, match=f"tls.client_ca: {tmp_path}/ca.pem"):
        Certificates(Tls(client_ca=tmp_path / "ca.pem"))


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda one: one.key.unlink(), "No such file"),
        (lambda one: one.key.write_text("nothing"), "not a certificate and key in PEM"),
        (lambda one: one.certificate.write_text("nothing"), "PEM"),
    ],
)
def test_what_cannot_be_used_at_the_start_is_an_error_with_the_file(break_it, said, certificate):
    one = certificate("mx.example.org")
    break_it(one)
    with pytest.raises(ConfigError) as caught:
        Certificates(Tls(certificates=(one,)))
    assert str(one.certificate) in str(caught.value)
    assert said in str(caught.value)
