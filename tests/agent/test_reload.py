"""A reload is whole or not at all: what root knows of a configuration, too."""

import pytest

from gateway.errors import GatewayError

OLD = "accounts: {virtual: {old: {home: homes/abc}}}\n"


def test_a_reload_that_is_refused_leaves_root_with_the_old_accounts(site):
    site.configure(OLD)
    site.reload()
    try:
        site.qmail("abc", "|exit 0\n")
        site.configure("auth_file: {file: nothing-here}\n")
        with pytest.raises(GatewayError, match="nothing-here"):
            site.reload()
        assert site.fate("old")["event"] == "delivery.delivered"
    finally:
        site.configure()
        site.reload()


def test_a_child_that_somebody_stops_is_ended_and_keeps_no_mail_waiting(site):
    site.qmail(site.joe, "|kill -STOP $PPID; sleep 600\n", ".qmail-stop")
    site.qmail(site.joe, "|exit 0\n", ".qmail-fine")
    fate = site.fate(f"{site.joe}-stop")
    assert (fate["event"], "no answer came" in fate["text"]) == ("delivery.deferred", True)
    site.qmail(site.joe, "|exit 0\n", ".qmail-stop")
    assert site.fate(f"{site.joe}-fine")["event"] == "delivery.delivered"
