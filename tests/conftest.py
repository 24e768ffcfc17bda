"""Tests marked `peer(package)` need a Debian package; the run ends with what to install for those skipped.

With MAILWARD_CI=1 nothing may be missing, so that no run in CI is green by skipping.
"""

import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import uvloop

sys.path.insert(0, str(Path(__file__).parent))

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/lib/dovecot"
#: Package -> a program that only this package has, or the pattern of a file.
PROGRAMS = {
    "fail2ban": "fail2ban-regex",
    "dovecot-imapd": "imap",
    "dovecot-lmtpd": "lmtp",
    "knot": "knotd",
    "exim4-daemon-light": "/opt/exim-peer/usr/sbin/exim4",
    "libnet-ssleay-perl": "/usr/lib/*/perl5/*/auto/Net/SSLeay",
    "maildrop": "maildrop",
    "mlmmj": "mlmmj-receive",
    "clamav-milter": "clamav-milter",
    "clamav-daemon": "clamd",
    "gcc": "gcc",
    "miltertest": "miltertest",
    "opendkim": "opendkim",
    "opensmtpd": "/opt/opensmtpd-peer/usr/sbin/smtpd",
    "rspamd": "rspamd",
    "postfix": "postfix",
    "postfix-mta-sts-resolver": "mta-sts-daemon",
    "pyspf-milter": "pyspf-milter",
    "procmail": "procmail",
    "sendmail-bin": "/opt/sendmail-peer/usr/libexec/sendmail/sendmail",
    "spin": "spin",
    "strace": "strace",
    "swaks": "swaks",
    "unbound": "unbound",
    "vacation": "vacation",
}
#: Packages that cannot be installed beside the others -> how else they come.
UNPACKED = {
    "exim4-daemon-light": "apt-get download exim4-daemon-light libidn12 && "
    "for p in exim4-daemon-light_*.deb libidn12_*.deb; do dpkg -x $p /opt/exim-peer; done",
    "opensmtpd": "apt-get download opensmtpd && dpkg -x opensmtpd_*.deb /opt/opensmtpd-peer",
    "sendmail-bin": "apt-get download sendmail-bin && dpkg -x sendmail-bin_*.deb /opt/sendmail-peer",
}
MISSING = "missing package"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    for mark in item.iter_markers("peer"):
        (package,) = mark.args
        program = PROGRAMS[package]
        if any(Path("/").glob(program[1:])) if "*" in program else shutil.which(program, path=PATH):
            continue
        if os.environ.get("MAILWARD_CI"):
            pytest.fail(f"in CI nothing may be missing: {_remedy(package)}", pytrace=False)
        item.user_properties.append((MISSING, package))
        pytest.skip(_remedy(package))


def _remedy(package):
    return UNPACKED.get(package, f"apt install {package}")


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", ())
    counts = Counter(
        package for report in skipped for name, package in report.user_properties if name == MISSING
    )
    if counts:
        terminalreporter.section("skipped: other mail programs are missing")
    for package, count in sorted(counts.items()):
        terminalreporter.line(f"{count} tests need {package}:  {_remedy(package)}")


@pytest.fixture(scope="session")
def postgres_server():
    """Give a PostgreSQL server for all tests of this process: each cleans up what it has made there."""
    import postgres_server

    memory = postgres_server.MEMORY
    server = postgres_server.make(folder=memory if memory.is_dir() else None)
    yield server
    server.remove()


def pytest_asyncio_loop_factories():
    """Have tests run on the loop that gateways run on."""
    return {"uvloop": uvloop.new_event_loop}
