"""The loader: finds plugins, runs them, and builds the chain."""

from gateway.loader.build import CORE, Generation, Loader, Running
from gateway.loader.files import settings_of
from gateway.loader.find import Found, bundled_folder, discover
from gateway.loader.report import describe, together
from gateway.loader.steps import steps_of

__all__ = [
    "CORE",
    "Found",
    "Generation",
    "Loader",
    "Running",
    "bundled_folder",
    "describe",
    "discover",
    "settings_of",
    "steps_of",
    "together",
]
