"""The archive of a queue: what was written comes back, and whatever harms it is found and named."""

import asyncio
import hashlib
import io
import json
import random
import subprocess
import tarfile
from dataclasses import fields, replace
from itertools import pairwise

import pytest

from gateway.address import Address
from gateway.envelope import Recipient, Route, new_id
from gateway.errors import ArchiveError
from gateway.message import HEADER_LIMIT, FileBody, Message, Spool
from gateway.queue import Filter, Finish, Snapshot
from gateway.queue.archive.form import read_snapshot, snapshot_json
from gateway.queue.archive.loading import load
from gateway.queue.archive.reader import Archive
from gateway.queue.archive.writer import Manifest, Writer

MANIFEST = Manifest(1_700_000_000.5, "mail.example.org", "0.1.0", {"shard-0": 12, "shard-1": 0})


def archive_of(*snapshots):
    file = io.BytesIO()
    writer = Writer(file, MANIFEST)
    for one in snapshots:
        assert writer.add(one)
    writer.end()
    return file.getvalue()


def opened(data):
    return Archive(io.BytesIO(data), "a.tar")


@pytest.fixture
def snapshot(entry):
    """Give `snapshot(*recipients, **fields)`: an entry as a store shows it."""
    return lambda *recipients, **more: Snapshot(entry(*recipients, **more), 1, 9)


@pytest.fixture
def big(entry, tmp_path):
    one = entry()
    spool = Spool(tmp_path)
    spool.write(b"Subject: big\n\n" + random.Random(1).randbytes(300_000).replace(b"\n", b" "))
    one.message = spool.finish()
    one.size = one.message.size
    return Snapshot(one, 0, 1)


def everything(one):
    """Give a snapshot with a value in every field that an entry may have."""
    kept = [field for field in fields(Recipient) if field.name not in ("address", "original", "discarded")]
    values = {"str": "x", "bool": True, "Mapping[str, str]": {"NOTIFY": "NEVER"}}
    recipient = replace(
        Recipient(Address("a\udcff@x.example"), Address("b@x.example")),
        **{field.name: values[field.type] for field in kept},
    )
    changed = [
        replace(
            one.entry.recipients[0],
            recipient=recipient,
            state="held",
            route=Route("remote", "remote", "x.example", "f:1"),
            attempts=3,
            due=1.25,
            report="no\n",
            status="4.4.1",
        ),
        replace(one.entry.recipients[1], state="failed", number=5),
    ]
    whole = replace(
        one.entry,
        sender=Address("\udcfe@y.example"),
        recipients=changed,
        birth=1_700_000_000.123456,
        origin="list",
        parent="p",
        params={"BODY": "8BITMIME"},
        facts={"subject": "\u00fc"},
        notes={"site": {"score": [1, None]}},
        size=77,
    )
    return replace(one, entry=whole)


def test_every_field_comes_back(snapshot):
    one = everything(snapshot("a@x.example", "b@x.example"))
    for field in fields(one.entry.recipients[0]):
        assert getattr(one.entry.recipients[0], field.name) or field.name == "number", (
            f"set {field.name} above"
        )
    assert read_snapshot(snapshot_json(one), one.entry.message) == one


def test_what_was_claimed_is_queued_again(snapshot):
    one = snapshot()
    one.entry.recipients[0].state = "attempting"
    found = read_snapshot(snapshot_json(one), one.entry.message)
    assert found.entry.recipients[0].state == "queued"


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "../../etc/passwd"},
        {"id": 5},
        {"recipients": []},
        {"recipients": {}},
        {"birth": "soon"},
        {"birth": 1e999},
        {"origin": "elsewhere"},
        {"notes": None},
        {"numbers": "many"},
    ],
    ids=str,
)
def test_json_that_is_none_of_ours_is_refused(snapshot, wrong):
    said = json.loads(snapshot_json(snapshot())) | wrong
    with pytest.raises(ValueError, match=r"\S"):
        read_snapshot(json.dumps(said).encode(), Message(b""))


def test_messages_come_back_byte_for_byte(snapshot, big, tmp_path):
    odd = snapshot(body=b"\n\xff\r\n.\nno line end")
    empty = snapshot(body=b"")
    archive = opened(archive_of(odd, big, empty))
    assert archive.verify() == 3
    assert archive.manifest == MANIFEST
    assert list(archive.ids()) == [one.entry.id for one in (odd, big, empty)]
    found = list(archive.snapshots(tmp_path))
    for one, before in zip(found, (odd, big, empty), strict=True):
        assert bytes(one.entry.message) == bytes(before.entry.message)
        assert replace(one.entry, message=before.entry.message) == before.entry
        assert (one.delivered, one.numbers) == (before.delivered, before.numbers)
    assert isinstance(found[1].entry.message.body, FileBody)


def test_a_header_that_grew_over_the_limit_on_its_way_is_no_fault(snapshot, tmp_path):
    one = snapshot(body=b"\n" + b"x" * 300_000)
    one.entry.message = Message(b"Received: here\n" * 70_000, one.entry.message.body)
    assert len(one.entry.message.header) > HEADER_LIMIT
    (found,) = opened(archive_of(one)).snapshots(tmp_path)
    assert bytes(found.entry.message) == bytes(one.entry.message)


def test_ordinary_tools_open_it(snapshot, big, tmp_path):
    one = snapshot()
    (tmp_path / "a.tar").write_bytes(archive_of(one, big))
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "xf", "../a.tar"], check=True, cwd=tmp_path / "out")
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], check=True, cwd=tmp_path / "out")
    assert (tmp_path / "out" / f"{one.entry.id}.eml").read_bytes() == bytes(one.entry.message)
    assert (tmp_path / "out" / f"{one.entry.id}.eml").stat().st_mode & 0o777 == 0o600
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert tar.getnames()[0] == "manifest.json"


def test_every_flipped_bit_is_found_and_its_entry_named(snapshot):
    ones = [snapshot(body=b"\n" + b"text\n" * 20) for _ in range(2)]
    data = archive_of(*ones)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        places = [(member.offset_data, member.name) for member in tar]
    # Every byte of the first message and its neighbours, then a sample of the rest.
    for at in [*range(0, 3000, 7), *range(3000, len(data), 97)]:
        harmed = bytearray(data)
        harmed[at] ^= 1 << at % 8
        with pytest.raises(ArchiveError) as found:
            opened(bytes(harmed)).verify()
        near = [name for start, name in places if start <= at]
        if near and any(start <= at < start + 64 and name.endswith(".eml") for start, name in places):
            assert near[-1] in str(found.value)


@pytest.mark.parametrize("kept", [0, 100, 512, 1500, 3000, 0.5, 0.9, 0.99, -1])
def test_an_archive_that_is_cut_off_is_refused(snapshot, big, kept):
    data = archive_of(snapshot(), big, snapshot())
    cut = int(len(data) * kept) if isinstance(kept, float) else len(data) + kept if kept < 0 else kept
    with pytest.raises(ArchiveError, match=r"a\.tar (is (cut off|damaged)|holds)"):
        opened(data[:cut]).verify()


def test_one_cut_at_a_member_is_cut_off_too(snapshot):
    data = archive_of(snapshot(), snapshot())
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    for before, member in pairwise(members):
        with pytest.raises(ArchiveError, match=f"behind {before.name}"):
            opened(data[: member.offset]).verify()
        with pytest.raises(ArchiveError, match=f"behind {before.name}"):
            opened(data[: member.offset] + bytes(1024)).verify()


def test_a_newer_archive_says_so(snapshot):
    file = io.BytesIO()
    writer = Writer(file, replace(MANIFEST, format=2, version="9.0"))
    writer.add(snapshot())
    writer.end()
    with pytest.raises(ArchiveError, match=r"newer version \(9\.0\)"):
        opened(file.getvalue())


@pytest.mark.parametrize("name", ["../x.eml", "/etc/passwd", "x.eml", "manifest.json", "SHA256SUMS"])
def test_members_that_are_none_of_ours_are_refused(name):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for one in ("manifest.json", name):
            text = json.dumps({"created": 1.0, "host": "h", "version": "1", "streams": {}, "format": 1})
            member = tarfile.TarInfo(one)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    with pytest.raises(ArchiveError, match=r"a\.tar"):
        opened(file.getvalue()).verify()


def test_links_in_an_archive_are_refused(snapshot):
    one = snapshot()
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        text = json.dumps({"created": 1.0, "host": "h", "version": "1", "streams": {}, "format": 1})
        member = tarfile.TarInfo("manifest.json")
        member.size = len(text)
        tar.addfile(member, io.BytesIO(text.encode()))
        link = tarfile.TarInfo(f"{one.entry.id}.eml")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(ArchiveError, match="may not stand there"):
        opened(file.getvalue()).verify()


def test_json_of_another_message_is_refused(snapshot):
    one, other = snapshot(), snapshot()
    data = archive_of(one)
    forged = data.replace(
        snapshot_json(one), snapshot_json(replace(one, entry=replace(one.entry, id=other.entry.id)))
    )
    before, after = (
        hashlib.sha256(snapshot_json(s)).hexdigest()
        for s in (one, replace(one, entry=replace(one.entry, id=other.entry.id)))
    )
    with pytest.raises(ArchiveError, match="is of another message"):
        opened(forged.replace(before.encode(), after.encode())).verify()


def test_a_message_that_ends_while_it_is_written_is_left_out(snapshot, big):
    big.entry.message.body.path.unlink()
    file = io.BytesIO()
    writer = Writer(file, MANIFEST)
    assert not writer.add(big)
    assert writer.add(snapshot())
    writer.end()
    assert opened(file.getvalue()).verify() == 1


def ended(*lines):
    """Give an archive without messages that says what has ended."""
    file = io.BytesIO()
    writer = Writer(file, MANIFEST)
    writer.remember(lines)
    writer.end()
    return file.getvalue()


def test_what_has_ended_comes_back(snapshot):
    told = [(new_id(), 1_700_000_000.25 + n) for n in range(3000)]
    archive = opened(ended(*told))
    assert archive.verify() == 0
    assert list(archive.finished()) == told
    assert list(opened(archive_of(snapshot())).finished()) == []


@pytest.mark.parametrize("line", [("../../x", 1.0), (new_id(), "soon"), (new_id(), "nan"), ("", "")])
def test_what_has_ended_is_refused_where_it_is_damaged(line):
    with pytest.raises(ArchiveError, match=r"finished\.txt is damaged"):
        opened(ended((new_id(), 1.0), line)).verify()


def test_what_has_ended_stands_behind_all_messages(snapshot):
    file = io.BytesIO()
    writer = Writer(file, MANIFEST)
    writer.remember([(new_id(), 1.0)])
    writer.add(snapshot())
    writer.end()
    with pytest.raises(ArchiveError, match="may not stand there"):
        opened(file.getvalue()).verify()


# Loading, into every store.


async def loaded(store, snapshots, emitted=None, **more):
    told = [] if emitted is None else emitted
    found = [one async for one in load(store, iter(snapshots), told.append, **more)]
    return (found[-1].added, found[-1].known) if found else (0, 0)


async def test_an_archive_goes_from_any_store_into_any(store, snapshot, big, tmp_path):
    ones = [everything(snapshot("a@x.example", "b@x.example")), snapshot(), big]
    data = archive_of(*ones)
    for one in await asyncio.to_thread(lambda: list(opened(data).snapshots(store.spool_folder))):
        assert await store.restore(one)
    file = io.BytesIO()
    writer = Writer(file, MANIFEST)
    for view in store.views():
        with view:
            assert all(writer.add(one) for one in view.snapshots())
    writer.end()
    found = {one.entry.id: one for one in opened(file.getvalue()).snapshots(tmp_path)}
    for one in ones:
        after = found[one.entry.id]
        assert bytes(after.entry.message) == bytes(one.entry.message)
        assert replace(after.entry, message=one.entry.message) == one.entry
        assert after.numbers == max(one.numbers, 1)


async def test_twice_adds_nothing_also_after_a_delivery(store, snapshot, clock):
    ones = [snapshot() for _ in range(450)]
    told = []
    assert await loaded(store, ones, told) == (450, 0)
    assert {event.message for event in told} == {one.entry.id for one in ones}
    assert {(event.NAME, event.recovered) for event in told} == {("message.accepted", True)}
    assert await loaded(store, ones) == (0, 450)
    for one in await store.claim(clock.time(), 100, {}, 100):
        await store.finish([Finish(one, [replace(r, state="delivered") for r in one.recipients])])
    assert await loaded(store, ones, told := []) == (0, 450)
    assert told == []
    assert list(store.spool_folder.iterdir()) == []


async def test_held_are_restored_to_be_released(store, snapshot, clock):
    one, held = snapshot(due=5.0), snapshot(state="held", due=clock.time() - 50)
    told = []
    assert await loaded(store, [one, held], told, held_since=clock.time()) == (2, 0)
    assert await store.claim(clock.time(), 10, {}, 10) == []
    assert [event.NAME for event in told] == ["message.accepted", "message.held"] * 2
    clock.advance(10)
    ages = {e.id: e.birth - one.entry.birth for e in await store.release(Filter())}
    assert ages == {one.entry.id: 10, held.entry.id: 60}


async def test_a_store_that_fails_says_so_and_another_time_adds_the_rest(store, snapshot, monkeypatch):
    ones = [snapshot() for _ in range(5)]
    restore, fail = type(store).restore, ones[3].entry.id
    broken = {fail}

    async def sometimes(self, one):
        if one.entry.id in broken:
            raise OSError("broken")
        return await restore(self, one)

    monkeypatch.setattr(type(store), "restore", sometimes)
    told = []
    with pytest.raises(OSError, match="broken"):
        await loaded(store, ones, told)
    assert len(told) == 4
    broken.clear()
    assert await loaded(store, ones) == (1, 4)
