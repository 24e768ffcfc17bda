"""The journal: every event on disk, append-only, and how to read it back."""

from gateway.journal.reader import accepted, newest, read
from gateway.journal.segments import ended, positions
from gateway.journal.story import Story, find, render, stories
from gateway.journal.writer import Journal, Output

__all__ = [
    "Journal",
    "Output",
    "Story",
    "accepted",
    "ended",
    "find",
    "newest",
    "positions",
    "read",
    "render",
    "stories",
]
