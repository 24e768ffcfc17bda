"""The group `queue` of the vectors: qmail-queue as a process of the case's user, beside a real gateway."""

import os
import pwd
import re

import programs
import pytest
import vectors

#: The users of qmail in the vectors; here they need not exist.
NAMES = {7790: "alias", 7796: "qmails"}
TRACE = re.compile(rb"\(qmail \S+ invoked (.*)\); \d+ [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d -0000")


HOLD = """
from gateway import Hold, Plugin, hookimpl

class HoldAll(Plugin):
    @hookimpl
    def message(self, transaction, message):
        return Hold("to be looked at")
"""


@pytest.fixture(scope="module")
def gateway():
    """A gateway that delivers nothing, so that what was queued can be looked at."""
    known = pwd.getpwuid

    def getpwuid(uid):
        return pwd.struct_passwd((NAMES[uid], *"x" * 6)) if uid in NAMES else known(uid)

    with programs.open_folder() as base, pytest.MonkeyPatch.context() as patch:
        (base / "plugins").mkdir()
        (base / "plugins" / "hold_all.py").write_text(HOLD)
        patch.setattr(pwd, "getpwuid", getpwuid)
        with programs.Running(base, {"plugins": {"folders": [str(base / "plugins")]}}) as running:
            yield running


@pytest.mark.parametrize("case", vectors.cases("queue"))
def test_queue(case, gateway, tmp_path, request):
    given, wanted = case["input"], dict(case["expect"])
    wanted.pop("left")
    if wanted["queued"] is None:
        wanted.pop("message_after_trace", None)
        wanted.pop("trace_by", None)
    user = {"user": given["uid"], "group": given["uid"], "extra_groups": []} if os.geteuid() == 0 else {}
    if not user and given["uid"] not in NAMES:
        wanted = with_uid(wanted, given["uid"], os.geteuid())
    elif not user:
        pytest.skip("only root can be another user")
    before = {entry.id for entry in gateway.entries()}
    (tmp_path / "message").write_bytes(vectors.raw(given["message"]))
    (tmp_path / "envelope").write_bytes(vectors.raw(given["envelope"]))
    with (tmp_path / "message").open("rb") as message, (tmp_path / "envelope").open("rb") as envelope:
        done = programs.run(
            "qmail-queue",
            env={"MAILWARD_STATE": str(gateway.state)},
            stdin=message,
            stdout=envelope,
            **user,
        )
    found = {"exit": done.returncode, "queued": None}
    new = [entry for entry in gateway.entries() if entry.id not in before]
    assert len(new) == bool(wanted["queued"] and wanted["queued"]["recipients"])
    if new:
        found.update(stored(new[0]))
    elif wanted["queued"] and (ended := gateway.told("message.discarded")):
        # Without a recipient the message ends as soon as it is accepted, as qmail-send ends it.
        found["queued"] = {"uid": uid_of(ended[-1]["user"]), "sender": ended[-1]["sender"], "recipients": []}
        found.update({key: wanted[key] for key in ("message_after_trace", "trace_by")})
    vectors.compare(request, "queue", case, found, wanted)


def stored(entry):
    field, _, rest = bytes(entry.message).partition(b"\n")
    return {
        "queued": {
            "uid": uid_of(entry.facts["user"]),
            "sender": vectors.as_text(bytes(entry.sender)),
            "recipients": [vectors.as_text(bytes(one.recipient.original)) for one in entry.recipients],
        },
        "message_after_trace": vectors.as_text(rest),
        "trace_by": TRACE.fullmatch(field.removeprefix(b"Received: "))[1].decode(),
    }


def uid_of(user):
    for uid, name in NAMES.items():
        if name == user:
            return uid
    return int(user.removeprefix("uid ")) if user.startswith("uid ") else pwd.getpwnam(user).pw_uid


def with_uid(wanted, uid, mine):
    if wanted["queued"]:
        wanted["queued"] = {**wanted["queued"], "uid": mine}
        wanted["trace_by"] = wanted["trace_by"].replace(str(uid), str(mine))
    return wanted
