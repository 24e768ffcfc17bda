"""The group `tcprules` of the vectors: what Debian's ucspi-tcp compiled, matched and set."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from gateway.errors import ConfigError

ROOT = Path(__file__).parents[2]
VECTORS = Path(os.environ.get("MAILWARD_VECTORS", ROOT.parent / "shared" / "vectors")) / "tcprules.json"

SPEC = importlib.util.spec_from_file_location(
    "tcprules_by_vectors", ROOT / "plugins" / "relay_control" / "tcprules.py"
)
tcprules = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = tcprules
SPEC.loader.exec_module(tcprules)


def cases():
    if not VECTORS.is_file():
        return [pytest.param(None, marks=pytest.mark.skip(f"no vectors at {VECTORS}"), id="absent")]
    return [pytest.param(case, id=case["id"]) for case in json.loads(VECTORS.read_text("utf-8"))]


def answer(rules, ip, host, info):
    try:
        parsed = tcprules.Rules.parse(rules, "tcp.smtp")
    except ConfigError:
        return {"compile_exit": 100}
    rule = parsed.find(ip or "", host, info)
    return {
        "compile_exit": 0,
        "exit": 0,
        "rule": rule and rule.address,
        "allow": rule is None or rule.allow,
        "env": [list(pair) for pair in rule.variables] if rule and rule.allow else [],
    }


@pytest.mark.parametrize("case", cases())
def test_tcprules(case):
    assert answer(**case["input"]) == case["expect"]
