"""Who is left out of a restore: whose end is told, and the end of all that was born from it. Nobody else."""

import json
from dataclasses import replace

import pytest

from gateway import events
from gateway.envelope import new_id
from gateway.journal.formats import FORMATS, OWN, own, seconds
from gateway.journal.line import dump, stamp
from gateway.queue import Snapshot
from gateway.queue.archive.fates import Fates
from gateway.queue.archive.writer import Manifest

HOST, BEGUN = "mail.example.org", 1_700_000_000.0
MANIFEST = Manifest(BEGUN, HOST, "0.1.0", {"shard-0": 100})


class Told:
    """A journal that a test writes, from the backup on: each event a second and a sequence later."""

    def __init__(self):
        self.records = []

    def __call__(self, *told, later=0, sequence=0):
        for event in told:
            count = len(self.records) + 1
            when = BEGUN + count + later
            record = stamp(event, when, HOST, "shard-0", sequence or 100 + count)
            self.records.append(json.loads(dump(record)))

    def write(self, path, form=OWN):
        path.write_bytes(b"".join(json.dumps(exported(one, form)).encode() + b"\n" for one in self.records))
        return path


def exported(record, form):
    """Write a record in a format, as its renderer does."""
    made = {}
    for name, value in record.items():
        place = form.places.get(name, f"{form.rest}{name}")
        at = made
        *heads, last = place.split(".")
        for head in heads:
            at = at.setdefault(head, {})
        at[last] = value
    return made


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def archived(entry):
    """Give `archived(*recipients)`: a message of the archive."""
    return lambda *recipients, **more: Snapshot(entry(*recipients, **more), 0, 3)


@pytest.fixture
def fates(told, tmp_path):
    """Give `fates(*archived)`: what the journal that was told says of them."""
    return lambda *ones: Fates(MANIFEST, {one.entry.id for one in ones}, [told.write(tmp_path / "j.jsonl")])


def delivered(one, number=0, births=()):
    return events.DeliveryDelivered(message=id_of(one), number=number, attempt=1, births=tuple(births))


def failed(one, number=0):
    return events.DeliveryFailed(message=id_of(one), number=number, attempt=1)


def bounced(one, bounce, *names):
    return events.MessageBounced(message=id_of(one), bounce=bounce, recipients=names)


def accepted(one, parent="", sender="ann@example.com"):
    return events.MessageAccepted(message=id_of(one), parent=parent and id_of(parent), sender=sender)


def finished(one):
    return events.MessageFinished(message=id_of(one))


def id_of(one):
    return one if isinstance(one, str) else one.entry.id


def left(found):
    return [one.number for one in found.snapshot.entry.recipients] if found.snapshot else []


def test_who_is_told_as_delivered_is_left_out_and_counted(told, archived, fates):
    one = archived("a@x.example", "b@x.example")
    told(delivered(one, 1))
    found = fates(one).judge(one)
    assert (left(found), found.ended, found.doubts) == ([0], 1, [])
    assert found.snapshot.delivered == 1
    told(delivered(one, 0), finished(one))
    assert fates(one).judge(one).snapshot is None


def test_who_is_not_told_of_is_kept(told, archived, fates):
    one, other = archived(), archived()
    told(delivered(other), events.DeliveryDeferred(message=id_of(one), number=0))
    assert fates(one, other).judge(one).snapshot == one


def test_a_forward_that_is_not_told_as_ended_keeps_its_parent(told, archived, fates):
    one, forward = archived(), new_id()
    told(delivered(one, births=[forward]), finished(one))
    found = fates(one).judge(one)
    assert left(found) == [0]
    assert forward in found.doubts[0]
    told(accepted(forward, one))
    assert left(fates(one).judge(one)) == [0]
    told(delivered(forward), finished(forward))
    assert fates(one).judge(one).snapshot is None


def test_a_birth_of_a_birth_counts_too(told, archived, fates):
    one, child, grandchild = archived(), new_id(), new_id()
    told(delivered(one, births=[child]), finished(one), accepted(child, one))
    told(delivered(child, births=[grandchild]), finished(child), accepted(grandchild, child))
    assert left(fates(one).judge(one)) == [0]
    told(finished(grandchild))
    assert fates(one).judge(one).snapshot is None


def test_a_forward_that_is_itself_in_the_archive_or_here_is_safe(told, archived, fates):
    one, forward = archived(), archived()
    told(delivered(one, births=[id_of(forward)]), finished(one), accepted(forward, one))
    both = fates(one, forward)
    assert both.judge(one).snapshot is None
    assert both.judge(forward).snapshot == forward
    alone = fates(one)
    assert id_of(forward) in alone.mentioned()
    alone.present = {id_of(forward)}
    assert alone.judge(one).snapshot is None


def test_a_sibling_is_not_kept_for_anothers_forward(told, archived, fates):
    one, forward = archived("a@x.example", "b@x.example"), new_id()
    told(delivered(one, 0, [forward]), delivered(one, 1), finished(one), accepted(forward, one))
    assert left(fates(one).judge(one)) == [0]


def test_a_child_that_no_recipient_names_keeps_them_all(told, archived, fates):
    one = archived("a@x.example", "b@x.example")
    told(delivered(one, 0), delivered(one, 1), finished(one), accepted(new_id(), one))
    assert left(fates(one).judge(one)) == [0, 1]


def test_the_attempt_that_was_told_last_counts(told, archived, fates):
    """A crash before the commit: the first forward never was, the repeated attempt made another."""
    one, never, forward = archived(), new_id(), new_id()
    told(delivered(one, births=[never]), delivered(one, births=[forward]), finished(one))
    told(accepted(forward, one), finished(forward))
    assert fates(one).judge(one).snapshot is None
    told.records.reverse()
    assert fates(one).judge(one).snapshot is None


def test_who_failed_is_left_out_once_the_bounce_has_ended(told, archived, fates):
    one, bounce = archived("no\udcff@x.example"), new_id()
    told(failed(one))
    found = fates(one).judge(one)
    assert left(found) == [0]
    assert "was not told" in found.doubts[0]
    told(bounced(one, bounce, "no\udcff@x.example"), finished(one))
    assert left(fates(one).judge(one)) == [0]
    told(accepted(bounce, one), delivered(bounce), finished(bounce))
    assert fates(one).judge(one).snapshot is None


def test_a_bounce_that_names_others_says_nothing_of_who_failed_since(told, archived, fates):
    one, bounce = archived("a@x.example", "b@x.example"), new_id()
    told(failed(one, 0), bounced(one, bounce, "a@x.example"), finished(bounce), failed(one, 1))
    assert left(fates(one).judge(one)) == [1]


def test_a_triple_bounce_has_nobody_to_be_told(told, archived, fates):
    one = archived(sender="#@[]")
    told(failed(one), bounced(one, "", "r@local.example"), finished(one))
    assert fates(one).judge(one).snapshot is None


def test_who_had_failed_before_the_backup_is_tried_again_if_nobody_else_is_left(told, archived, fates):
    one = archived("a@x.example", "b@x.example")
    one.entry.recipients[0].state = "failed"
    assert fates(one).judge(one).snapshot == one
    told(delivered(one, 1))
    found = fates(one).judge(one)
    assert [(r.number, r.state) for r in found.snapshot.entry.recipients] == [(0, "queued")]
    bounce = new_id()
    told(bounced(one, bounce, "a@x.example"), finished(one), finished(bounce))
    assert fates(one).judge(one).snapshot is None


def test_an_alias_that_became_several_is_left_out_only_as_a_whole(told, archived, fates):
    one = archived("list@x.example")
    told(delivered(one, 1), delivered(one, 2))
    assert left(fates(one).judge(one)) == [0]
    told(finished(one))
    assert fates(one).judge(one).snapshot is None


def test_what_a_person_deleted_stays_deleted(told, archived, fates):
    one, forward = archived("a@x.example", "b@x.example"), new_id()
    told(delivered(one, 0, [forward]), events.MessageDeleted(message=id_of(one)))
    assert left(fates(one).judge(one)) == [0]
    told(finished(forward))
    assert fates(one).judge(one).snapshot is None


def test_more_births_than_an_event_names_cannot_be_judged(told, archived, fates):
    one, births = archived(), [new_id() for _ in range(1200)]
    told(delivered(one, births=births), finished(one), *(finished(birth) for birth in births))
    found = fates(one).judge(one)
    assert left(found) == [0]
    assert "does not name all" in found.doubts[0]


def test_what_came_after_the_backup_and_has_no_end_is_told(told, archived, fates):
    one, before, open_, ended, forward, held = archived(), *(new_id() for _ in range(5))
    told(accepted(before), sequence=100)
    told(accepted(one), accepted(open_, sender="eve@example.com"), accepted(ended), finished(ended))
    told(delivered(one, births=[forward]), accepted(forward, one), accepted(held))
    found = fates(one)
    found.present = {held}
    assert [(lost.id, lost.sender) for lost in found.lost()] == [(open_, "eve@example.com")]


def test_a_child_of_what_came_later_is_lost_too(told, archived, fates):
    root, child = new_id(), new_id()
    told(accepted(root), delivered(root, births=[child]), finished(root), accepted(child, root))
    assert [lost.id for lost in fates(archived()).lost()] == [child]


def test_a_hole_in_the_journal_is_told(told, archived, tmp_path):
    one = archived()
    told(*(accepted(new_id()) for _ in range(9)))
    del told.records[3:5]
    path = tmp_path / "j.jsonl"
    path.write_bytes(b"".join(map(dump, told.records)))
    assert Fates(MANIFEST, {id_of(one)}, [path]).holes() == {"shard-0": 2}
    told.records[:] = told.records[:3]
    path.write_bytes(b"".join(map(dump, told.records)))
    assert Fates(MANIFEST, {id_of(one)}, [path]).holes() == {}
    assert Fates(replace(MANIFEST, host="another"), {id_of(one)}, [path]).holes() == {}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("wrap", [None, "_source", "result"])
def test_exported_lines_of_each_format_say_the_same(told, archived, tmp_path, name, wrap):
    one, forward, lost = archived("a@x.example", "b@x.example"), new_id(), new_id()
    told(
        delivered(one, 0, [forward]),
        delivered(one, 1),
        accepted(forward, one),
        finished(forward),
        accepted(lost),
    )
    lines = [exported(record, FORMATS[name]) for record in reversed(told.records)]
    path = tmp_path / "export.jsonl"
    path.write_text("".join(json.dumps({wrap: line} if wrap else line) + "\n" for line in lines))
    found = Fates(MANIFEST, {id_of(one)}, [path])
    assert found.judge(one).snapshot is None
    assert [late.id for late in found.lost()] == [lost]


@pytest.mark.parametrize("name", FORMATS)
def test_a_record_is_the_same_after_an_export(told, name):
    told(delivered("m", 3, ["b"]), accepted("b", "m"))
    for record in told.records:
        found = own(exported(record, FORMATS[name]))
        assert {key: found[key] for key in record} == record


def test_lines_that_are_no_events_are_passed_over(told, archived, tmp_path):
    one = archived()
    told(delivered(one))
    good = told.write(tmp_path / "good.jsonl").read_bytes()
    folder = tmp_path / "journal" / "shard-0"
    folder.mkdir(parents=True)
    junk = b'{"event": "delivery.delivered", "schema": 1, "message": "m"}\n[]\n"message.finished"\n'
    junk += b"\xff message.finished\n"
    (folder / "0001.jsonl").write_bytes(junk + good + good[:-20])
    found = Fates(MANIFEST, {id_of(one)}, [tmp_path / "journal"])
    assert found.judge(one).snapshot is None


def test_times_of_every_kind_are_read():
    assert seconds("2023-11-14T22:13:20.500000Z") == seconds(1_700_000_000.5) == seconds(1_700_000_000_500)
    assert seconds("1700000000.5") == 1_700_000_000.5


def test_one_value_in_place_of_a_list_is_a_list_of_one(told, archived, tmp_path):
    one, forward = archived(), new_id()
    told(delivered(one, births=[forward]), finished(forward))
    told.records[0]["births"] = forward
    found = Fates(MANIFEST, {id_of(one)}, [told.write(tmp_path / "j.jsonl")])
    assert found.judge(one).snapshot is None


def test_another_hosts_events_are_later_by_their_time(told, archived, fates):
    early, late = new_id(), new_id()
    told(accepted(early), later=-100)
    told(accepted(late))
    for record in told.records:
        record["host"] = "other.example.org"
    assert [lost.id for lost in fates(archived()).lost()] == [late]
