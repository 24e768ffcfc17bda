"""Prints passed, failed and different per group when the run ends."""

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

COUNTS = pytest.StashKey()


def pytest_configure(config):
    config.stash[COUNTS] = Counter()


def pytest_terminal_summary(terminalreporter):
    counts = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            facts = dict(report.user_properties)
            if report.when == "call" and "group" in facts:
                counts[facts["group"], "different" if "different" in facts else outcome] += 1
    for group in sorted({group for group, _ in counts}):
        words = ", ".join(f"{counts[group, word]} {word}" for word in ("passed", "failed", "different"))
        terminalreporter.write_line(f"conformance {group}: {words}")
