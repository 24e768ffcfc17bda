"""The harness: cases of the recorded vectors as tests, deliberate differences, and the chain to ask.

A group is one test file: a test over `vectors.cases("group")` that ends with `vectors.compare(...)`.
"""

import base64
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest
import structlog
import yaml

from gateway.chain import Chain
from gateway.counters import Counters
from gateway.hookspecs import SPECS
from gateway.loader import Loader, bundled_folder, discover, steps_of
from gateway.plugin import Services, Site
from gateway.settings.tree import Tree
from gateway.testing.fakes import FakeClock, FakeDns

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("MAILWARD_VECTORS") or HERE.parents[1].parent / "shared" / "vectors")


def load(name):
    """Give the JSON of one file of the vectors."""
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def cases(group, keep=lambda _case: True):
    """Give the cases of a group as parameters of a test; one that is skipped when there are no vectors."""
    if not (FOLDER / f"{group}.json").is_file():
        return [pytest.param(None, marks=pytest.mark.skip(f"no vectors in {FOLDER}"), id="absent")]
    return [pytest.param(case, id=case["id"]) for case in load(group) if keep(case)]


def raw(value):
    """Give the bytes that a string of the vectors stands for."""
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value.encode()


def text(value):
    """Give the same as the gateway holds it."""
    return raw(value).decode("utf-8", "surrogateescape")


def as_text(value):
    """Write bytes as the vectors write them."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def difference(group, case):
    """Give the reason of the deliberate difference that a case falls under, "" for none."""
    for rule in yaml.safe_load((HERE / "differences.yaml").read_text("utf-8")) or []:
        if rule["group"] == group and eval(
            rule["when"], {}, {"input": case["input"], "expect": case["expect"]}
        ):
            return rule["reason"]
    return ""


def compare(request, group, case, found, wanted):
    """Pass, or end as a deliberate difference, or fail showing both."""
    request.node.user_properties.append(("group", group))
    if found == wanted:
        return
    reason = difference(group, case)
    if reason:
        request.node.user_properties.append(("different", reason))
        return
    assert found == wanted, case["why"]


def chain_of(folder, conf, *stems, hostname="me.example"):
    """Build a chain of bundled plugins from a configuration; gives it and the plugins by stem."""
    clock = FakeClock()
    services = Services(clock, FakeDns(), Counters(clock))
    site = Site(hostname, "postmaster@elsewhere.example", folder, folder, 604800.0)
    tree = Tree.parse({"conf.d/test.yaml": json.dumps(conf)}, folder)
    loader = Loader(services, lambda _event: None, structlog.get_logger)
    found = discover([], set(conf), {})
    assert bundled_folder().is_dir()
    running = {stem: loader.load(found[stem], tree, site) for stem in stems}
    steps = steps_of(running, tree)
    chain = Chain(SPECS, steps, lambda _event: None)
    for plugin in running.values():
        plugin.instance.join(chain)
    return chain, {stem: plugin.instance for stem, plugin in running.items()}


def plugin_module(stem, part=""):
    """Give the module of a bundled plugin, or of one part of its folder."""
    name = f"vectors_{stem}"
    if name not in sys.modules:
        path = bundled_folder() / stem / "__init__.py"
        spec = importlib.util.spec_from_file_location(
            name, path, submodule_search_locations=[str(path.parent)]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return importlib.import_module(f"{name}.{part}") if part else sys.modules[name]
