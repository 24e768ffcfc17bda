"""Finding, loading and reloading plugins: every trap that was measured is a case here."""

import os
import sys

import pytest

from gateway.errors import PluginError
from gateway.testing import Bench

GOOD = """
from gateway import Plugin, hookimpl

class Good(Plugin):
    @hookimpl
    def mail(self, transaction):
        return None
"""


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path)


def refused(bench, yaml="", **plugins):
    bench.write(plugins)
    with pytest.raises(PluginError) as caught:
        bench.build(yaml)
    return str(caught.value)


def ours():
    return {name for name in sys.modules if name.startswith("mailward_plugins.")}


def test_a_file_in_the_folder_runs(bench):
    bench.write({"good": GOOD})
    assert "good" in bench.build().order["mail"]


def test_a_file_of_a_bundled_stem_replaces_it(bench):
    bench.write({"badmailfrom": GOOD})
    found = bench.build().plugins["badmailfrom"].found
    assert found.origin == "site"
    assert found.replaces.name == "badmailfrom.py"


def test_the_last_folder_wins(bench, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "good.py").write_text(GOOD)
    bench.write({"good": "raise RuntimeError('not me')"})
    from gateway.loader import discover

    assert discover([bench.folder, other], set(), {})["good"].path == other / "good.py"


def test_core_runs_without_a_section_and_leaves_with_enabled_false(bench):
    assert "percenthack" in bench.build().plugins
    assert "percenthack" not in bench.build("percenthack: {enabled: false}").plugins


@pytest.mark.parametrize(
    "name", ["_private.py", ".hidden.py", "test_it.py", "it.py~", "it.py.dpkg-old", "notes.txt"]
)
def test_what_is_no_plugin_is_ignored(bench, name):
    (bench.folder / name).write_text("raise RuntimeError")
    bench.build()


def test_a_name_that_no_plugin_may_have(bench):
    (bench.folder / "My-Rule.py").write_text(GOOD)
    assert "rename the file" in refused(bench)


@pytest.mark.parametrize(
    ("source", "line", "said"),
    [
        ("import nothing_like_it\n", 1, "ModuleNotFoundError"),
        ("x = 1\nraise RuntimeError('boom')\n", 2, "RuntimeError: boom"),
        ("x = 1\nif x\n", 2, "syntax error"),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit"),
        ("x = 1\n", 0, "exactly one"),
        (GOOD + GOOD.replace("Good", "Better"), 0, "exactly one"),
        (GOOD.replace("def mail", "def mial"), 0, "misspelt"),
        (GOOD.replace("transaction", "transactoin"), 0, "transactoin"),
        (GOOD.replace("@hookimpl", "@hookimpl(wrapper=True)").replace("return", "yield"), 5, "wrapper"),
        (GOOD.replace("self, transaction", "self, *, transaction"), 5, "keyword-only"),
        (
            GOOD.replace("self, transaction", "self, transaction: Session"),
            5,
            "transaction is Transaction, not Session",
        ),
        (
            "from gateway import Section\n" + GOOD + "\nclass Settings(Section):\n    enabled: str = ''\n",
            0,
            "redefines enabled",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_a_broken_file_is_refused_with_file_and_line(bench, source, line, said):
    before = ours()
    text = refused(bench, broken="from __future__ import annotations\n" * ("Session" in source) + source)
    assert said in text
    assert str(bench.folder / "broken.py") in text
    if line:
        assert f"broken.py:{line + ('Session' in source)}" in text
    assert ours() == before


def test_the_settings_of_a_plugin_are_checked_with_place(bench):
    bench.write({"good": GOOD})
    with pytest.raises(PluginError, match=r"conf\.d/site\.yaml:2.*dedline.*deadline"):
        bench.build("good:\n  dedline: 5s\n")


def test_a_section_of_nobody_names_the_nearest(bench):
    assert "rcpthosts" in refused(bench, "rcpthost: {}")


def test_order_names_a_plugin_that_runs(bench):
    text = refused(bench, "good: {before: [nobody]}", good=GOOD)
    assert "site.yaml:1" in text
    assert "nobody" in text


def test_a_circle_is_refused(bench):
    text = refused(bench, "a: {before: [b]}\nb: {before: [a]}", a=GOOD, b=GOOD)
    assert "circle: a, b" in text


@pytest.mark.parametrize("stage", ["open_queue", "route", "deliver"])
def test_a_gateway_without_an_essential_stage_does_not_start(bench, stage):
    stems = {
        "open_queue": ["sqlite_queue"],
        "route": ["locals", "remote"],
        "deliver": ["dot_qmail", "remote"],
    }
    yaml = "\n".join(f"{stem}: {{enabled: false}}" for stem in stems[stage])
    assert f"no plugin answers {stage}()" in refused(bench, yaml)


def test_a_dataclass_with_postponed_annotations_loads(bench):
    bench.write(
        {
            "good": (
                "from __future__ import annotations\nfrom dataclasses import dataclass\n"
                "from typing import ClassVar\n"
                "@dataclass\nclass D:\n    x: ClassVar[int] = 1\n" + GOOD
            )
        }
    )
    assert "good" in bench.build().plugins


def test_a_folder_plugin_has_siblings(bench):
    folder = bench.folder / "big"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .part import ANSWER\n" + GOOD)
    (folder / "part.py").write_text("ANSWER = 42\n")
    assert "big" in bench.build().plugins


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_file_of_somebody_else_is_refused(bench):
    bench.write({"good": GOOD})
    os.chown(bench.folder / "good.py", 12345, 12345)
    assert "owned by uid 12345" in refused(bench)


@pytest.mark.parametrize("target", ["good.py", "."])
def test_what_others_may_write_is_refused(bench, target):
    bench.write({"good": GOOD})
    (bench.folder / target).chmod(0o777)
    assert "chmod go-w" in refused(bench)


@pytest.mark.parametrize("target", ["big", "big/part.py", "big/__init__.py"])
def test_what_others_may_write_in_the_folder_of_a_plugin_is_refused(bench, target):
    folder = bench.folder / "big"
    folder.mkdir()
    (folder / "__init__.py").write_text("from .part import ANSWER\n" + GOOD)
    (folder / "part.py").write_text("ANSWER = 42\n")
    (bench.folder / target).chmod(0o777)
    assert "chmod go-w" in refused(bench)


def test_a_sticky_bit_does_not_make_a_file_safe(bench):
    bench.write({"good": GOOD})
    (bench.folder / "good.py").chmod(0o1666)
    assert "chmod go-w" in refused(bench)


# Reload


def test_an_unchanged_plugin_keeps_its_instance(bench):
    bench.write({"good": GOOD, "other": GOOD})
    first = bench.build()
    bench.write({"other": GOOD + "\n# changed\n"})
    second = bench.build(before=first)
    assert second.plugins["good"].instance is first.plugins["good"].instance
    assert second.plugins["other"].instance is not first.plugins["other"].instance


def test_changed_settings_make_a_new_instance(bench):
    bench.write({"good": GOOD})
    first = bench.build("good: {deadline: 5s}")
    second = bench.build("good: {deadline: 6s}", before=first)
    assert second.plugins["good"].instance is not first.plugins["good"].instance
    assert second.plugins["good"].settings.deadline == 6


def test_a_file_that_went_is_gone(bench):
    bench.write({"good": GOOD})
    first = bench.build()
    (bench.folder / "good.py").unlink()
    assert "good" not in bench.build(before=first).plugins


def test_retired_generations_leave_no_modules(bench):
    bench.write({"good": GOOD})
    generation = bench.build()
    started = ours()
    for i in range(30):
        bench.write({"good": f"{GOOD}\n# {i}\n"})
        newer = bench.build(before=generation)
        bench.loader.retire(generation, newer)
        generation = newer
    assert len(ours()) == len(started)


def test_a_refused_reload_changes_nothing(bench):
    bench.write({"good": GOOD})
    first = bench.build()
    bench.write({"good": "raise RuntimeError"})
    with pytest.raises(PluginError):
        bench.build(before=first)
    assert first.plugins["good"].instance.chain is first.chain


# Installed plugins


class Point:
    """An entry point of an installed distribution."""

    group = "mailward.plugins"

    def __init__(self, name, distribution, value="fake_installed:Good"):
        self.name, self.value = name, value
        self.module = value.partition(":")[0]
        self.dist = type("Distribution", (), {"name": distribution})()


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """Install distributions: `installed(name=distribution)`."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "fake_installed.py").write_text(GOOD)
    monkeypatch.syspath_prepend(tmp_path / "site")

    def install(*points):
        monkeypatch.setattr("gateway.loader.find.entry_points", lambda **_: list(points))

    return install


def test_an_installed_plugin_runs_only_with_a_section(bench, installed):
    installed(Point("extra", "mailward-extra"))
    assert "extra" not in bench.build().plugins
    assert bench.build("extra:\n").plugins["extra"].found.origin == "installed"


def test_an_installed_plugin_takes_a_bundled_stem_only_by_name(bench, installed):
    installed(Point("badmailfrom", "mailward-extra"))
    assert bench.build("badmailfrom: {}").plugins["badmailfrom"].found.origin == "bundled"
    running = bench.build("badmailfrom: {distribution: mailward-extra}").plugins["badmailfrom"]
    assert running.found.origin == "installed"


def test_two_distributions_with_one_stem_are_an_error(bench, installed):
    installed(Point("extra", "one"), Point("extra", "two"))
    assert "one and two" in refused(bench, "extra: {}")
    assert bench.build("extra: {distribution: two}").plugins["extra"].found.distribution == "two"
