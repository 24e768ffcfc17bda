"""`mailward queue backoff` beside a running gateway."""

import asyncio
import json

from gateway.journal import read

NOTE = {"tries": 3, "last": 0.0, "until": 4e9, "host": "mx.example"}


def test_addresses_that_do_not_answer_are_shown_and_forgotten(site, gateway, monkeypatch):
    from gateway.counters import Counters

    made = []
    usual = Counters.__init__
    monkeypatch.setattr(Counters, "__init__", lambda self, *more: (usual(self, *more), made.append(self))[0])
    with gateway():
        for name in ("192.0.2.1:25", "192.0.2.2:25"):
            asyncio.run(made[0].mark(f"remote.backoff {name}", 60, json.dumps(NOTE)))
        asyncio.run(made[0].mark("other 192.0.2.3:25", 60))
        shown = site.mailward("queue", "backoff")
        assert [line.split()[:3] for line in shown.splitlines()] == [
            ["192.0.2.1:25", "mx.example", "3"],
            ["192.0.2.2:25", "mx.example", "3"],
        ]
        (row,) = map(json.loads, site.mailward("queue", "backoff", "192.0.2.1", "--json").splitlines())
        assert row == {"address": "192.0.2.1:25", **NOTE}
        assert "reset" in site.mailward("queue", "backoff", "--reset", "192.0.2.1")
        assert "192.0.2.1" not in site.mailward("queue", "backoff")
        site.mailward("queue", "backoff", "--reset")
        assert "has answered" in site.mailward("queue", "backoff")
        assert asyncio.run(made[0].marked("other 192.0.2.3:25"))
    told = [one for one in read(site.base / "var" / "journal") if one["event"] == "destination.resumed"]
    assert [(one["destination"], one["reason"]) for one in told] == [
        ("192.0.2.1:25", "remote.backoff"),
        ("192.0.2.2:25", "remote.backoff"),
    ]
    assert all(one["actor"] for one in told)


def test_without_a_gateway_there_is_nothing_to_show(site):
    assert "no gateway answers" in site.mailward("queue", "backoff", code=1)
