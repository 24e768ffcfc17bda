"""Chains of a few bundled plugins, loaded by the real loader from settings as an admin writes them."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest
import structlog

from gateway import loader
from gateway.counters import Counters
from gateway.envelope import Client, Session, Transaction, new_id
from gateway.plugin import Services, Site
from gateway.settings.tree import Tree
from gateway.testing.fakes import FakeClock, FakeDns

sys.path.insert(0, str(Path(__file__).parent))

PLUGINS = Path(__file__).parents[2] / "plugins"
#: The stages without which no chain is built.
REST = """
from gateway import Plugin, hookimpl

class Rest(Plugin):
    @hookimpl
    def open_queue(self): ...
    @hookimpl
    def route(self, recipient): ...
    @hookimpl
    def deliver(self, delivery): ...
"""


@pytest.fixture(scope="session")
def postgres_plugin():
    """Give the module of postgres_queue, with some of what lies beside it."""
    name, folder = "plugin_tests_postgres", PLUGINS / "postgres_queue"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for part in ("links", "store", "asking"):
        setattr(module, part, importlib.import_module(f"{name}.{part}"))
    return module


@pytest.fixture
def database(postgres_server):
    """Give the name of a new database."""
    name = f"nodes_{new_id().replace('-', '')}"
    postgres_server.execute(f"CREATE DATABASE {name}")
    yield name
    postgres_server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def zones():
    """What the DNS holds; a test puts zones in."""
    return {}


@pytest.fixture
def chain_of(tmp_path, monkeypatch, clock, zones):
    """Give `chain_of(yaml, *stems, **site_files)`: the chain of these plugins, its events in `.emitted`."""

    def build(yaml, *stems, **site_files):
        folders = tmp_path / "bundled", tmp_path / "site"
        for folder in folders:
            folder.mkdir(exist_ok=True)
        for stem in stems:
            path = PLUGINS / stem if (PLUGINS / stem).is_dir() else PLUGINS / f"{stem}.py"
            if not (folders[0] / path.name).exists():
                (folders[0] / path.name).symlink_to(path)
        for stem, text in {"rest": REST, **site_files}.items():
            (folders[1] / f"{stem}.py").write_text(text)
            (folders[1] / f"{stem}.py").chmod(0o644)
        monkeypatch.setattr("gateway.loader.find.bundled_folder", lambda: folders[0])
        dns = FakeDns(zones)
        emitted = []
        services = Services(clock, dns, Counters(clock))
        site = Site("mx.example", "postmaster@mx.example", tmp_path, tmp_path, 604800.0)
        made = loader.Loader(services, emitted.append, structlog.get_logger).build(
            Tree.parse({"conf.d/10.yaml": yaml}, tmp_path), site, [folders[1]], frozenset()
        )
        made.chain.emitted, made.chain.dns = emitted, dns
        return made.chain

    return build


@pytest.fixture
def transaction():
    """Give `transaction(ip, sender, **session)`: a transaction of a client."""

    def make(ip="203.0.113.9", sender="s@remote.example", **session):
        from gateway.address import Address

        one = Session("session-1", "mx", session.pop("protocol", "smtp"), Client(ip, 4711), **session)
        return Transaction("message-1", Address(sender), "smtp", one)

    return make
